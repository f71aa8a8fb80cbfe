// The page of reruns: a list, newest first.

import { get, getAll, showError } from "./api.js";
import { byId, el, setText } from "./dom.js";
import { statusWord, time } from "./format.js";

const REFRESH_MILLISECONDS = 4000;
const PAGE = 50;

const form = byId("filters");
const body = byId("reruns").tBodies[0];
const runNames = new Map(); // by run id
let pages = 1;
let timer = 0;
let requests = 0;

async function readName(runId) {
  if (!runNames.has(runId)) runNames.set(runId, await get(`/runs/${runId}`).then((run) => run.name, () => "a deleted run"));
  return runNames.get(runId);
}

const rowOf = (rerun, name) => el("tr", { "data-rerun": rerun.id },
  el("th", { scope: "row" }, el("a", { href: `/reruns/${rerun.id}` }, `Rerun of ${name}`), rerun.is_automatic ? el("span", { class: "muted small" }, " automatic") : null),
  el("td", { "data-label": "Status" }, statusWord(rerun.status)),
  el("td", { "data-label": "Result" }, rerun.reason ?? "–"),
  el("td", { "data-label": "Project" }, rerun.project),
  el("td", { "data-label": "Trainable" }, rerun.trainable),
  el("td", { "data-label": "Created" }, time(rerun.created_at)));

async function refresh() {
  clearTimeout(timer);
  const thisRequest = requests += 1;
  const query = { project: form.elements.project.value, status: form.elements.status.value, max_results: PAGE };
  try {
    const items = [];
    let token = null;
    for (let page = 0; page < pages && (page === 0 || token); page += 1) {
      const answer = await get("/reruns", { ...query, page_token: token });
      items.push(...answer.items);
      token = answer.next_page_token;
    }
    const rows = await Promise.all(items.map(async (rerun) => rowOf(rerun, await readName(rerun.run_id))));
    if (thisRequest !== requests) return;
    if (!body.contains(document.activeElement)) body.replaceChildren(...rows);
    byId("reruns").hidden = !items.length;
    byId("none").hidden = items.length > 0;
    byId("more").hidden = !token;
    setText(byId("live"), "live");
    showError(null);
    document.body.dataset.ready = "yes";
  } catch (error) {
    if (thisRequest !== requests) return;
    showError(error);
    setText(byId("live"), "retrying …");
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
  const parameters = new URLSearchParams(location.search);
  const projects = await getAll("/projects").catch((error) => { showError(error); return []; });
  const names = new Set([...projects.map(({ name }) => name), ...(parameters.get("project") ? [parameters.get("project")] : [])]);
  form.elements.project.append(...[...names].map((name) => el("option", { value: name }, name)));
  for (const name of ["project", "status"]) if (parameters.get(name)) form.elements[name].value = parameters.get(name);
  await refresh();
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", search);
byId("more").addEventListener("click", () => { pages += 1; refresh(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
start();
