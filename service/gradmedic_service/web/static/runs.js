// The list of runs: filters stand in the address, and what is shown is asked for again every few seconds.

import { all, get, showTrouble } from "./api.js";
import { byId, debounce, el, setText } from "./dom.js";
import { badge, integer, isUnhealthy, statusWord, time } from "./format.js";

const REFRESH_MILLISECONDS = 3000;
const PAGE = 50;
const MOST_COMPARED = 6;

const form = byId("filters");
const body = byId("runs").tBodies[0];
const fields = ["q", "project", "verdict", "status", "tag", "sort"];
const chosen = new Map();
let tokens = [null]; // of the pages up to the one shown
let timer = 0;
let asking = 0;

const filters = () => Object.fromEntries(fields.map((name) => [name, form.elements[name].value.trim()]));

function remember() {
  const parameters = new URLSearchParams(Object.entries(filters()).filter(([, value]) => value));
  history.replaceState(null, "", parameters.size ? `?${parameters}` : location.pathname);
}

function showChosen() {
  const link = byId("compare");
  const isEnough = chosen.size >= 2;
  link.setAttribute("aria-disabled", String(!isEnough));
  if (isEnough) link.href = `/compare?${new URLSearchParams([...chosen.keys()].map((id) => ["run", id]))}`;
  else link.removeAttribute("href");
  setText(byId("chosen"), chosen.size ? `${chosen.size} of at most ${MOST_COMPARED} marked: ${[...chosen.values()].join(", ")}` : "Mark two to six runs to compare them.");
  for (const box of body.querySelectorAll("input")) box.disabled = !box.checked && chosen.size >= MOST_COMPARED;
}

function rowOf(run) {
  const box = el("input", { type: "checkbox", "aria-label": `Compare ${run.name}`, value: run.id });
  box.checked = chosen.has(run.id);
  box.addEventListener("change", () => {
    if (box.checked) chosen.set(run.id, run.name);
    else chosen.delete(run.id);
    showChosen();
  });
  const since = isUnhealthy(run.verdict) && run.since_step !== null ? ` since step ${integer(run.since_step)}` : "";
  return el("tr", { "data-run": run.id, "data-verdict": run.verdict },
    el("td", { class: "box" }, box),
    el("th", { scope: "row" }, el("a", { href: `/runs/${run.id}` }, run.name), run.group ? el("span", { class: "muted small" }, ` ${run.group}`) : null),
    el("td", { "data-label": "Verdict" }, badge(run.verdict), el("span", { class: "muted small" }, since)),
    el("td", { "data-label": "Status" }, statusWord(run.status)),
    el("td", { "data-label": "Project" }, run.project),
    el("td", { class: "number", "data-label": "Last step" }, integer(run.last_step)),
    el("td", { "data-label": "Tags" }, run.tags.map((tag) => el("span", { class: "tag" }, tag))),
    el("td", { "data-label": "Changed" }, time(run.updated_at)));
}

/** Replace rows without taking the focus away from within them. */
function showRows(items) {
  const focused = body.contains(document.activeElement) ? [document.activeElement.closest("tr").dataset.run, document.activeElement.tagName] : null;
  body.replaceChildren(...items.map(rowOf));
  if (focused) body.querySelector(`tr[data-run="${focused[0]}"] ${focused[1] === "A" ? "a" : "input"}`)?.focus();
  const hasFilter = Object.entries(filters()).some(([name, value]) => name !== "sort" && value);
  const none = byId("none");
  none.hidden = items.length > 0;
  byId("runs").hidden = !items.length;
  if (!items.length && !none.childElementCount) {
    none.replaceChildren(...(hasFilter
      ? [el("p", {}, "No run fits these filters.")]
      : [el("p", {}, "There is no run yet. In a training script:"), el("pre", { tabindex: "0" }, el("code", {}, 'import gradmedic\n\nrun = gradmedic.init(project="mine")\nrun.watch(model, optimizer)\n...\nrun.log(loss=loss)'))]));
  }
  if (items.length) none.replaceChildren();
  showChosen();
}

async function refresh() {
  clearTimeout(timer);
  const mine = asking += 1;
  try {
    const page = await get("/runs", { ...filters(), max_results: PAGE, page_token: tokens.at(-1) });
    if (mine !== asking) return;
    byId("none").replaceChildren();
    showRows(page.items);
    byId("previous").parentElement.hidden = tokens.length < 2 && !page.next_page_token;
    byId("previous").disabled = tokens.length < 2;
    byId("next").disabled = !page.next_page_token;
    byId("next").dataset.token = page.next_page_token ?? "";
    setText(byId("live"), "live");
    showTrouble(null);
    document.body.dataset.ready = "yes";
  } catch (error) {
    if (mine !== asking) return;
    setText(byId("live"), "trying again …");
    showTrouble(error);
  }
  if (!document.hidden) timer = setTimeout(refresh, REFRESH_MILLISECONDS);
}

function search() {
  tokens = [null];
  remember();
  refresh();
}

async function start() {
  const asked = new URLSearchParams(location.search);
  const select = form.elements.project;
  const project = asked.get("project");
  const projects = await all("/projects").catch((error) => { showTrouble(error); return []; });
  const names = new Set([...projects.map(({ name }) => name), ...(project ? [project] : [])]);
  select.append(...[...names].map((name) => el("option", { value: name }, name)));
  for (const name of fields) if (asked.get(name)) form.elements[name].value = asked.get(name);
  await refresh();
}

form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
form.addEventListener("change", search);
form.addEventListener("input", debounce(250, search));
form.addEventListener("reset", () => setTimeout(search));
byId("next").addEventListener("click", (event) => { tokens.push(event.target.dataset.token); refresh(); });
byId("previous").addEventListener("click", () => { tokens.pop(); refresh(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
start();
