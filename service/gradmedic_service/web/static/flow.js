// The probes on the page of a run: how the gradient travels from block to block, and back through time.

import { pointsOf } from "./chart.js";
import { integer, number } from "./format.js";

const BLOCKS = "gradmedic/output_gradient_rms/";
const FACTORS = "gradmedic/time_gradient_factor/";
const LENGTHS = "gradmedic/time_steps/";

/** Return the names of a run's metrics with a prefix, in the order in which they arrived: that of the calls. */
const metricsOf = (run, prefix) => run.metrics.filter((name) => name.startsWith(prefix));

const times = (factor) => `×${number(Number(factor.toPrecision(2)))}`;

/** Return the numbers of all blocks at one bucket as points of a chart. */
function blocksAt(table, names, at) {
  const byName = new Map(table.series.map((series) => [series.statistic, series]));
  return names.flatMap((name, x) => {
    const series = byName.get(name);
    if (!series?.count[at]) return [];
    const y = series.count[at] > series.nonfinite[at] ? series.mean[at] : null;
    return [{ x, name: name.slice(BLOCKS.length), y, low: y, high: y, nan: series.nonfinite[at] - series.infinite[at], infinite: series.infinite[at] }];
  });
}

const stepOf = (table, at) => (table.first[at] === table.last[at] ? `step ${integer(table.first[at])}` : `steps ${integer(table.first[at])} to ${integer(table.last[at])}`);

/** Draw the gradient at the output of each block at the first and the last probe in view. */
export async function drawBlocks(section, chart, run, readSeries, points) {
  const names = metricsOf(run, BLOCKS);
  section.hidden = names.length < 2;
  if (section.hidden) return;
  const table = await readSeries({ statistic: names, field: "mean", max_points: points });
  const probed = table.first.map((_, at) => at).filter((at) => table.series.some(({ count }) => count[at] > 0));
  section.hidden = !probed.length;
  if (section.hidden) return;
  const [first, last] = [probed[0], probed.at(-1)];
  const lines = [{ name: stepOf(table, last), points: blocksAt(table, names, last) }];
  if (first !== last) lines.push({ name: stepOf(table, first), points: blocksAt(table, names, first) });
  const known = lines[0].points.filter(({ y }) => y > 0);
  let note = `At ${stepOf(table, last)}.`;
  if (known.length > 1) note += ` From ${known.at(-1).name} back to ${known[0].name} the gradient changes by ${times(known[0].y / known.at(-1).y)}.`;
  chart.setData({ lines, from: -0.5, to: names.length - 0.5, note });
}

/** Draw the factor by which the gradient changes with each time step back through recurrent modules, by `draw(data)`. */
export async function drawTime(section, run, readSeries, points, draw) {
  const names = metricsOf(run, FACTORS);
  section.hidden = !names.length;
  if (section.hidden) return;
  const lengths = metricsOf(run, LENGTHS);
  const table = await readSeries({ statistic: [...names, ...lengths], max_points: points });
  const pointsByName = new Map(table.series.map((series) => [series.statistic, pointsOf(table, series)]));
  const lines = names.map((name) => ({ name: name.slice(FACTORS.length), points: pointsByName.get(name) })).filter((line) => line.points.length);
  section.hidden = !lines.length;
  if (section.hidden) return;
  const notes = lines.flatMap((line) => {
    const [factor, length] = [line.points.at(-1).y, pointsByName.get(LENGTHS + line.name)?.at(-1)?.y];
    if (factor === null || !length) return [];
    return [`${times(factor ** (length - 1))} over the ${integer(Math.round(length))} time steps of ${line.name}`];
  });
  draw({ lines, note: notes.length ? `The gradient changes by ${notes.join(", by ")}. A factor of 1 keeps it.` : "" });
}
