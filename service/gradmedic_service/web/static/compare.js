// The page of a comparison: losses and gradients of up to six runs over the same axis.

import { get, readSeries, showError } from "./api.js";
import { Chart, lineStyle, pointsOf } from "./chart.js";
import { MAX_COMPARED, comparisonAddress } from "./comparison.js";
import { byId, el, setText, svg } from "./dom.js";
import { attentionBadge, badge, integer, number, statusWord } from "./format.js";

const POINTS = 250;
const REFRESH_MILLISECONDS = 3000;

const parameters = new URLSearchParams(location.search);
const runIds = [...new Set(parameters.getAll("run"))].slice(0, MAX_COMPARED);
const saveScale = (name) => (scale) => { parameters.set(name, scale); history.replaceState(null, "", `?${parameters}`); };
const charts = {
  loss: new Chart(byId("loss-chart"), { title: "Loss", heading: "h2", cutsOutliers: true, scale: parameters.get("loss") === "linear" ? "linear" : "log", onScale: saveScale("loss") }),
  gradient: new Chart(byId("gradient-chart"), { title: "Gradient norm", heading: "h2", cutsOutliers: true, scale: parameters.get("gradient") === "linear" ? "linear" : "log", onScale: saveScale("gradient") }),
};
const comparisons = new Map(); // {run, diagnosis, loss, gradient} by run id

/** Return points of the norm over all layers, from each layer's mean; not finite where one layer is not finite. */
function totalNormOf(table) {
  const total = { count: [], nonfinite: [], infinite: [], mean: [] };
  for (let at = 0; at < table.first.length; at += 1) {
    let [squares, finite, nonfinite, infinite] = [0, 0, 0, 0];
    for (const series of table.series) {
      if (series.count[at] > series.nonfinite[at]) { squares += series.mean[at] ** 2; finite += 1; }
      nonfinite += series.nonfinite[at];
      infinite += series.infinite[at];
    }
    total.mean.push(Math.sqrt(squares));
    total.count.push(nonfinite || (finite ? 1 : 0)); // a sum without some of its layers would look like a decrease
    total.nonfinite.push(nonfinite);
    total.infinite.push(infinite);
  }
  return pointsOf(table, total);
}

async function read(id) {
  const before = comparisons.get(id);
  const run = await get(`/runs/${id}`);
  if (before?.run.revision === run.revision && before.run.status === run.status) return before;
  const [loss, gradient, diagnosis] = await Promise.all([
    readSeries(id, { statistic: "loss", max_points: POINTS }),
    run.statistics.includes("grad_norm") && run.layers.length ? readSeries(id, { statistic: "grad_norm", field: "mean", max_points: POINTS }) : null,
    get(`/runs/${id}/diagnosis`),
  ]);
  return { run, diagnosis, loss: pointsOf(loss, loss.series[0]), gradient: gradient ? totalNormOf(gradient) : [] };
}

function rowOf({ run, diagnosis, loss }, index) {
  const last = loss.at(-1);
  const remove = el("button", { type: "button", "aria-label": `Remove ${run.name}` }, "Remove");
  remove.addEventListener("click", () => {
    location.assign(comparisonAddress(runIds.filter((id) => id !== run.id)));
  });
  return el("tr", { "data-run": run.id },
    el("td", {}, svg("svg", { width: 34, height: 12, class: lineStyle(index).class, role: "img", "aria-label": `Line ${index + 1}` }, svg("path", { d: "M0,6H34", "stroke-dasharray": lineStyle(index).dash }))),
    el("th", { scope: "row" }, el("a", { href: `/runs/${run.id}` }, run.name)),
    el("td", { "data-label": "Verdict" }, badge(run.verdict), " ", attentionBadge(run.level)),
    el("td", { "data-label": "Status" }, statusWord(run.status)),
    el("td", { class: "number", "data-label": "Last step" }, integer(run.last_step)),
    el("td", { class: "number", "data-label": "Loss" }, !last ? "–" : last.nan ? "NaN" : last.infinite ? "infinite" : number(last.y)),
    el("td", { class: "text" }, diagnosis.summary),
    el("td", {}, remove));
}

async function refresh() {
  const results = await Promise.all(runIds.map((id) => read(id).catch((error) => { showError(error); return null; })));
  const existing = results.filter(Boolean);
  for (const comparison of existing) comparisons.set(comparison.run.id, comparison);
  if (existing.length === runIds.length) showError(null);
  byId("none").hidden = existing.length > 0;
  const body = byId("compared").tBodies[0];
  if (!body.contains(document.activeElement)) body.replaceChildren(...existing.map(rowOf));
  const to = Math.max(1, ...existing.map(({ run }) => run.last_step ?? 0));
  for (const name of ["loss", "gradient"]) {
    charts[name].setData({
      lines: existing.map((item) => ({ name: item.run.name, points: item[name] })), from: 0, to,
      note: name === "gradient" ? "Over all layers: the root of the sum of squares of each layer's mean in a bucket." : "",
    });
  }
  setText(byId("live"), "live");
  document.body.dataset.ready = "yes";
  if (existing.some(({ run }) => run.status === "running" || run.status === "stalled")) setTimeout(refresh, REFRESH_MILLISECONDS);
}

if (runIds.length) refresh().catch(showError);
else byId("none").hidden = false;
