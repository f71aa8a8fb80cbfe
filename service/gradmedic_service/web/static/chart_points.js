// The points of a line, and the style of a line.

const COLORS = 6;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "5 5", "1 4"];

/** Index of a line in the colour of text, for the unchanged control. */
export const CONTROL = -1;

/** Return the style of a line by its index: a colour and a dash, so that colour is not the only sign. */
export const lineStyle = (index) => (index === CONTROL
  ? { class: "line line-control", dash: "" }
  : { class: `line line-${index % COLORS}`, dash: DASHES[(index + Math.floor(index / COLORS)) % DASHES.length] });

/**
 * Return the points of a series, one for each bucket with values, with the numbers of NaN and of infinite values. `x` and
 * `last` are the first and the last step of the bucket; `y`, `low` and `high` are null where no value is finite.
 */
export function pointsOf(table, series) {
  const points = [];
  for (let at = 0; at < table.first.length; at += 1) {
    if (!series.count[at]) continue;
    const isFinite = series.count[at] > series.nonfinite[at];
    points.push({
      x: table.first[at],
      last: table.last[at],
      next: table.first[at + 1], // start of the next bucket that is stored, with or without a value
      y: isFinite ? series.mean[at] : null,
      low: isFinite ? (series.min ?? series.mean)[at] : null,
      high: isFinite ? (series.max ?? series.mean)[at] : null,
      nan: series.nonfinite[at] - series.infinite[at],
      infinite: series.infinite[at],
    });
  }
  return points;
}

/**
 * Return the stretches of a line, `{points, isGap}`: those whose buckets follow each other, and those over steps that are
 * stored without a value. A point without `next` is followed by the next one.
 */
export function stretchesOf(points) {
  const stretches = [];
  for (let at = 1; at < points.length; at += 1) {
    const before = points[at - 1];
    const isGap = before.next !== undefined && points[at].x > before.next;
    const current = stretches.at(-1);
    if (current?.isGap === isGap) current.points.push(points[at]);
    else stretches.push({ points: [before, points[at]], isGap });
  }
  return stretches;
}

/** Return the parts of a line between points that cannot be drawn: without a number, or not above 0 if `isLog`. */
export function partsOf(points, isLog) {
  const parts = [];
  let part = [];
  for (const point of points) {
    if (point.y !== null && (!isLog || point.y > 0)) part.push(point);
    else if (part.length) { parts.push(part); part = []; }
  }
  if (part.length) parts.push(part);
  return parts;
}

/** Return the largest index whose number is at most `x`, or -1; the numbers ascend. */
export function lastAtMost(numbers, x) {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= x) low = middle + 1; else high = middle;
  }
  return low - 1;
}
