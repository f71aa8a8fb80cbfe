// The page of API keys: a list, and a form that creates a key.

import { get, send, showError } from "./api.js";
import { byId, copyButton, el } from "./dom.js";
import { time } from "./format.js";

const body = byId("keys").tBodies[0];
let nextToken = null;

function stateText(key) {
  if (key.revoked_at) return ["revoked ", time(key.revoked_at)];
  if (key.expires_at && Date.parse(key.expires_at) <= Date.now()) return ["expired"];
  return key.expires_at ? ["valid until ", new Date(key.expires_at).toLocaleDateString("en-CA")] : ["valid"];
}

function rowOf(key) {
  const revoke = el("button", { type: "button", "aria-label": `Revoke ${key.name}` }, "Revoke");
  revoke.addEventListener("click", async () => {
    if (revoke.dataset.isConfirmed !== "yes") { revoke.dataset.isConfirmed = "yes"; revoke.textContent = "Really revoke"; return; }
    try { await send("DELETE", `/api-keys/${key.id}`); await refresh(); } catch (error) { showError(error); }
  });
  return el("tr", {},
    el("th", { scope: "row" }, key.name),
    el("td", { "data-label": "Prefix" }, el("code", {}, key.prefix)),
    el("td", { "data-label": "Project" }, key.project ?? "every project"),
    el("td", { "data-label": "Scopes" }, key.scopes.join(", ")),
    el("td", { "data-label": "Last used" }, key.last_used_at ? time(key.last_used_at) : "never"),
    el("td", { "data-label": "State" }, stateText(key)),
    el("td", {}, key.revoked_at ? "" : revoke));
}

async function readPage() {
  const page = await get("/api-keys", { max_results: 100, page_token: nextToken });
  body.append(...page.items.map(rowOf));
  nextToken = page.next_page_token;
  byId("more").hidden = !nextToken;
}

async function refresh() {
  nextToken = null;
  body.replaceChildren();
  await readPage();
  byId("keys").hidden = !body.childElementCount;
  byId("none").hidden = body.childElementCount > 0;
  document.body.dataset.ready = "yes";
}

byId("more").addEventListener("click", () => readPage().catch(showError));
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
      el("p", {}, "Copy the key now; it is not shown again:"),
      el("p", { class: "secret" }, el("code", {}, key.secret), " ", copyButton(key.secret)));
    showError(null);
    await refresh();
  } catch (error) { showError(error); }
});
refresh().catch(showError);
