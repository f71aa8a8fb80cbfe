// Reads what a comparison shows of a run: its diagnosis, its numbers, its times, and the series of its charts.

import { get, getAll, readSeries } from "./api.js";
import { readClock } from "./axes.js";
import { pointsOf } from "./chart.js";
import { extremesOf, lastBucketOf, valueAt } from "./comparison_outcomes.js";
import { openWarning } from "./deciding_finding.js";
import { metricsOf } from "./metric_groups.js";
import { remediesText } from "./remedies.js";

const ALL_POINTS = 900; // points of all runs together in one chart
const POINTS = { fewest: 60, most: 250 }; // of one run
const MEASURE_POINTS = 40; // buckets in which the best and the last value of a number are looked for
const NAMES_PER_REQUEST = 40; // an address with more could be too long
const MAX_DRAWN = 60; // answers that are kept for the charts of a run

/** Return the number of points of one run's line among so many runs. */
export const pointsPerRun = (runs) => Math.min(POINTS.most, Math.max(POINTS.fewest, Math.round(ALL_POINTS / runs)));

const inBatches = (names) => Array.from({ length: Math.ceil(names.length / NAMES_PER_REQUEST) }, (_, at) => names.slice(at * NAMES_PER_REQUEST, (at + 1) * NAMES_PER_REQUEST));

/** Read the last value of each series from the buckets that contain it; a bucket of several steps is read more finely. */
async function readLast(runId, table, names) {
  const last = new Map();
  const coarse = new Map(); // names by the bucket that is still to be read
  for (const series of table.series) {
    const at = lastBucketOf(series);
    if (at < 0 || !names.includes(series.statistic)) continue;
    const [first, end] = [table.first[at], table.last[at]];
    if (series.count[at] === 1 || first === end) last.set(series.statistic, { value: valueAt(series, at), step: end });
    else coarse.set(`${first} ${end}`, { first, end, names: [...(coarse.get(`${first} ${end}`)?.names ?? []), series.statistic] });
  }
  for (const { first, end, names: inside } of coarse.values()) {
    const finer = await readSeries(runId, { statistic: inside, from_step: first, to_step: end, max_points: MEASURE_POINTS });
    for (const [name, value] of await readLast(runId, finer, inside)) last.set(name, value);
  }
  return last;
}

/** Return `{last: {value, step}, low, high}` of the loss, the learning rate and each metric of a run, by name. */
async function readMeasures(run) {
  const names = ["loss", "learning_rate", ...metricsOf([run])];
  const batches = await Promise.all(inBatches(names).map(async (batch) => {
    const table = await readSeries(run.id, { statistic: batch, max_points: MEASURE_POINTS });
    const last = await readLast(run.id, table, batch);
    return table.series.filter(({ statistic }) => last.has(statistic))
      .map((series) => [series.statistic, { last: last.get(series.statistic), ...extremesOf(table, series) }]);
  }));
  return new Map(batches.flat());
}

/** Return the remedies and the seed of the trial that a run is an attempt at; null for other runs. */
async function readTrial(run) {
  if (run.parent_id === null) return null;
  for (const { id } of await getAll("/reruns", { run_id: run.parent_id })) {
    const rerun = await get(`/reruns/${id}`);
    const trial = rerun.trials.find(({ attempts }) => attempts.some(({ run_id }) => run_id === run.id));
    if (trial) return { remedies: rerun.candidates[trial.candidate].remedies, seed: trial.seed };
  }
  return null;
}

/** Return the settings of the runs: their configurations, and what reruns changed where one of them is a trial. */
export function settingsOf(items) {
  const hasTrial = items.some(({ trial }) => trial);
  return items.map(({ run, trial }) => {
    if (!hasTrial) return run.config;
    return { "remedies of the rerun": trial?.remedies.length ? remediesText(trial.remedies) : "none", ...(trial && { "seed of the trial": trial.seed }), ...run.config };
  });
}

/** Read a run for a comparison of so many runs; answer what was read before if the run has not changed. */
export async function readComparison(id, runs, before) {
  const run = await get(`/runs/${id}`);
  const points = pointsPerRun(runs);
  if (before && before.run.revision === run.revision && before.run.status === run.status && before.points === points) return before;
  const [diagnosis, measures, trial] = await Promise.all([get(`/runs/${id}/diagnosis`), readMeasures(run), before ? before.trial : readTrial(run)]);
  return {
    run, diagnosis, points, measures, trial,
    firstLayer: run.first_bad_layer ?? openWarning(diagnosis)?.layers[0] ?? null,
    lastLoss: measures.get("loss")?.last ?? null,
    drawn: new Map(), // further series, by what was asked for
  };
}

/** Return what `read` reads for the charts of a run; it is read once for each state of the run. */
function once(item, key, read) {
  if (item.drawn.size > MAX_DRAWN) item.drawn.clear();
  if (!item.drawn.has(key)) {
    item.drawn.set(key, read());
    item.drawn.get(key).catch(() => item.drawn.delete(key));
  }
  return item.drawn.get(key);
}

/** Read series of a run, by a query of `GET /runs/{id}/steps`. */
export const readDrawn = (item, query) => once(item, JSON.stringify(query), () => readSeries(item.run.id, { ...query, max_points: item.points }));

/** Read the clock of a run; null if its steps have no times. */
export const readItemClock = (item) => once(item, "clock", () => readClock(item.run.id));

/** Return points of the norm over all layers, from each layer's mean; not finite where one layer is not finite. */
export function totalNormOf(table) {
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
