// The heatmap of a run: a row for each layer in depth order, a column for each bucket of steps.
//
// A folded module is one row; its cell shows the worst of its layers, else the one with the largest value.

import { pictureActions, valueActions } from "./chart_export.js";
import { el, svg } from "./dom.js";
import { fileName } from "./files.js";
import { drawFlags, drawRowLabels, drawStepAxis } from "./heatmap_axes.js";
import { cellOf, columnsOf, domainOfSeries, drawLegend, drawOverlay, paintCells } from "./heatmap_drawing.js";
import { cellRows, drawPicture } from "./heatmap_export.js";
import { listenToKeys, listenToPointer } from "./heatmap_input.js";
import { describe, tableOf, tipOf } from "./heatmap_text.js";
import { foldable, rowsOf } from "./layers.js";
import { menuButton } from "./menu.js";
import { linear } from "./scales.js";

const HEIGHT = 600; // CSS pixels for all rows, as far as ROW_HEIGHT allows
const ROW_HEIGHT = { min: 4, max: 24 };
const DETAILS_DELAY = 90; // milliseconds on a cell before its minimum and maximum are read

export class Heatmap {
  /**
   * handlers: `zoom(from, to, isPan)`, `select(layer, step)`, `fold(groups)`, `resized()`; `details(layer)`, which returns a
   * promise of the layer's series with minimum and maximum over the same buckets; `fileName()` and `sources()` as those of
   * a chart.
   */
  constructor(root, handlers) {
    this.root = root;
    this.handlers = handlers;
    this.layers = [];
    this.rows = [];
    this.folded = new Set();
    this.columns = [];
    this.marks = [];
    this.cursor = null; // {row, column, isHeld} of the cell that is pointed at
    this.brush = null; // [start, end] of a drag, in pixels
    this.selected = { layer: null, step: null };
    this.details = new Map(); // promise of the series with minimum and maximum, by layer

    this.canvas = el("canvas", {
      tabindex: "0", role: "application", "aria-label": "Heatmap of layers over steps", "aria-describedby": "heatmap-keys",
      "aria-roledescription": "heatmap",
    });
    this.overlay = svg("svg", { class: "overlay", "aria-hidden": "true" });
    this.axis = svg("svg", { class: "axis", "aria-hidden": "true", height: 34 });
    this.flags = el("div", { class: "flags" });
    this.gutter = el("div", { class: "gutter" });
    this.plot = el("div", { class: "plot" }, this.canvas, this.overlay);
    this.tip = el("div", { class: "tip", role: "status", "aria-live": "polite", hidden: true });
    this.legend = el("div", { class: "legend" });
    this.menu = menuButton(() => {
      const name = () => fileName(handlers.fileName());
      return [...pictureActions(name, () => drawPicture(this)), ...valueActions(name, handlers.sources(), () => cellRows(this))];
    });
    this.menu.setName("Menu of the heatmap");
    this.table = el("details", { class: "data-table" }, el("summary", {}, "Show as a table"));
    root.append(
      this.flags,
      el("div", { class: "frame" }, this.gutter, this.plot),
      this.axis,
      this.legend,
      el("p", { class: "keys muted", id: "heatmap-keys" },
        "Drag to zoom, double-click for all steps. Keys: arrows move (with Shift ten cells), + and − zoom, S starts and E ends the range here, 0 shows all steps, Enter selects, F folds."),
      this.table,
      this.tip,
    );
    listenToPointer(this);
    listenToKeys(this);
    this.table.addEventListener("toggle", () => { if (this.table.open) this.#fillTable(); });
    new ResizeObserver(() => this.#resize()).observe(this.plot);
    document.addEventListener("themechange", () => this.draw());
  }

  get width() {
    return this.plot.clientWidth;
  }

  /** Scale from steps to pixels of the plot. */
  get scale() {
    return linear(this.view.from, this.view.to + 1, 0, this.width);
  }

  setLayers(layers, folded) {
    this.layers = layers;
    this.folded = folded;
    this.rows = rowsOf(layers, folded);
    this.rowHeight = Math.max(ROW_HEIGHT.min, Math.min(ROW_HEIGHT.max, Math.floor(HEIGHT / Math.max(1, this.rows.length))));
    this.cursor = null;
    drawRowLabels(this, (group) => this.toggleFold(group));
  }

  /** Show series of all layers over the steps `view.from` to `view.to`; `cell` names the number that colours a cell. */
  setData(table, statistic, cell, view) {
    const pointed = this.cursor && { row: this.cursor.row, step: this.columns[this.cursor.column].first };
    this.cursor = null;
    this.statistic = statistic;
    this.cell = cell;
    this.view = view;
    const layerSeries = table.series.filter(({ layer }) => layer !== null);
    this.seriesByLayer = new Map(layerSeries.map((series) => [series.layer, { ...series, values: series[cell] }]));
    this.details.clear();
    this.columns = columnsOf(table, layerSeries);
    this.domain = domainOfSeries(this.seriesByLayer, statistic);
    this.draw();
    this.#describe();
    if (pointed) this.#restoreCursor(pointed);
  }

  /** Keep the keyboard's cursor at its step when the columns change; the mouse points again when it moves. */
  #restoreCursor({ row, step }) {
    if (document.activeElement !== this.canvas || !this.columns.length) {
      this.tip.hidden = true;
      return;
    }
    const column = this.columns.findIndex(({ first, end }) => step >= first && step < end);
    const nearest = step < this.columns[0].first ? 0 : this.columns.length - 1;
    this.pointAt({ row: Math.min(row, this.rows.length - 1), column: column < 0 ? nearest : column });
  }

  /** Show other steps with the buckets that are there, until `setData` brings the buckets of these steps. */
  setView(view) {
    if (!this.view) return;
    this.view = view;
    this.draw();
    this.#describe();
  }

  setMarks(marks) {
    this.marks = marks;
    this.#drawMarks();
  }

  setSelected(selected) {
    this.selected = selected;
    this.drawOverlay();
  }

  draw() {
    if (!this.view || !this.width) return;
    paintCells(this);
    drawStepAxis(this);
    this.#drawMarks();
    this.drawOverlay();
    drawLegend(this);
    if (this.table.open) this.#fillTable();
  }

  drawOverlay() {
    if (this.view) drawOverlay(this);
  }

  #drawMarks() {
    if (!this.view) return;
    drawFlags(this, (mark) => this.handlers.select(mark.layer ?? this.selected.layer, mark.step));
    this.drawOverlay();
  }

  #resize() {
    if (this.lastWidth === this.width) return;
    const isFirst = this.lastWidth === undefined;
    this.lastWidth = this.width;
    this.draw();
    if (!isFirst) this.handlers.resized?.();
  }

  toggleFold(group) {
    const folded = new Set(this.folded);
    if (!folded.delete(group)) folded.add(group);
    this.#fold(folded);
  }

  foldAll(isFolded) {
    this.#fold(new Set(isFolded ? foldable(this.layers) : []));
  }

  #fold(folded) {
    this.setLayers(this.layers, folded);
    this.draw();
    this.handlers.fold([...folded]);
  }

  /** Show more or fewer steps around a step; a factor of 0.5 shows half as many. */
  zoomBy(factor, around = null) {
    const { from, to } = this.view;
    const centre = around ?? (from + to) / 2;
    const span = Math.max(1, Math.round((to - from + 1) * factor));
    const share = (centre - from) / Math.max(1, to - from + 1);
    const first = Math.round(centre - span * share);
    this.handlers.zoom(first, first + span - 1);
  }

  /** Show earlier (negative) or later steps, by a share of the steps in view. */
  panBy(share) {
    const { from, to } = this.view;
    const distance = Math.trunc((to - from + 1) * share) || Math.sign(share);
    this.handlers.zoom(from + distance, to + distance, true);
  }

  /** Select the layer and the step of the cell that is pointed at. */
  selectCell() {
    if (!this.cursor) return;
    const row = this.rows[this.cursor.row];
    const column = this.columns[this.cursor.column];
    const { layer } = cellOf(row, column, this.seriesByLayer);
    this.handlers.select((layer ?? row.layers[0]).name, column.first);
  }

  /** Point at a cell and show its tip; minimum and maximum follow when they have been read. null points nowhere. */
  pointAt(cell, event = null) {
    if (!cell) {
      if (this.cursor) { this.cursor = null; this.drawOverlay(); }
      this.tip.hidden = true;
      return;
    }
    if (!this.#isAt(cell)) {
      this.cursor = cell;
      this.drawOverlay();
      this.#showTip(cell);
    }
    this.#placeTip(event);
  }

  #isAt({ row, column, isHeld = false }) {
    return this.cursor !== null && this.cursor.row === row && this.cursor.column === column && (this.cursor.isHeld ?? false) === isHeld;
  }

  #showTip(cell) {
    const row = this.rows[cell.row];
    const column = this.columns[cell.column];
    const { kind, layer: shownLayer } = cellOf(row, column, this.seriesByLayer);
    const layer = shownLayer ?? row.layers[0];
    const series = this.seriesByLayer.get(layer.name);
    const show = (values) => this.tip.replaceChildren(...tipOf({ row, column, layer, series: values, kind, statistic: this.statistic, isHeld: cell.isHeld }));
    show(series);
    clearTimeout(this.pendingDetails);
    if (!series || !series.count[column.index]) return;
    this.pendingDetails = setTimeout(async () => {
      const reading = this.details.get(layer.name) ?? this.handlers.details(layer.name);
      this.details.set(layer.name, reading);
      const details = await reading.catch(() => null);
      if (details && this.#isAt(cell) && details.mean.length > column.index) show(details);
    }, this.details.has(layer.name) ? 0 : DETAILS_DELAY);
  }

  #placeTip(event) {
    this.tip.hidden = false;
    const plot = this.plot.getBoundingClientRect();
    const root = this.root.getBoundingClientRect();
    const column = this.columns[this.cursor.column];
    const x = event ? event.clientX : plot.left + this.scale(column.first);
    const y = event ? event.clientY : plot.top + (this.cursor.row + 1) * this.rowHeight;
    const left = Math.max(0, Math.min(x - root.left + 14, root.width - this.tip.offsetWidth - 4));
    const fitsBelow = y + 16 + this.tip.offsetHeight < window.innerHeight;
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${y - root.top + (fitsBelow ? 16 : -16 - this.tip.offsetHeight)}px`;
  }

  #describe() {
    this.canvas.setAttribute("aria-label", describe(this));
  }

  #fillTable() {
    this.table.querySelector(".scroll")?.remove();
    this.table.append(tableOf(this));
  }
}
