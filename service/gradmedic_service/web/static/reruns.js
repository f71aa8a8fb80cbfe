// The list of reruns, newest first.

import { all, get, showTrouble } from "./api.js";
import { byId, el, setText } from "./dom.js";
import { statusWord, time } from "./format.js";

const REFRESH_MILLISECONDS = 4000;
const PAGE = 50;

const form = byId("filters");
const body = byId("reruns").tBodies[0];
const names = new Map(); // of the runs that were rerun
let pages = 1;
let timer = 0;
let asking = 0;

async function nameOf(runId) {
  if (!names.has(runId)) names.set(runId, await get(`/runs/${runId}`).then((run) => run.name, () => "a run"));
  return names.get(runId);
}

const rowOf = (rerun, name) => el("tr", { "data-rerun": rerun.id },
  el("th", { scope: "row" }, el("a", { href: `/reruns/${rerun.id}` }, `Rerun of ${name}`), rerun.is_automatic ? el("span", { class: "muted small" }, " automatic") : null),
  el("td", { "data-label": "Status" }, statusWord(rerun.status)),
  el("td", { "data-label": "Result" }, rerun.reason ?? "–"),
  el("td", { "data-label": "Project" }, rerun.project),
  el("td", { "data-label": "Trainable" }, rerun.trainable),
  el("td", { "data-label": "Asked for" }, time(rerun.created_at)));

async function refresh() {
  clearTimeout(timer);
  const mine = asking += 1;
  const query = { project: form.elements.project.value, status: form.elements.status.value, max_results: PAGE };
  try {
    const items = [];
    let token = null;
    for (let page = 0; page < pages && (page === 0 || token); page += 1) {
      const found = await get("/reruns", { ...query, page_token: token });
      items.push(...found.items);
      token = found.next_page_token;
    }
    const rows = await Promise.all(items.map(async (rerun) => rowOf(rerun, await nameOf(rerun.run_id))));
    if (mine !== asking) return;
    if (!body.contains(document.activeElement)) body.replaceChildren(...rows);
    byId("reruns").hidden = !items.length;
    byId("none").hidden = items.length > 0;
    byId("more").hidden = !token;
    setText(byId("live"), "live");
    showTrouble(null);
    document.body.dataset.ready = "yes";
  } catch (error) {
    if (mine !== asking) return;
    showTrouble(error);
    setText(byId("live"), "trying again …");
  }
  if (!document.hidden) timer = setTimeout(refresh, REFRESH_MILLISECONDS);
}

function search() {
  pages = 1;
  const parameters = new URLSearchParams(["project", "status"].map((name) => [name, form.elements[name].value]).filter(([, value]) => value));
  history.replaceState(null, "", parameters.size ? `?${parameters}` : location.pathname);
  document.activeElement?.closest("tbody") && document.activeElement.blur();
  refresh();
}

async function start() {
  const asked = new URLSearchParams(location.search);
  const projects = await all("/projects").catch((error) => { showTrouble(error); return []; });
  const known = new Set([...projects.map(({ name }) => name), ...(asked.get("project") ? [asked.get("project")] : [])]);
  form.elements.project.append(...[...known].map((name) => el("option", { value: name }, name)));
  for (const name of ["project", "status"]) if (asked.get(name)) form.elements[name].value = asked.get(name);
  await refresh();
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", search);
byId("more").addEventListener("click", () => { pages += 1; refresh(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
start();
