// The page of a comparison. Its address holds what is in view, so that a link shows the same to another reader.

import { showError } from "./api.js";
import { readControls, writeControls } from "./chart_controls.js";
import { MAX_COMPARED, comparisonAddress, letterOf } from "./comparison.js";
import { ComparisonCharts } from "./comparison_charts.js";
import { compareFacts, compareLayers, compareSettings } from "./comparison_differences.js";
import { failingOf } from "./comparison_outcomes.js";
import { readComparison, settingsOf } from "./comparison_reading.js";
import { listenToSearch } from "./comparison_search.js";
import { describeComparison } from "./comparison_sentence.js";
import { letterBadge, measuresContent, outcomesContent, replaceContent, settingsContent, swatch } from "./comparison_tables.js";
import { byId, el, setText } from "./dom.js";
import { attentionBadge, badge } from "./format.js";
import { readMetricState, writeMetricState } from "./metric_charts.js";

const REFRESH_MILLISECONDS = 3000;
const LIVE_STATUSES = ["running", "stalled"];
const SCALES = { loss: "loss", gradient: "gradient", layer: "layer_scale" }; // parameters of the address, by chart

const parameters = new URLSearchParams(location.search);
const range = { from: parameters.get("from"), to: parameters.get("to") };
const hasRange = [range.from, range.to].every((text) => text && Number.isFinite(Number(text))) && Number(range.from) < Number(range.to);
const view = {
  runIds: [...new Set(parameters.getAll("run"))].slice(0, MAX_COMPARED),
  baseline: parameters.get("baseline"),
  showsEqual: parameters.get("equal") === "shown",
  showsAll: false,
  controls: readControls(parameters),
  metrics: readMetricState(parameters),
  range: hasRange ? { from: Number(range.from), to: Number(range.to) } : null,
  scales: Object.fromEntries(Object.entries(SCALES).map(([chart, name]) => [chart, parameters.get(name) === "linear" ? "linear" : "log"])),
  statistic: parameters.get("statistic"),
  layer: parameters.get("layer"),
};
const read = new Map(); // what was read of each run, by its id
let timer = 0;
let refreshes = 0;

function addressOf() {
  const saved = new URLSearchParams();
  if (view.baseline && view.baseline !== view.runIds[0]) saved.set("baseline", view.baseline);
  if (view.showsEqual) saved.set("equal", "shown");
  for (const name of ["statistic", "layer"]) if (view[name]) saved.set(name, view[name]);
  for (const [chart, name] of Object.entries(SCALES)) if (view.scales[chart] === "linear") saved.set(name, "linear");
  for (const [end, place] of Object.entries(view.range ?? {})) saved.set(end, Number(place.toPrecision(12)));
  writeControls(saved, view.controls);
  writeMetricState(saved, view.metrics);
  return comparisonAddress(view.runIds, saved);
}

function saveView() {
  history.replaceState(null, "", addressOf());
}

const charts = new ComparisonCharts(view, saveView);

/** Return the runs that were read, in the order of the address, with their letters. */
function itemsOf() {
  const existing = view.runIds.filter((id) => read.has(id));
  const baseline = existing.includes(view.baseline) ? view.baseline : existing[0];
  return existing.map((id, index) => ({ ...read.get(id), index, letter: letterOf(index), isBaseline: id === baseline }));
}

function runContent({ run, letter, index, isBaseline }) {
  return el("li", { "data-run": run.id, "data-verdict": run.verdict, "data-level": run.level },
    swatch(index), letterBadge(letter),
    el("a", { href: `/runs/${run.id}`, class: "name", title: run.name, "data-key": `open ${run.id}` }, run.name), badge(run.verdict), attentionBadge(run.level),
    el("span", { class: "tools" },
      el("button", { type: "button", class: "small", "aria-pressed": String(isBaseline), "data-key": `baseline ${run.id}`, "aria-label": `Baseline: ${run.name}` }, "baseline"),
      el("button", { type: "button", class: "small remove", "data-key": `remove ${run.id}`, "aria-label": `Remove ${run.name}`, title: "Remove from the comparison" }, "✕")));
}

/** Keep the height of an element whose live numbers may need a line less, so that nothing below it moves. */
function keepHeight(element) {
  const layout = `${element.clientWidth} ${view.runIds}`;
  if (element.dataset.layout !== layout) element.style.minHeight = "";
  element.dataset.layout = layout;
  element.style.minHeight = `${element.offsetHeight}px`;
}

function show() {
  const items = itemsOf();
  byId("none").hidden = items.length > 0;
  byId("comparison").hidden = !items.length;
  if (!items.length) return;
  const runs = items.map(({ run }) => run);
  const differences = { settings: compareSettings(settingsOf(items)), facts: compareFacts(runs), layers: compareLayers(runs) };
  const isFailing = failingOf(items.map(({ diagnosis }) => diagnosis));
  const { lead, others } = items.length > 1 ? describeComparison(items, differences) : { lead: "This is one run. Add a second one to see what differs.", others: [] };
  replaceContent(byId("answer"), el("p", { id: "sentence" }, lead), others.map((text) => el("p", { class: "muted" }, text)));
  keepHeight(byId("answer"));
  byId("tables").dataset.runs = items.length > 3 ? "many" : "few";
  replaceContent(byId("compared"), items.map(runContent));
  replaceContent(byId("settings"), settingsContent(items, differences, isFailing, view));
  replaceContent(byId("outcomes"), outcomesContent(items));
  replaceContent(byId("measures"), measuresContent(items));
  charts.show(items).catch(showError);
  document.title = `${items.map(({ run }) => run.name).join(", ")} · comparison · gradmedic`;
}

async function refresh() {
  clearTimeout(timer);
  const thisRefresh = refreshes += 1;
  const ids = view.runIds;
  const errors = [];
  const results = await Promise.all(ids.map((id) => readComparison(id, ids.length, read.get(id)).catch((error) => { errors.push(error); return null; })));
  if (thisRefresh !== refreshes) return;
  for (const [at, result] of results.entries()) {
    if (result) read.set(ids[at], result);
    else if (errors.some(({ status }) => status === 404)) read.delete(ids[at]);
  }
  showError(errors[0] ?? null);
  setText(byId("live"), errors.length ? "retrying …" : "live");
  show();
  document.body.dataset.ready = "yes";
  const isLive = results.some((result) => !result || LIVE_STATUSES.includes(result.run.status));
  if (isLive && !document.hidden) timer = setTimeout(refresh, REFRESH_MILLISECONDS);
}

/** Compare other runs; the browser's way back leads to those before. */
async function changeRuns(ids) {
  view.runIds = ids;
  history.pushState(null, "", addressOf());
  await refresh();
  searchAgain();
}

const searchAgain = listenToSearch(() => itemsOf().map(({ run }) => run), (id) => changeRuns([...view.runIds, id]).catch(showError));

function remove(id) {
  const at = view.runIds.indexOf(id);
  changeRuns(view.runIds.filter((other) => other !== id)).then(() => (document.querySelectorAll("#compared .remove")[Math.min(at, view.runIds.length - 1)] ?? byId("content")).focus(), showError);
}

document.addEventListener("click", ({ target }) => {
  const button = target.closest?.("#comparison button[data-key]");
  if (!button) return;
  const [action, id] = button.dataset.key.split(" ");
  if (action === "remove") { remove(id); return; }
  if (action === "baseline") view.baseline = id;
  if (action === "equal") view.showsEqual = !view.showsEqual;
  if (action === "all") view.showsAll = true;
  saveView();
  show();
});
byId("tables").addEventListener("scroll", ({ target }) => { // the columns of all tables stay below each other
  for (const other of byId("tables").querySelectorAll(".scroll")) if (other.scrollLeft !== target.scrollLeft) other.scrollLeft = target.scrollLeft;
}, { capture: true, passive: true });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh().catch(showError); });
window.addEventListener("popstate", () => location.reload());

if (view.runIds.length) refresh().catch(showError);
else { byId("none").hidden = false; document.body.dataset.ready = "yes"; }
