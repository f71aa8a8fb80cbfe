// The page of runs: a list with filters, which are part of the address. It is read again every few seconds.

import { get, getAll, showError } from "./api.js";
import { MAX_COMPARED, comparisonAddress } from "./comparison.js";
import { byId, debounce, el, setText } from "./dom.js";
import { attentionBadge, badge, integer, isUnhealthy, statusWord, time } from "./format.js";

const REFRESH_MILLISECONDS = 3000;
const PAGE = 50;

const form = byId("filters");
const body = byId("runs").tBodies[0];
const fields = ["q", "project", "verdict", "level", "status", "review", "tag", "sort"];
const marked = new Map();
let tokens = [null]; // page tokens up to the page that is shown
let timer = 0;
let requests = 0;

const filters = () => Object.fromEntries(fields.map((name) => [name, form.elements[name].value.trim()]));

function saveFilters() {
  const parameters = new URLSearchParams(Object.entries(filters()).filter(([, value]) => value));
  history.replaceState(null, "", parameters.size ? `?${parameters}` : location.pathname);
}

function showMarked() {
  const link = byId("compare");
  const isEnough = marked.size >= 2;
  link.setAttribute("aria-disabled", String(!isEnough));
  if (isEnough) link.href = comparisonAddress([...marked.keys()]);
  else link.removeAttribute("href");
  setText(byId("marked"), marked.size ? `${marked.size} of at most ${MAX_COMPARED} runs marked: ${[...marked.values()].join(", ")}` : "Mark two to six runs to compare them.");
  for (const box of body.querySelectorAll("input")) box.disabled = !box.checked && marked.size >= MAX_COMPARED;
}

function rowOf(run) {
  const box = el("input", { type: "checkbox", "aria-label": `Compare ${run.name}`, value: run.id });
  box.checked = marked.has(run.id);
  box.addEventListener("change", () => {
    if (box.checked) marked.set(run.id, run.name);
    else marked.delete(run.id);
    showMarked();
  });
  const since = isUnhealthy(run.verdict) && run.since_step !== null ? ` since step ${integer(run.since_step)}` : "";
  return el("tr", { "data-run": run.id, "data-verdict": run.verdict, "data-level": run.level },
    el("td", { class: "box" }, box),
    el("th", { scope: "row" }, el("a", { href: `/runs/${run.id}` }, run.name), run.group ? el("span", { class: "muted small" }, ` ${run.group}`) : null),
    el("td", { "data-label": "Verdict" }, badge(run.verdict), " ", attentionBadge(run.level), el("span", { class: "muted small" }, since)),
    el("td", { "data-label": "Status" }, statusWord(run.status)),
    el("td", { "data-label": "Project" }, run.project),
    el("td", { class: "number", "data-label": "Last step" }, integer(run.last_step)),
    el("td", { "data-label": "Tags" }, run.tags.map((tag) => el("span", { class: "tag" }, tag))),
    el("td", { "data-label": "Changed" }, time(run.updated_at)));
}

/** Replace the rows; the focus stays on the link or the checkbox of its run. */
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
  showMarked();
}

async function refresh() {
  clearTimeout(timer);
  const thisRequest = requests += 1;
  try {
    const page = await get("/runs", { ...filters(), max_results: PAGE, page_token: tokens.at(-1) });
    if (thisRequest !== requests) return;
    byId("none").replaceChildren();
    showRows(page.items);
    byId("previous").parentElement.hidden = tokens.length < 2 && !page.next_page_token;
    byId("previous").disabled = tokens.length < 2;
    byId("next").disabled = !page.next_page_token;
    byId("next").dataset.token = page.next_page_token ?? "";
    setText(byId("live"), "live");
    showError(null);
    document.body.dataset.ready = "yes";
  } catch (error) {
    if (thisRequest !== requests) return;
    setText(byId("live"), "retrying …");
    showError(error);
  }
  if (!document.hidden) timer = setTimeout(refresh, REFRESH_MILLISECONDS);
}

function search() {
  tokens = [null];
  saveFilters();
  refresh();
}

async function start() {
  const parameters = new URLSearchParams(location.search);
  const select = form.elements.project;
  const project = parameters.get("project");
  const projects = await getAll("/projects").catch((error) => { showError(error); return []; });
  const names = new Set([...projects.map(({ name }) => name), ...(project ? [project] : [])]);
  select.append(...[...names].map((name) => el("option", { value: name }, name)));
  for (const name of fields) if (parameters.get(name)) form.elements[name].value = parameters.get(name);
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
