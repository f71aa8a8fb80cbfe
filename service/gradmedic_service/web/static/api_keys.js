// The API keys: who may do what, and since when not any more.

import { get, send, showTrouble } from "./api.js";
import { byId, copyButton, el } from "./dom.js";
import { time } from "./format.js";

const body = byId("keys").tBodies[0];
let token = null;

function stateOf(key) {
  if (key.revoked_at) return ["revoked ", time(key.revoked_at)];
  if (key.expires_at && Date.parse(key.expires_at) <= Date.now()) return ["expired"];
  return key.expires_at ? ["until ", new Date(key.expires_at).toLocaleDateString("en-CA")] : ["in use"];
}

function rowOf(key) {
  const revoke = el("button", { type: "button", "aria-label": `Revoke ${key.name}` }, "Revoke");
  revoke.addEventListener("click", async () => {
    if (revoke.dataset.sure !== "yes") { revoke.dataset.sure = "yes"; revoke.textContent = "Really revoke"; return; }
    try { await send("DELETE", `/api-keys/${key.id}`); await refresh(); } catch (error) { showTrouble(error); }
  });
  return el("tr", {},
    el("th", { scope: "row" }, key.name),
    el("td", { "data-label": "Begins with" }, el("code", {}, key.prefix)),
    el("td", { "data-label": "Project" }, key.project ?? "every project"),
    el("td", { "data-label": "May" }, key.scopes.join(", ")),
    el("td", { "data-label": "Last used" }, key.last_used_at ? time(key.last_used_at) : "never"),
    el("td", { "data-label": "State" }, stateOf(key)),
    el("td", {}, key.revoked_at ? "" : revoke));
}

async function read() {
  const page = await get("/api-keys", { max_results: 100, page_token: token });
  body.append(...page.items.map(rowOf));
  token = page.next_page_token;
  byId("more").hidden = !token;
}

async function refresh() {
  token = null;
  body.replaceChildren();
  await read();
  byId("keys").hidden = !body.childElementCount;
  byId("none").hidden = body.childElementCount > 0;
  document.body.dataset.ready = "yes";
}

byId("more").addEventListener("click", () => read().catch(showTrouble));
byId("create").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const { name, project, expires_at: expires } = form.elements;
  const scopes = [...form.querySelectorAll("input[name=scopes]:checked")].map(({ value }) => value);
  try {
    const key = await send("POST", "/api-keys", {
      name: name.value.trim() || null, project: project.value.trim() || null, scopes,
      expires_at: expires.value ? `${expires.value}T23:59:59Z` : null,
    });
    byId("created").replaceChildren(
      el("p", {}, "This is the only time that the key is shown:"),
      el("p", { class: "secret" }, el("code", {}, key.secret), " ", copyButton(key.secret)));
    showTrouble(null);
    await refresh();
  } catch (error) { showTrouble(error); }
});
refresh().catch(showTrouble);
