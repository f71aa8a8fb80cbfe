// Draws the cells of the heatmap, what lies over them, and the legend.

import { ABSENT, PACKED, SPECIAL, domainOf, isLinear, kindOf, painter, viridis, withOpacity } from "./colors.js";
import { el, svg } from "./dom.js";
import { number, words } from "./format.js";
import { linear } from "./scales.js";

const HELD_OPACITY = 0.45; // of a cell over the steps after its sample that were not sampled
const KINDS = ["absent", "zero", "finite", "infinite", "nan"]; // a folded row shows the last of the kinds of its layers

/**
 * Return the columns in which a layer has values: `{index, first, last, end}`. `index` is the place in the table. The
 * column is drawn up to the step `end`, where the next one starts; the steps after `last` were not sampled, and show the
 * last sampled value in a paler colour.
 */
export function columnsOf(table, allSeries) {
  const hasValues = new Uint8Array(table.first.length);
  for (const { count } of allSeries) for (let at = 0; at < hasValues.length; at += 1) hasValues[at] |= count[at] > 0;
  const columns = [];
  for (let at = 0; at < hasValues.length; at += 1) {
    if (hasValues[at]) columns.push({ index: at, first: table.first[at], last: table.last[at] });
  }
  const lastStep = table.last.at(-1);
  columns.forEach((column, at) => { column.end = columns[at + 1]?.first ?? lastStep + 1; });
  return columns;
}

/** Return `{kind, value, layer}` of a cell: of the layer of the row that is worst, or has the largest value. */
export function cellOf(row, column, seriesByLayer) {
  let cell = { kind: "absent", value: 0 };
  for (const layer of row.layers) {
    const series = seriesByLayer.get(layer.name);
    if (!series) continue;
    const at = column.index;
    const kind = kindOf(series.values[at], series.count[at], series.nonfinite[at], series.infinite[at]);
    const rank = KINDS.indexOf(kind) - KINDS.indexOf(cell.kind);
    if (rank > 0 || (rank === 0 && Math.abs(series.values[at]) > Math.abs(cell.value))) {
      cell = { kind, value: series.values[at], layer };
    }
  }
  return cell;
}

/** Return `[low, high]` of the colours, over all layers. */
export const domainOfSeries = (seriesByLayer, statistic) => domainOf([...seriesByLayer.values()], statistic);

/** Paint every cell, pixel by pixel. What is not finite is striped, and at least a pixel wide. */
export function paintCells({ canvas, plot, rows, columns, view, statistic, domain, seriesByLayer, rowHeight, width: plotWidth }) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const width = Math.max(1, Math.round(plotWidth * ratio));
  const pixelsPerRow = Math.max(1, Math.round(rowHeight * ratio));
  const height = Math.max(1, pixelsPerRow * rows.length);
  canvas.width = width;
  canvas.height = height;
  canvas.style.height = `${rowHeight * rows.length}px`;
  plot.style.height = `${rowHeight * rows.length}px`;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const scale = linear(view.from, view.to + 1, 0, width);
  const paint = painter(statistic, domain);
  const edges = columns.map((column) => {
    const left = Math.floor(scale(column.first));
    const heldFrom = Math.max(left + 1, Math.ceil(scale(column.last + 1)));
    return [left, heldFrom, Math.max(heldFrom, Math.ceil(scale(column.end)))].map((x) => Math.max(0, Math.min(width, x)));
  });
  const striped = [];
  rows.forEach((row, index) => {
    const top = index * pixelsPerRow;
    const line = pixels.subarray(top * width, (top + 1) * width);
    columns.forEach((column, at) => {
      const { kind, value } = cellOf(row, column, seriesByLayer);
      const [left, heldFrom, right] = edges[at];
      if (right <= left) return;
      if (kind === "absent") { line.fill(ABSENT, left, right); return; }
      const color = kind === "finite" ? paint(value) : PACKED[kind][0];
      line.fill(color, left, heldFrom);
      line.fill(withOpacity(color, HELD_OPACITY), heldFrom, right);
      if (kind === "nan" || kind === "infinite") striped.push([kind, left, heldFrom, top]);
    });
    const gap = pixelsPerRow > 6 ? 1 : 0; // one pixel of background between rows
    for (let offset = 1; offset < pixelsPerRow - gap; offset += 1) {
      pixels.copyWithin((top + offset) * width, top * width, (top + 1) * width);
    }
  });
  for (const [kind, left, right, top] of striped) {
    const slope = kind === "nan" ? 1 : -1;
    for (let y = top; y < top + pixelsPerRow; y += 1) {
      for (let x = left; x < right; x += 1) {
        pixels[y * width + x] = PACKED[kind][(((x + slope * y) % 8) + 8) % 8 < 2 ? 1 : 0];
      }
    }
  }
  context.putImageData(image, 0, 0);
}

/** Draw marks, selection, brush and cursor over the cells. */
export function drawOverlay({ overlay, marks, selected, brush, cursor, rows, columns, view, rowHeight, width, scale }) {
  const height = rowHeight * rows.length;
  overlay.setAttribute("width", width);
  overlay.setAttribute("height", height);
  overlay.replaceChildren();
  for (const mark of marks) {
    if (mark.step < view.from || mark.step > view.to) continue;
    const x = scale(mark.step);
    overlay.append(svg("line", { x1: x, x2: x, y1: 0, y2: height, class: "mark", "data-verdict": mark.verdict }));
  }
  const { layer, step } = selected;
  if (step !== null && step >= view.from && step <= view.to) {
    const x = scale(step + 0.5);
    overlay.append(svg("line", { x1: x, x2: x, y1: 0, y2: height, class: "selected" }));
  }
  const row = rows.findIndex(({ layers }) => layers.some(({ name }) => name === layer));
  if (row >= 0) {
    overlay.append(svg("rect", { x: 1, y: row * rowHeight, width: Math.max(0, width - 2), height: rowHeight, class: "selected" }));
  }
  if (brush) {
    const [start, end] = brush.map((x) => Math.max(0, Math.min(width, x)));
    overlay.append(svg("rect", { x: Math.min(start, end), y: 0, width: Math.abs(end - start), height, class: "brush" }));
  }
  if (cursor) {
    const column = columns[cursor.column];
    const [x, end] = [scale(Math.max(column.first, view.from)), scale(Math.min(column.end, view.to + 1))];
    overlay.append(svg("rect", { x, y: cursor.row * rowHeight, width: Math.max(2, end - x), height: rowHeight, class: "cursor" }));
  }
}

/** Draw the colours of the finite values and of the other kinds of cells. */
export function drawLegend({ legend, statistic, domain: [low, high] }) {
  const write = (value) => number(Number((isLinear(statistic) ? value : 10 ** value).toPrecision(2)));
  const stops = Array.from({ length: 10 }, (_, at) => `rgb(${viridis(at / 9).join(" ")}) ${(at / 9) * 100}%`);
  const bar = el("span", { class: "bar" });
  bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  const swatch = (kind, label) => el("span", { class: "entry" }, el("span", { class: `swatch ${kind}` }), label);
  legend.replaceChildren(
    el("span", { class: "entry" }, `${words(statistic)}: ${write(low)}`, bar, write(high)),
    ...["zero", "nan", "infinite"].map((kind) => swatch(kind, SPECIAL[kind].label)),
    swatch("absent", "not touched by an optimizer"),
    swatch("held", "not sampled: the last sample, paler"),
  );
}
