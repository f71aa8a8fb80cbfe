// The page of runs: a table that can be filtered, sorted and grouped. It is read again every few seconds.

import { get, getAll, showError } from "./api.js";
import { byId, el, setText } from "./dom.js";
import { Columns } from "./runs_columns.js";
import { RunData } from "./runs_data.js";
import { Filters } from "./runs_filters.js";
import { Marks, countsSentence } from "./runs_marks.js";
import { RunTable } from "./runs_table.js";

const REFRESH_MILLISECONDS = 3000;
const TOUCH_MILLISECONDS = 5000; // for so long after a touch the rows stay where they are

const filters = new Filters(byId("filters"), () => reload());
const data = new RunData(() => table.draw());
const marks = new Marks(data, { onMark: () => table.draw(), onChange: () => reload({ keepsPlace: true }) });
const columns = new Columns(new URLSearchParams(location.search), () => { showSorts(); save(); reload({ keepsPlace: true }); });
columns.query = () => { const { sort: _, ...query } = filters.query(); return query; };
const table = new RunTable(data, columns, marks, {
  onSort: (sort, column) => {
    filters.set("sort", sort === "-created_at" ? "" : sort);
    reload().then(() => document.querySelector(`#runs thead th[data-column="${CSS.escape(column)}"] button`)?.focus({ preventScroll: true }));
  },
  onFold: (part) => { part.isOpen = !part.isOpen; table.draw(); },
  onView: (first, last) => { if (data.query) data.need(first, last).catch(showError); },
});
let timer = 0;
let touchedAt = 0;
let isPointed = false;

/** Whether the reader is at the rows, which must not move then. */
const isHeld = () => isPointed || byId("list").contains(document.activeElement) || Date.now() - touchedAt < TOUCH_MILLISECONDS || table.seenFirst > 0 || marks.isBusy;

function save() {
  const parameters = filters.parameters();
  columns.saveTo(parameters);
  history.replaceState(null, "", parameters.size ? `?${parameters}` : location.pathname);
}

function showCounts() {
  const text = countsSentence(data.counts, ["critical", "attention"], (level) => { filters.set("level", level); reload(); });
  const shown = text.map((part) => (typeof part === "string" ? part : part.textContent)).join("");
  if (byId("counts").textContent !== shown) byId("counts").replaceChildren(...text);
}

function showNone() {
  const none = byId("none");
  const isEmpty = data.counts.total === 0;
  byId("list").hidden = isEmpty;
  none.hidden = !isEmpty;
  const kind = isEmpty ? (filters.isEmpty ? "start" : "filters") : "";
  if (none.dataset.kind === kind) return;
  none.dataset.kind = kind;
  none.replaceChildren(...(kind === "filters" ? [el("p", {}, "No run fits these filters.")] : kind === "start"
    ? [el("p", {}, "There is no run yet. In a training script:"), el("pre", { tabindex: "0" }, el("code", {}, 'import gradmedic\n\nrun = gradmedic.init(project="mine")\nrun.watch(model, optimizer)\n...\nrun.log(loss=loss)'))]
    : []));
}

function showSorts() {
  const select = byId("filters").elements.sort;
  const chosen = select.value;
  select.replaceChildren(...columns.sorts.map(([sort, label]) => el("option", { value: sort === "-created_at" ? "" : sort }, label)));
  filters.set("sort", chosen);
}

function showMoved(added) {
  const button = byId("moved");
  button.hidden = added === null;
  if (added !== null) setText(button, added > 0 ? `Show ${added.toLocaleString("en")} new ${added === 1 ? "run" : "runs"}` : "Show the new order");
}

async function reload({ keepsPlace = false } = {}) {
  clearTimeout(timer);
  save();
  const openGroups = new Set(data.parts.filter((part) => part.group && part.isOpen).map((part) => JSON.stringify(part.group.value)));
  try {
    const loaded = await data.load({ ...filters.query(), config_keys: columns.configKeys }, filters.groupBy, openGroups);
    if (!loaded) return;
    await projects; // before the page is shown, so that a longer list of them moves nothing
    if (!keepsPlace) byId("list").scrollTop = 0;
    showMoved(null);
    showNone();
    table.drawHead(filters.sort);
    showCounts();
    marks.show();
    setText(byId("omitted"), data.counts.omitted_groups ? `${data.counts.omitted_groups.toLocaleString("en")} smaller groups are left out.` : "");
    setText(byId("live"), "live");
    showError(null);
    document.body.dataset.ready = "yes";
  } catch (error) {
    setText(byId("live"), "retrying …");
    showError(error);
  }
  wait();
}

async function refresh() {
  if (!data.query) { await reload(); return; }
  try {
    const hasMoved = await data.refresh(table.seenFirst, table.seenLast);
    if (hasMoved && !isHeld()) { await reload({ keepsPlace: true }); return; }
    showMoved(hasMoved ? data.added : null);
    table.draw();
    showCounts();
    setText(byId("live"), "live");
    showError(null);
  } catch (error) {
    setText(byId("live"), "retrying …");
    showError(error);
  }
  wait();
}

function wait() {
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(refresh, REFRESH_MILLISECONDS);
}

async function fillProjects() {
  const select = byId("filters").elements.project;
  const known = new Set([...select.options].map((option) => option.value));
  const projects = await getAll("/projects").catch((error) => { showError(error); return []; });
  select.append(...projects.filter(({ name }) => !known.has(name)).map(({ name }) => el("option", { value: name }, name)));
}

async function fillGroupings() {
  const select = byId("filters").elements.group_by;
  const found = await get("/runs/columns", columns.query()).then(({ items }) => items, () => []);
  const known = new Set([...select.options].map((option) => option.value));
  const settings = found.filter(({ name }) => name.startsWith("config.") && !known.has(name));
  select.append(...settings.map(({ name }) => el("option", { value: name }, name.slice(7))));
}

const more = byId("more");
more.addEventListener("click", () => {
  const isOpen = byId("filters").toggleAttribute("data-open");
  more.setAttribute("aria-expanded", String(isOpen));
});
if (!filters.isEmpty) more.click();
const list = byId("list");
list.addEventListener("pointerenter", (event) => { isPointed = event.pointerType === "mouse"; });
list.addEventListener("pointerleave", () => { isPointed = false; });
list.addEventListener("touchstart", () => { touchedAt = Date.now(); }, { passive: true });
byId("moved").addEventListener("click", () => reload());
byId("filters").elements.group_by.addEventListener("focus", fillGroupings, { once: true });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
showSorts();
const projects = fillProjects();
reload();
