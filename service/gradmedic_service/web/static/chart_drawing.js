// Draws a chart: axes, marks, lines, legend.

import { lineStyle, partsOf, stretchesOf } from "./chart_points.js";
import { el, svg } from "./dom.js";
import { number } from "./format.js";
import * as scales from "./scales.js";

// `xTick` is the least distance of ticks of the horizontal axis, as a multiple of the width of their texts; `yTick` that of the
// vertical axis in pixels.
export const LARGE = { margin: { left: 62, right: 10, top: 16, bottom: 36 }, height: 210, xTick: 1.1, yTick: 32, hasUnit: true };
export const COMPACT = { margin: { left: 52, right: 8, top: 14, bottom: 20 }, height: 150, xTick: 1, yTick: 22, hasUnit: false };
const SHOWN_SHARE = 0.98; // with `cutsOutliers`, this share of the values is in the range of the axis, ...
const CUT_FACTOR = 10; // ... if the largest value is more than so many times higher
const CONSTANT_SHARE = 1e-9; // of the values; a smaller range is not drawn
const LOG_MARGIN = 0.04; // of the range, above and below
const LINEAR_MARGIN = 0.05;
const GAP_DASH = "1 3"; // of a line over steps without a value, ...
const GAP_RADIUS = 1.8; // ... whose ends are dots
const FIT_DASH = "6 4";
const MAX_TICKS = 6; // of the vertical axis
const TICK_HEIGHT = 10; // of a mark that stands on the horizontal axis only
const MANY_DOTS = 60;
const CLIP_MARGIN = 3; // pixels; lines may leave the plot so far to the left and right
let clipCount = 0;

/** Return `{low, high, cut}` of the vertical axis; values above `cut`, if it is not null, are drawn at the upper edge. */
export function valueRange(lines, isLog, cutsOutliers) {
  let [low, high] = [Infinity, -Infinity];
  const values = [];
  for (const { points, smoothed } of lines) {
    for (const point of [...points, ...(smoothed ?? [])]) {
      for (const value of smoothed ? [point.y] : [point.low ?? point.y, point.high ?? point.y]) {
        if (value === null || (isLog && value <= 0)) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
        values.push(value);
      }
    }
  }
  if (low > high) return null;
  const highest = cutsOutliers ? Float64Array.from(values).sort()[Math.floor(SHOWN_SHARE * (values.length - 1))] : high;
  const cut = highest < high / CUT_FACTOR ? highest : null;
  if (cut !== null) high = cut;
  const isConstant = high - low <= Math.max(Math.abs(low), Math.abs(high)) * CONSTANT_SHARE; // also but for rounding
  if (isLog) return isConstant ? { low: low / 2, high: high * 2, cut } : { low: low / (high / low) ** LOG_MARGIN, high: high * (high / low) ** LOG_MARGIN, cut };
  const margin = ((isConstant ? 0 : high - low) || Math.abs(high) || 1) * LINEAR_MARGIN;
  return { low: low - margin, high: high + margin, cut };
}

/** Draw everything but what follows the pointer. Sets `xScale`, `plotBottom` and `plotRight` of the chart. */
export function drawChart(chart, range) {
  const { svg: root, layout: { margin, xTick, yTick, hasUnit }, width, height, axis } = chart;
  const [right, bottom] = [width - margin.right, height - margin.bottom];
  const x = chart.xScale = scales.linear(chart.from, Math.max(chart.to, chart.from + (axis.needsClock ? 1e-6 : 1)), margin.left, right);
  Object.assign(chart, { plotRight: right, plotBottom: bottom });
  root.replaceChildren();
  if (!chart.lines.some(({ points }) => points.length)) {
    root.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle", class: "nothing" }, chart.emptyText));
    return;
  }
  const y = range && scales[chart.scale](range.low, range.high, bottom, margin.top);
  const ticks = y ? y.ticks(Math.min(MAX_TICKS, Math.max(2, Math.floor((bottom - margin.top) / yTick)))) : [];
  for (const tick of ticks) {
    root.append(
      svg("line", { x1: margin.left, x2: right, y1: y(tick), y2: y(tick), class: "rule" }),
      svg("text", { x: margin.left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick)),
    );
  }
  for (const [tick, text] of axis.ticks(x, Math.max(2, Math.floor((right - margin.left) / (xTick * axis.tickWidth))))) {
    root.append(svg("text", { x: x(tick), y: bottom + 16, "text-anchor": x(tick) > right - 12 ? "end" : "middle" }, text));
  }
  const unit = `${chart.options.unit ?? axis.label}${chart.range ? " · double-click for all" : ""}`;
  if (hasUnit) root.append(svg("text", { x: right, y: height - 1, "text-anchor": "end", class: "unit" }, unit));
  if (range && range.cut !== null && !hasUnit) root.append(svg("text", { x: right, y: margin.top - 3, "text-anchor": "end", class: "unit" }, `cut at ${number(range.high)}`));
  const isInView = (place) => place >= chart.from && place <= chart.to;
  for (const mark of chart.marks) {
    const place = chart.placeOf(mark.step);
    if (!isInView(place)) continue;
    const top = mark.isTick ? bottom - TICK_HEIGHT : margin.top;
    root.append(svg("line", { x1: x(place), x2: x(place), y1: top, y2: bottom, class: mark.isTick ? "mark tick" : "mark", "data-verdict": mark.verdict }, svg("title", {}, mark.title)));
  }
  const clip = `clip-${clipCount += 1}`;
  root.append(svg("clipPath", { id: clip }, svg("rect", { x: margin.left - CLIP_MARGIN, y: 0, width: right - margin.left + 2 * CLIP_MARGIN, height })));
  for (const line of chart.lines) drawLine(chart, line, x, y, clip);
  const selected = chart.selected === null ? null : chart.placeOf(chart.selected);
  if (selected !== null && isInView(selected)) {
    root.append(svg("line", { x1: x(selected), x2: x(selected), y1: margin.top, y2: bottom, class: "selected" }));
  }
}

function drawLine(chart, line, x, y, clip) {
  const { svg: root, layout: { margin }, plotBottom: bottom, options } = chart;
  const { name, points, smoothed, index, isFit } = line;
  const isLog = chart.scale === "log";
  const xOf = (point) => x(chart.placeOf(point.x, line));
  const high = (value) => Math.max(y(value), margin.top);
  const low = (point) => Math.min(high(point.low !== null && (!isLog || point.low > 0) ? point.low : point.y), bottom);
  const place = (point) => `${xOf(point).toFixed(1)},${high(point.y).toFixed(1)}`;
  const group = svg("g", { class: `${lineStyle(index).class}${isFit ? " fit" : ""}`, "clip-path": `url(#${clip})` });
  const dash = isFit ? FIT_DASH : lineStyle(index).dash;
  const drawPart = (part, isRaw) => {
    if (part.length === 1) {
      group.append(svg("circle", { cx: xOf(part[0]), cy: high(part[0].y), r: 2.5, class: isRaw ? "raw" : null }));
      return;
    }
    for (const { points: stretch, isGap } of stretchesOf(part)) {
      const classes = [isGap && "gap", isRaw && "raw"].filter(Boolean).join(" ");
      group.append(svg("path", { d: `M${stretch.map(place).join("L")}`, class: classes || null, "stroke-dasharray": isGap ? GAP_DASH : dash }));
      if (isGap && !isRaw) group.append(...stretch.map((point) => svg("circle", { cx: xOf(point), cy: high(point.y), r: GAP_RADIUS })));
    }
  };
  for (const part of partsOf(points, isLog)) {
    if (options.dots && !isFit) {
      for (const point of part) group.append(svg("circle", { cx: xOf(point), cy: high(point.y), r: part.length > MANY_DOTS ? 2 : 3.2 }));
      continue;
    }
    if (!isFit && !smoothed && part.length > 1 && part.some((point) => point.low !== point.high)) {
      const top = part.map((point) => `${xOf(point).toFixed(1)},${high(point.high ?? point.y).toFixed(1)}`);
      const back = part.map((point) => `${xOf(point).toFixed(1)},${low(point).toFixed(1)}`).reverse();
      group.append(svg("path", { d: `M${top.join("L")}L${back.join("L")}Z`, class: "range" }));
    }
    drawPart(part, Boolean(smoothed));
  }
  if (smoothed) for (const part of partsOf(smoothed, isLog)) drawPart(part, false);
  root.append(group);
  const isAlone = chart.lines.length === 1;
  const isBad = ({ nan, infinite }) => nan || infinite;
  for (const [at, point] of points.entries()) {
    if (!isBad(point) || (!isAlone && at > 0 && isBad(points[at - 1]))) continue; // of several lines, only the first point of each stretch is marked
    const [left, kind] = [xOf(point), point.nan ? "nan" : "infinite"];
    const top = margin.top - 12;
    const shape = kind === "nan" ? `M${left - 4},${top}l8,8m0,-8l-8,8` : `M${left - 4},${top + 8}l4,-8l4,8z`;
    (isAlone ? root : group).append(svg("path", { d: shape, class: `not-finite ${kind}` }, svg("title", {}, `${isAlone ? "" : `${name}: `}${kind === "nan" ? "NaN" : "infinite"}, ${options.describeX(point)}`)));
  }
}

/** Return a small picture of a line, for a legend. */
export const swatch = ({ index, isFit }, dots = false) => svg("svg", { width: 26, height: 10, "aria-hidden": "true", class: `${lineStyle(index).class}${isFit ? " fit" : ""}` },
  dots && !isFit ? svg("circle", { cx: 13, cy: 5, r: 3.2 }) : svg("path", { d: "M0,5H26", "stroke-dasharray": isFit ? FIT_DASH : lineStyle(index).dash }));

/** Draw the legend: an entry for each name. */
export function drawLegend({ legend, lines, options }) {
  const named = lines.filter(({ name }, at) => lines.findIndex((line) => line.name === name) === at);
  legend.hidden = named.length < 2 || options.compact;
  if (!legend.hidden) legend.replaceChildren(...named.map((line) => el("li", {}, swatch(line, options.dots), line.name)));
}
