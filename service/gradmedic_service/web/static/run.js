// The page of a run. Its address holds what is in view, so that a link shows the same to another reader.

import { get, readSeries, showError } from "./api.js";
import { AXES, axisOf, readClock } from "./axes.js";
import { placeLists } from "./balance.js";
import { Chart, pointsOf } from "./chart.js";
import { ChartControls, readControls, writeControls } from "./chart_controls.js";
import { showConditions } from "./condition_cards.js";
import { showConfig } from "./config.js";
import { decidingFinding } from "./deciding_finding.js";
import { marksOf, showAdvice, showCauses, showFindings, showHistory, showTried, verifiedAdvice } from "./diagnosis.js";
import { byId, debounce, el, setText } from "./dom.js";
import { drawBlocks, drawTime } from "./flow.js";
import { badge, integer, isUnhealthy, light, number, time, words } from "./format.js";
import { MOST_ACTIONS, guardMarksOf, showGuards } from "./guards_card.js";
import { Heatmap } from "./heatmap.js";
import { arrange } from "./layers.js";
import { follow } from "./live.js";
import { MetricCharts, readMetricState, writeMetricState } from "./metric_charts.js";
import { listenToNotes, showNotes } from "./notes.js";
import { showOrigin } from "./origin_card.js";
import { outcomeText, remediesOf, remediesText } from "./remedies.js";
import { listenToReview, showReview } from "./review.js";
import { applyRerunEvent, listenToForms, readReruns, showChoices } from "./reruns_of_run.js";
import { listenToHeader, showHeader } from "./run_header.js";
import { applyUnlessMoving, keepHeight } from "./steady.js";
import { listenToTags, showTags } from "./tags.js";

const MAX_HEATMAP_COLUMNS = 500;
const CHART_COLUMNS = 300;
const REFRESH_MILLISECONDS = 1000;
const ONSET_MARGIN = 25; // steps that are shown before and after the first bad step
const STEADY = "#content > *, #columns :is(.card, section, h2, h3, .frame), #below > *"; // what new lists must not move
const FITTED_ROLES = ["weight", "recurrent", undefined, null]; // biases and gains have gradients of another size

const runId = document.body.dataset.run;
const parameters = new URLSearchParams(location.search);
const wholeNumber = (name) => (/^\d+$/.test(parameters.get(name) ?? "") ? Number(parameters.get(name)) : null);
const view = {
  statistic: parameters.get("statistic"),
  cell: ["mean", "max", "min"].includes(parameters.get("cell")) ? parameters.get("cell") : "mean",
  from: wholeNumber("from"),
  to: wholeNumber("to"),
  layer: parameters.get("layer"),
  step: wholeNumber("step"),
  loss: parameters.get("loss") === "linear" ? "linear" : parameters.get("loss") === "log" ? "log" : null,
  folded: new Set(parameters.getAll("fold")),
  controls: readControls(parameters),
  metrics: readMetricState(parameters),
};
let run = null;
let layers = [];
let diagnosis = null;
let history = [];
let actions = []; // of guards, the newest first
let isPlaced = false; // whether the lists have their place beside or below the pictures
let listed = null; // {diagnosis, history, actions} whose lists are shown
let shown = null; // what the heatmap shows: {table, points, first, from, to}
let reading = null; // AbortController of the requests under way
let clock = null; // times of the run's steps, read for an axis that needs them

function saveView() {
  const saved = new URLSearchParams();
  const save = (name, value, usual = null) => { if (value !== null && value !== usual) saved.set(name, value); };
  save("statistic", view.statistic, run.statistics[0]);
  save("cell", view.cell, "mean");
  save("from", view.from);
  save("to", view.to);
  save("layer", view.layer, firstBad());
  save("step", view.step);
  save("loss", view.loss);
  for (const group of view.folded) saved.append("fold", group);
  writeControls(saved, view.controls);
  writeMetricState(saved, view.metrics);
  const text = saved.toString();
  window.history.replaceState(null, "", text ? `?${text}` : location.pathname);
}

const deciding = () => (diagnosis ? decidingFinding(diagnosis, history) : null);
const firstBad = () => deciding()?.layers[0] ?? null;
const canRerun = () => run.trainable !== null && run.parent_id === null;
/** Return the first step of what decided the verdict of an unhealthy run, else null. */
const onsetStep = () => (isUnhealthy(diagnosis.verdict) ? Math.min(diagnosis.since_step, deciding()?.first_step ?? Infinity) : null);
const has = (statistic) => run.statistics.includes(statistic);

// --- charts ----------------------------------------------------------------------------------------------------------

const heatmap = new Heatmap(byId("heatmap"), {
  zoom, select,
  fold: (groups) => { view.folded = new Set(groups); saveView(); },
  details: async (layer) => (await series({ statistic: view.statistic, layer, max_points: shown.points })).series[0],
  resized: debounce(200, () => { heatmap.setLayers(layers, view.folded); refresh(); }), // labels have other lengths
  fileName: () => `${run.name}-${view.statistic}`,
  sources: () => [{ runId, runName: run.name, query: { ...range(), statistic: view.statistic } }],
});
byId("heatmap-menu").append(heatmap.menu.root);
const saveScale = (scale) => { view.loss = scale; saveView(); };
const onSelect = (step) => select(null, step);
const titled = (id, title, options) => new Chart(byId(id), { title, fileName: (shownTitle) => `${run.name}-${shownTitle}`, ...options });
/** Return a chart over steps; `queryOf()` returns the series of its lines, so that every step of them can be saved. */
const overSteps = (id, title, scale, queryOf = null, options = {}) => titled(id, title, {
  scale, onSelect, onZoom: zoomCharts, onPoint: pointAll, sources: queryOf && (() => [{ runId, runName: run.name, query: { ...range(), ...queryOf() } }]), ...options,
});
const ofLayer = (...statistics) => ({ statistic: ["time", ...statistics.filter(has)], layer: shownLayer() });
const charts = {
  loss: overSteps("loss-chart", "Loss", view.loss ?? "log", () => ({ statistic: ["time", "loss"] }), { onScale: saveScale }),
  depth: titled("depth-chart", "Gradient norm by depth", {
    scale: "log", dots: true, unit: "layers from input to output", zoomsItself: true,
    describeX: (point) => point.name, onSelect: (position) => select(layers[position]?.name ?? null, null),
  }),
  layer: overSteps("layer-chart", "One layer", "log", () => ofLayer(view.statistic)),
  weights: overSteps("weights-chart", "Weights and updates", "log", () => ofLayer("weight_norm", "update_norm")),
  ratio: overSteps("ratio-chart", "Update-to-weight ratio", "log"),
  rate: overSteps("rate-chart", "Learning rate", "linear", () => ({ statistic: ["time", "learning_rate"] })),
  blocks: titled("blocks-chart", "How the gradient travels", { scale: "log", unit: "blocks from input to output", zoomsItself: true, describeX: (point) => point.name }),
  time: overSteps("time-chart", "Gradient per time step back", "linear"),
};
const chartsOverSteps = [charts.loss, charts.layer, charts.weights, charts.ratio, charts.rate, charts.time];
const metrics = new MetricCharts(byId("metrics"), { state: view.metrics, onState: saveView, onZoom: zoomCharts, onSelect, onPoint: pointAll });
const controls = new ChartControls(byId("chart-controls"), view.controls, {
  axis: () => { saveView(); refresh(); },
  smoothing: (isLast) => { if (isLast) saveView(); redraw(); },
  reset: () => zoom(null, null),
});

/** Show the place that the reader points at in one chart in all others. */
function pointAll(x, pointed) {
  for (const chart of [...chartsOverSteps, ...metrics.charts]) if (chart !== pointed) chart.echo(x);
}

/** Zoom to a range of the horizontal axis. */
function zoomCharts(from, to) {
  if (from === null) zoom(null, null);
  else zoom(...[from, to].map((x) => Math.round(shownAxis().stepAt(clock, x))));
}

/** Return the axis to draw: that by step where the run has no times. */
const shownAxis = () => (clock ? axisOf(view.controls.axis) : AXES.step);

/** Draw lines over the steps in view. */
function drawOverSteps(chart, { lines, ...rest }, smoothing = 0) {
  const axis = shownAxis();
  chart.setData({ lines: lines.map((line) => ({ ...line, clock })), axis, from: axis.place(clock, shown.from), to: axis.place(clock, shown.to), smoothing, ...rest });
}

function drawLoss() {
  drawOverSteps(charts.loss, { lines: [{ name: "loss", points: shown.loss }] }, view.controls.smoothing);
}

function drawMetrics() {
  const axis = shownAxis();
  metrics.show({ runs: [{ ...run, clock }], axis, from: axis.place(clock, shown.from), to: axis.place(clock, shown.to), smoothing: view.controls.smoothing });
}

/** Draw what was read once more, with another smoothing. */
function redraw() {
  if (!shown?.loss) return;
  drawLoss();
  drawMetrics();
}

/** Read the clock of the run, if the axis needs it. */
async function readTimes() {
  const isNeeded = axisOf(view.controls.axis).needsClock;
  clock = isNeeded ? await readClock(runId, { from: view.from, to: view.to }, reading?.signal) : null;
  controls.setNote(isNeeded && !clock ? "This run has no times; the axis shows its steps." : "");
}

const range = () => ({ from_step: view.from ?? 0, to_step: view.to });
const series = (query) => readSeries(runId, { ...range(), ...query }, reading?.signal);

function extent() {
  const last = run.last_step ?? 0;
  return { from: Math.min(view.from ?? shown?.first ?? 0, last), to: Math.min(view.to ?? last, Math.max(last, 0)) };
}

async function refresh() {
  if (!run || run.last_step === null) { showNoSteps(); return; }
  reading?.abort();
  const thisReading = reading = new AbortController();
  try {
    const points = Math.max(1, Math.min(MAX_HEATMAP_COLUMNS, heatmap.width || MAX_HEATMAP_COLUMNS));
    const table = await series({ statistic: view.statistic, field: view.cell, max_points: points });
    if (thisReading.signal.aborted) return;
    if (view.from === null && table.first.length) shown = { first: table.first[0] };
    shown = { table, points, first: shown?.first ?? 0, ...extent() };
    heatmap.setData(table, view.statistic, view.cell, { from: shown.from, to: shown.to });
    controls.setZoomed(view.from !== null);
    await readTimes();
    if (thisReading.signal.aborted) return;
    await Promise.all([
      drawDepth(), drawSteps(), drawLayer(),
      drawBlocks(byId("blocks-chart"), charts.blocks, run, series, CHART_COLUMNS),
      drawTime(byId("time-chart"), run, series, CHART_COLUMNS, (data) => drawOverSteps(charts.time, data)),
    ]);
    drawMetrics();
    if (!isPlaced || document.hidden) placeLists();
    isPlaced = true;
    document.body.dataset.ready = String(run.revision);
    showError(null);
  } catch (error) {
    showError(error);
  }
}

/** Show what to do before the first step, in place of empty pictures and lists. */
function showNoSteps() {
  if (!run) return;
  setText(byId("summary"), "No step has arrived yet.");
  document.body.dataset.ready = String(run.revision);
}

async function drawSteps() {
  const table = await series({ statistic: ["loss", "learning_rate"], max_points: CHART_COLUMNS });
  const [loss, rate] = table.series.map((item) => pointsOf(table, item));
  shown.loss = loss;
  if (view.loss === null) charts.loss.scale = loss.some(({ low }) => low !== null && low <= 0) ? "linear" : "log";
  drawLoss();
  byId("rate-chart").hidden = !rate.length;
  if (rate.length) drawOverSteps(charts.rate, { lines: [{ name: "learning rate", points: rate }] });
}

/** Return the name of the layer whose charts are shown. */
const shownLayer = () => view.layer ?? firstBad() ?? layers.at(0)?.name;

async function drawLayer() {
  const name = shownLayer();
  const isKnown = layers.some((layer) => layer.name === name);
  for (const id of ["layer-chart", "weights-chart", "ratio-chart"]) byId(id).hidden = !isKnown;
  if (!isKnown) return;
  heatmap.setSelected({ layer: view.layer, step: view.step });
  const wanted = [...new Set([view.statistic, ...["weight_norm", "update_norm"].filter(has)])];
  const table = await series({ statistic: wanted, layer: name, max_points: CHART_COLUMNS });
  const points = Object.fromEntries(table.series.map((item) => [item.statistic, pointsOf(table, item)]));
  charts.layer.setTitle(`${words(view.statistic)} of ${name}`);
  drawOverSteps(charts.layer, { lines: [{ name: words(view.statistic), points: points[view.statistic] }] });
  const both = ["weight_norm", "update_norm"].filter((statistic) => points[statistic]?.length);
  byId("weights-chart").hidden = !both.length;
  charts.weights.setTitle(`Weights and updates of ${name}`);
  if (both.length) drawOverSteps(charts.weights, { lines: both.map((statistic) => ({ name: words(statistic), points: points[statistic] })) });
  byId("ratio-chart").hidden = both.length < 2;
  if (both.length < 2) return;
  const weights = new Map(points.weight_norm.map((point) => [point.x, point]));
  const ratio = points.update_norm.map((point) => {
    const weight = weights.get(point.x);
    const value = point.y !== null && weight?.y ? point.y / weight.y : null;
    return { ...point, y: value, low: value, high: value };
  });
  charts.ratio.setTitle(`Update-to-weight ratio of ${name}`);
  drawOverSteps(charts.ratio, { lines: [{ name: "update norm / weight norm", points: ratio }], note: "About 0.001 is usual. With a much larger ratio training is unstable; with a much smaller one it hardly learns." });
}

/** Draw the gradient norm of every layer at one step, and the slope fitted along depth: it shows vanishing and exploding. */
async function drawDepth() {
  byId("depth-chart").hidden = !has("grad_norm") || layers.length < 2;
  if (byId("depth-chart").hidden) return;
  let table = shown.table;
  if (view.statistic !== "grad_norm" || view.cell !== "mean") {
    const step = view.step ?? run.last_step;
    table = await readSeries(runId, { statistic: "grad_norm", field: "mean", from_step: Math.max(0, step - 50), to_step: step, max_points: 51 }, reading?.signal);
  }
  const sampled = table.first.map((_, at) => at).filter((at) => table.series.some(({ count }) => count[at] > 0));
  const hasSlope = (column) => table.series.filter(({ count, nonfinite }) => count[column] > nonfinite[column]).length > 2;
  const latest = sampled.filter(hasSlope).at(-1) ?? sampled.at(-1); // a step where all is NaN has no slope
  const at = view.step === null ? latest : sampled.filter((index) => table.first[index] <= view.step).at(-1) ?? sampled[0];
  if (at === undefined) return;
  const byName = new Map(table.series.map((item) => [item.layer, item]));
  const points = layers.flatMap((layer) => {
    const norms = byName.get(layer.name);
    if (!norms || !norms.count[at]) return [];
    const isFinite = norms.count[at] > norms.nonfinite[at];
    const y = isFinite ? norms.mean[at] : null;
    return [{ x: layer.position, name: layer.name, y, low: y, high: y, nan: norms.nonfinite[at] - norms.infinite[at], infinite: norms.infinite[at], role: layer.role, rank: layer.shape?.length }];
  });
  const fitted = points.filter(({ y, role, rank }) => y > 0 && FITTED_ROLES.includes(role) && rank !== 1);
  const lines = [{ name: "gradient norm", points }];
  let note = table.first[at] === table.last[at] ? `At step ${integer(table.first[at])}.` : `Mean of steps ${integer(table.first[at])} to ${integer(table.last[at])}.`;
  if (fitted.length > 2) {
    const mean = (numbers) => numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
    const [xs, ys] = [fitted.map(({ x }) => x), fitted.map(({ y }) => Math.log10(y))];
    const [x0, y0] = [mean(xs), mean(ys)];
    const slope = mean(xs.map((x, index) => (x - x0) * (ys[index] - y0))) / (mean(xs.map((x) => (x - x0) ** 2)) || 1);
    const fit = (x) => 10 ** (y0 + slope * (x - x0));
    const ends = [xs[0], xs.at(-1)];
    lines.push({ name: "fitted slope", isFit: true, index: 1, points: xs.map((x) => ({ x, y: fit(x), low: fit(x), high: fit(x) })) });
    note += ` Gradients change by ×${number(Number((10 ** slope).toPrecision(3)))} per layer towards the output: ×${number(Number((10 ** (slope * (ends[1] - ends[0]))).toPrecision(2)))} from the first layer to the last.`;
  }
  charts.depth.setData({ lines, from: -0.5, to: layers.length - 0.5, note });
  const chosen = layers.find(({ name }) => name === view.layer);
  charts.depth.setSelected(chosen ? chosen.position : null);
}

// --- actions of the reader ----------------------------------------------------------------------------------------------

function zoom(from, to, isPan = false) {
  const last = run.last_step ?? 0;
  if (from === null) [view.from, view.to] = [null, null];
  else {
    let [first, end] = [from, Math.max(from, to)];
    if (isPan) {
      const span = end - first;
      first = Math.max(0, Math.min(first, last - span));
      end = first + span;
    }
    view.from = Math.max(0, Math.min(first, last));
    view.to = Math.max(view.from, Math.min(end, last));
    if (view.from === 0 && view.to === last) [view.from, view.to] = [null, null];
  }
  heatmap.setView(extent());
  saveView();
  refresh();
}

function select(layer, step) {
  if (layer !== null) view.layer = layer;
  if (step !== null) view.step = step;
  const isOutside = step !== null && view.from !== null && (step < view.from || step > view.to);
  if (isOutside) zoom(null, null);
  else saveView();
  heatmap.setSelected({ layer: view.layer, step: view.step });
  for (const chart of [...chartsOverSteps, metrics]) chart.setSelected(view.step);
  if (!isOutside) Promise.all([drawDepth(), layer === null ? null : drawLayer()]).catch(showError);
}

byId("statistic").addEventListener("change", (event) => { view.statistic = event.target.value; saveView(); refresh(); });
byId("cell").addEventListener("change", (event) => { view.cell = event.target.value; saveView(); refresh(); });
byId("zoom-in").addEventListener("click", () => heatmap.zoomBy(0.5, view.step));
byId("zoom-out").addEventListener("click", () => heatmap.zoomBy(2, view.step));
byId("earlier").addEventListener("click", () => heatmap.panBy(-0.5));
byId("later").addEventListener("click", () => heatmap.panBy(0.5));
byId("to-onset").addEventListener("click", () => {
  const step = onsetStep();
  select(firstBad(), step);
  zoom(Math.max(0, step - ONSET_MARGIN), step + ONSET_MARGIN);
  byId("heatmap").scrollIntoView({ block: "nearest" });
});
byId("all-steps").addEventListener("click", () => zoom(null, null));
byId("changed").addEventListener("click", () => { showLists(true); placeLists(); byId("summary").focus({ preventScroll: true }); });
document.addEventListener("visibilitychange", () => { if (document.hidden && !byId("changed").hidden) showLists(true); });
byId("fold-all").addEventListener("click", () => heatmap.foldAll(true));
byId("unfold-all").addEventListener("click", () => heatmap.foldAll(false));

// --- texts -------------------------------------------------------------------------------------------------------------

/** Show a run that was read, or that a change has answered. */
function applyRun(newRun) {
  if (run !== null && newRun.revision < run.revision) return; // a newer one is shown
  run = newRun;
  layers = arrange(run.layers);
  showRun();
}

function showRun() {
  showHeader(run);
  showTags(run);
  showNotes(run).catch(showError);
  showConfig(run);
  const facts = [run.last_step !== null && `last step ${integer(run.last_step)}`, `${integer(layers.length)} ${layers.length === 1 ? "layer" : "layers"}`, run.framework, run.group && `group ${run.group}`, run.generation ? `rewound ${run.generation === 1 ? "once" : `${integer(run.generation)} times`}` : null, run.training?.dropped_steps && `${integer(run.training.dropped_steps)} steps are missing: the client's queue was full`];
  byId("unsent").hidden = run.is_end_reported;
  byId("layer-order").hidden = run.training?.layer_order !== "registration";
  byId("facts").replaceChildren(facts.filter(Boolean).join(" · "), " · created ", time(run.created_at));
  const hasSteps = run.last_step !== null;
  byId("start-here").hidden = hasSteps;
  byId("columns").hidden = byId("below").hidden = !hasSteps;
  byId("heatmap").closest("section").hidden = !layers.length;
}

function showVerdict() {
  const banner = byId("banner");
  banner.dataset.verdict = diagnosis.verdict;
  banner.dataset.level = diagnosis.level;
  if (banner.querySelector(".light").dataset.level !== diagnosis.level) banner.querySelector(".light").replaceWith(light(diagnosis.level));
  if (banner.querySelector(".badge").dataset.verdict !== diagnosis.verdict) banner.querySelector(".badge").replaceWith(badge(diagnosis.verdict));
  byId("learning").hidden = diagnosis.learning === "unknown";
  if (!byId("learning").hidden) byId("learning").replaceChildren(el("span", { class: "muted" }, "loss "), el("strong", {}, diagnosis.learning));
  setText(byId("since"), diagnosis.since_step === null ? "" : `since step ${integer(diagnosis.since_step)} · confidence ${diagnosis.score.toFixed(2)}`);
  setText(byId("summary"), diagnosis.summary);
  byId("to-onset").hidden = onsetStep() === null;
}

/** Show what to know of the diagnosis at once, and its lists unless they would move what the reader looks at. */
function showDiagnosis() {
  showReview(runId, run, diagnosis);
  showVerdict();
  const first = firstBad();
  byId("first-layer").hidden = !first;
  if (first) byId("first-layer").replaceChildren("First bad layer: ", el("code", {}, first));
  const [[verified], [best]] = [verifiedAdvice(diagnosis), diagnosis.advice];
  byId("next-action").hidden = !verified && !best && !diagnosis.origin?.fix;
  if (verified) byId("next-action").replaceChildren("Best remedy: ", el("a", { href: `/reruns/${verified.outcome.rerun_id}` }, remediesText(remediesOf(verified))), `, ${outcomeText(verified.outcome)}`);
  else if (diagnosis.origin?.fix) byId("next-action").replaceChildren("Try first: ", el("a", { href: "#origin-title" }, `change the operation ${diagnosis.origin.operation}`));
  else if (best?.outcome && best.outcome.state !== "healthy") byId("next-action").replaceChildren("None of the remedies that were tried helped. ", el("a", { href: "#advice-title" }, "Read what was tried"));
  else if (best) byId("next-action").replaceChildren("Try first: ", el("a", { href: "#advice-title" }, remediesText(remediesOf(best))), best.outcome ? `, ${outcomeText(best.outcome)}` : "");
  if (run.status === "running") keepHeight(byId("banner"));
  showLists();
}

/** Show the lists and marks of the diagnosis. While the job trains, a list that would move something waits behind a button. */
function showLists(isWanted = listed === null || document.hidden) {
  const newest = { diagnosis, history, actions };
  const isShown = isWanted || applyUnlessMoving(STEADY, () => drawLists(newest), () => drawLists(listed));
  if (isWanted) drawLists(newest);
  if (isShown) listed = newest;
  byId("changed").hidden = isShown;
}

function drawLists({ diagnosis, history, actions }) {
  const marks = marksOf(diagnosis, history);
  heatmap.setMarks(marks);
  for (const chart of [...chartsOverSteps, metrics]) chart.setMarks(chart === charts.loss ? [...marks, ...guardMarksOf(actions)] : marks);
  showOrigin(diagnosis, select);
  showGuards(diagnosis, actions, select);
  showConditions(diagnosis, select);
  showAdvice(byId("advice"), diagnosis);
  const mayRace = diagnosis.advice.length || ["attention", "critical"].includes(diagnosis.level);
  byId("try-advice").hidden = !mayRace; // a healthy run has nothing to race
  showTried(byId("tried"), diagnosis);
  showChoices(diagnosis.advice);
  showCauses(byId("causes"), diagnosis);
  byId("causes-section").hidden = !diagnosis.causes.length;
  showFindings(byId("findings"), diagnosis, select);
  showHistory(byId("history"), history, select);
}

async function readRun() {
  applyRun(await get(`/runs/${runId}`));
  if (!run.statistics.includes(view.statistic)) view.statistic = run.statistics[0];
}

async function readDiagnosis() {
  const [newDiagnosis, changes] = await Promise.all([get(`/runs/${runId}/diagnosis`), get(`/runs/${runId}/diagnosis/history`)]);
  diagnosis = newDiagnosis;
  history = changes.items;
  actions = diagnosis.guards ? (await get(`/runs/${runId}/guard-actions`, { max_results: MOST_ACTIONS })).items : [];
}

/** Read everything again, one request at a time, at most once a second. */
let isReading = false;
let isOutdated = false;
async function update() {
  isOutdated = true;
  if (isReading) return;
  isReading = true;
  while (isOutdated) {
    isOutdated = false;
    try {
      const count = layers.length;
      await Promise.all([readRun(), readDiagnosis()]);
      if (layers.length !== count) heatmap.setLayers(layers, view.folded);
      showDiagnosis();
      if (view.to === null || view.to >= (shown?.to ?? 0)) await refresh();
    } catch (error) {
      showError(error);
    }
    await new Promise((resolve) => { setTimeout(resolve, REFRESH_MILLISECONDS); });
  }
  isReading = false;
}

function applyChange({ steps, status, rerun, isPolling }) {
  if (rerun) applyRerunEvent(runId, rerun);
  else if (isPolling && canRerun()) readReruns(runId).catch(showError);
  if (status && status.status !== run.status) {
    run.status = status.status;
    showRun();
    readRun().catch(showError);
  }
  if (steps && steps.revision !== run.revision) update();
}

async function start() {
  try {
    await Promise.all([readRun(), readDiagnosis()]);
  } catch (error) {
    showError(error);
    return;
  }
  const races = canRerun() ? readReruns(runId).catch(showError) : null; // before the page is shown, so that it moves nothing
  byId("statistic").append(...run.statistics.map((name) => el("option", { value: name, selected: name === view.statistic }, words(name))));
  byId("cell").value = view.cell;
  heatmap.setLayers(layers, view.folded);
  showDiagnosis();
  for (const chart of [...chartsOverSteps, metrics]) chart.setSelected(view.step);
  await races;
  await refresh();
  follow(runId, applyChange, (text) => setText(byId("live"), text));
}

listenToForms(runId);
listenToReview();
listenToHeader(runId, applyRun);
listenToTags(applyRun);
listenToNotes(applyRun);
start();
