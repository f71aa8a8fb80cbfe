// The picture of a run: layers in depth order over steps.
//
// It is painted pixel by pixel into a canvas: a cell is a bucket of steps of one layer, a row of a folded module shows
// the largest of its layers. What is not finite is painted over everything else of its cell, and is never narrower than
// a pixel. Everything that the mouse can do, keys can do, and the cell under the cursor is told in words.

import { PACKED, SPECIAL, domainOf, isLinear, kindOf, painter, viridis } from "./colors.js";
import { el, svg } from "./dom.js";
import { integer, number, steps as stepWords, words } from "./format.js";
import { foldable, rowsOf } from "./layers.js";
import { linear } from "./scales.js";

const HEIGHT = 600; // that rows are fitted into, in CSS pixels
const ROW = { least: 4, most: 24 };
const LABEL_HEIGHT = 15;
const BUTTON_HEIGHT = 24; // the least that a finger hits (WCAG 2.5.8)
const LEAST_DRAG = 6;
const LONGEST_GAP = 2; // columns, of the usual distance, that a cell is widened over steps that were not sampled

export class Heatmap {
  /**
   * handlers: `zoom(from, to)`, `select(layer, step)`, `fold(groups)`, `details(layer)` that resolves to its series
   * with minimum and maximum over the same buckets.
   */
  constructor(root, handlers) {
    this.handlers = handlers;
    this.layers = [];
    this.rows = [];
    this.folded = new Set();
    this.columns = [];
    this.marks = [];
    this.cursor = null;
    this.selected = { layer: null, step: null };
    this.details = new Map();

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
    this.table = el("details", { class: "behind" }, el("summary", {}, "The same as a table"));
    root.append(
      this.flags,
      el("div", { class: "frame" }, this.gutter, this.plot),
      this.axis,
      this.legend,
      el("p", { class: "keys muted", id: "heatmap-keys" },
        "Drag to zoom, double-click for all steps. Keys: arrows move (with Shift ten cells), + and − zoom, 0 shows all steps, Enter selects, F folds."),
      this.table,
      this.tip,
    );
    this.root = root;
    this.#listen();
    new ResizeObserver(() => this.#resized()).observe(this.plot);
    document.addEventListener("themechange", () => this.draw());
  }

  get width() {
    return this.plot.clientWidth;
  }

  setLayers(layers, folded) {
    this.layers = layers;
    this.folded = folded;
    this.rows = rowsOf(layers, folded);
    this.rowHeight = Math.max(ROW.least, Math.min(ROW.most, Math.floor(HEIGHT / Math.max(1, this.rows.length))));
    this.cursor = null;
    this.#labels();
  }

  /** Show series of all layers over the steps `view.from` to `view.to`; `cell` names the number that colours a cell. */
  setData(table, statistic, cell, view) {
    const told = this.cursor && { row: this.cursor.row, step: this.columns[this.cursor.column].first };
    this.cursor = null;
    this.statistic = statistic;
    this.cell = cell;
    this.view = view;
    this.byLayer = new Map(table.series.filter((one) => one.layer !== null).map((one) => [one.layer, { ...one, values: one[cell] }]));
    this.details.clear();
    const any = new Uint8Array(table.first.length);
    for (const { count } of this.byLayer.values()) for (let at = 0; at < any.length; at += 1) any[at] |= count[at] > 0;
    this.columns = [];
    for (let at = 0; at < any.length; at += 1) if (any[at]) this.columns.push({ at, first: table.first[at], last: table.last[at] });
    this.#widen();
    this.domain = domainOf([...this.byLayer.values()], statistic);
    this.draw();
    this.#describe();
    if (told) this.#goOn(told);
  }

  /** Keep the cursor at its step while the columns change under it; a mouse points anew when it moves. */
  #goOn({ row, step }) {
    if (document.activeElement !== this.canvas || !this.columns.length) {
      this.tip.hidden = true;
      return;
    }
    const found = this.columns.findIndex(({ first, end }) => step >= first && step < end);
    const nearest = step < this.columns[0].first ? 0 : this.columns.length - 1;
    this.#point({ row: Math.min(row, this.rows.length - 1), column: found < 0 ? nearest : found });
  }

  /** Show other steps at once, with the buckets that are there, until those of the new view have come. */
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
    this.#drawOverlay();
  }

  /** Where each column ends: at the next one, unless that is unusually far. */
  #widen() {
    const starts = this.columns.map(({ first }) => first);
    const gaps = starts.slice(1).map((start, at) => start - starts[at]).sort((one, other) => one - other);
    const usual = gaps.length ? gaps[Math.floor(gaps.length / 2)] : 1;
    this.columns.forEach((column, at) => {
      const next = at + 1 < starts.length ? starts[at + 1] : Infinity;
      column.end = Math.max(column.last + 1, Math.min(next, column.first + LONGEST_GAP * usual));
      if (next === Infinity) column.end = column.last + 1;
    });
  }

  #scale() {
    return linear(this.view.from, this.view.to + 1, 0, this.width);
  }

  /** The row's look in a column: its kind, and the number that says it. */
  #cellOf(row, column) {
    let found = { kind: "absent", value: 0 };
    const order = ["absent", "zero", "finite", "infinite", "nan"];
    for (const layer of row.layers) {
      const series = this.byLayer.get(layer.name);
      if (!series) continue;
      const at = column.at;
      const kind = kindOf(series.values[at], series.count[at], series.nonfinite[at], series.infinite[at]);
      const rank = order.indexOf(kind) - order.indexOf(found.kind);
      if (rank > 0 || (rank === 0 && Math.abs(series.values[at]) > Math.abs(found.value))) {
        found = { kind, value: series.values[at], layer };
      }
    }
    return found;
  }

  draw() {
    if (!this.view || !this.width) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.max(1, Math.round(this.width * ratio));
    const rowHeight = Math.max(1, Math.round(this.rowHeight * ratio));
    const height = Math.max(1, rowHeight * this.rows.length);
    this.canvas.width = width;
    this.canvas.height = height;
    this.canvas.style.height = `${this.rowHeight * this.rows.length}px`;
    this.plot.style.height = `${this.rowHeight * this.rows.length}px`;
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const scale = linear(this.view.from, this.view.to + 1, 0, width);
    const paint = painter(this.statistic, this.domain);
    const edges = this.columns.map((column) => [Math.floor(scale(column.first)), Math.max(Math.floor(scale(column.first)) + 1, Math.ceil(scale(column.end)))]);
    const striped = [];
    this.rows.forEach((row, index) => {
      const top = index * rowHeight;
      const line = pixels.subarray(top * width, (top + 1) * width);
      this.columns.forEach((column, at) => {
        const { kind, value } = this.#cellOf(row, column);
        if (kind === "absent") return;
        const [left, right] = [Math.max(0, edges[at][0]), Math.min(width, edges[at][1])];
        if (right <= left) return;
        line.fill(kind === "finite" ? paint(value) : PACKED[kind][0], left, right);
        if (kind === "nan" || kind === "infinite") striped.push([kind, left, right, top]);
      });
      const gap = rowHeight > 6 ? 1 : 0; // a hair of background between rows
      for (let offset = 1; offset < rowHeight - gap; offset += 1) {
        pixels.copyWithin((top + offset) * width, top * width, (top + 1) * width);
      }
    });
    for (const [kind, left, right, top] of striped) {
      const slope = kind === "nan" ? 1 : -1;
      for (let y = top; y < top + rowHeight; y += 1) {
        for (let x = left; x < right; x += 1) {
          pixels[y * width + x] = PACKED[kind][(((x + slope * y) % 8) + 8) % 8 < 2 ? 1 : 0];
        }
      }
    }
    context.putImageData(image, 0, 0);
    this.#drawAxis();
    this.#drawMarks();
    this.#drawOverlay();
    this.#drawLegend();
    if (this.table.open) this.#fillTable();
  }

  #drawAxis() {
    const scale = this.#scale();
    const left = this.plot.offsetLeft;
    this.axis.replaceChildren();
    this.axis.setAttribute("width", left + this.width);
    for (const tick of scale.ticks(Math.max(2, Math.floor(this.width / 110)), true)) {
      const x = left + scale(tick);
      if (x > left + this.width - 4) continue;
      this.axis.append(
        svg("line", { x1: x, x2: x, y1: 0, y2: 5 }),
        svg("text", { x, y: 17, "text-anchor": x < left + 20 ? "start" : "middle" }, integer(tick)),
      );
    }
    this.axis.append(svg("text", { x: left + this.width, y: 31, "text-anchor": "end", class: "unit" }, "step"));
  }

  /** Findings and changes of the verdict, above the columns where they began. */
  #drawMarks() {
    if (!this.view) return;
    const scale = this.#scale();
    const left = this.plot.offsetLeft;
    const inside = this.marks.filter(({ step }) => step >= this.view.from && step <= this.view.to);
    inside.sort((one, other) => one.step - other.step);
    this.flags.replaceChildren();
    const ends = [];
    for (const mark of inside) {
      const flag = el("button", { type: "button", class: "flag", "data-verdict": mark.verdict, title: mark.title }, mark.label);
      flag.addEventListener("click", () => this.handlers.select(mark.layer ?? this.selected.layer, mark.step));
      this.flags.append(flag);
      const x = left + scale(mark.step + 0.5);
      const width = flag.offsetWidth;
      const start = Math.min(x, left + this.width - width);
      let level = ends.findIndex((end) => end <= start - 4);
      if (level < 0) level = ends.push(0) - 1;
      ends[level] = start + width;
      flag.style.left = `${start}px`;
      flag.style.top = `${level * 26}px`;
    }
    this.flags.style.height = `${ends.length * 26}px`;
    this.#drawOverlay();
  }

  #drawOverlay() {
    if (!this.view) return;
    const scale = this.#scale();
    const height = this.rowHeight * this.rows.length;
    this.overlay.setAttribute("width", this.width);
    this.overlay.setAttribute("height", height);
    this.overlay.replaceChildren();
    for (const mark of this.marks) {
      if (mark.step < this.view.from || mark.step > this.view.to) continue;
      const x = scale(mark.step);
      this.overlay.append(svg("line", { x1: x, x2: x, y1: 0, y2: height, class: "mark", "data-verdict": mark.verdict }));
    }
    const { layer, step } = this.selected;
    if (step !== null && step >= this.view.from && step <= this.view.to) {
      const x = scale(step + 0.5);
      this.overlay.append(svg("line", { x1: x, x2: x, y1: 0, y2: height, class: "selected" }));
    }
    const row = this.rows.findIndex(({ layers }) => layers.some(({ name }) => name === layer));
    if (row >= 0) {
      this.overlay.append(svg("rect", { x: 1, y: row * this.rowHeight, width: Math.max(0, this.width - 2), height: this.rowHeight, class: "selected" }));
    }
    if (this.brush) {
      const [start, end] = this.brush.map((x) => Math.max(0, Math.min(this.width, x)));
      this.overlay.append(svg("rect", { x: Math.min(start, end), y: 0, width: Math.abs(end - start), height, class: "brush" }));
    }
    if (this.cursor) {
      const column = this.columns[this.cursor.column];
      const [x, end] = [scale(Math.max(column.first, this.view.from)), scale(Math.min(column.end, this.view.to + 1))];
      this.overlay.append(svg("rect", { x, y: this.cursor.row * this.rowHeight, width: Math.max(2, end - x), height: this.rowHeight, class: "cursor" }));
    }
  }

  #drawLegend() {
    const [low, high] = this.domain;
    const write = (value) => number(Number((isLinear(this.statistic) ? value : 10 ** value).toPrecision(2)));
    const stops = Array.from({ length: 10 }, (_, at) => `rgb(${viridis(at / 9).join(" ")}) ${(at / 9) * 100}%`);
    const bar = el("span", { class: "bar" });
    bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    const swatch = (kind) => {
      const box = el("span", { class: `swatch ${kind}` });
      return el("span", { class: "entry" }, box, SPECIAL[kind].label);
    };
    this.legend.replaceChildren(
      el("span", { class: "entry" }, `${words(this.statistic)}: ${write(low)}`, bar, write(high)),
      swatch("zero"), swatch("nan"), swatch("infinite"),
      el("span", { class: "entry" }, el("span", { class: "swatch absent" }), "not touched"),
    );
  }

  #labels() {
    this.gutter.replaceChildren();
    this.gutter.style.height = `${this.rowHeight * this.rows.length}px`;
    const whole = this.rowHeight * this.rows.length;
    const places = [];
    const isFree = (top, height) => places.every((other) => top >= other.top + other.height || other.top >= top + height);
    const heads = this.rows.map((row, index) => row.isFolded || (!row.isAlone && this.rows[index - 1]?.group !== row.group));
    const labelled = new Map(); // the heads of modules have the first choice of the room there is
    for (const wantsHead of [true, false]) {
      heads.forEach((isHead, index) => {
        const height = Math.max(this.rowHeight, isHead ? BUTTON_HEIGHT : LABEL_HEIGHT);
        const top = Math.max(0, Math.min(whole - height, (index + 0.5) * this.rowHeight - height / 2));
        if (isHead !== wantsHead || !isFree(top, height)) return;
        places.push({ top, height });
        labelled.set(index, { top, height });
      });
    }
    for (const [index, { top, height }] of [...labelled].sort(([one], [other]) => one - other)) {
      const row = this.rows[index];
      const isGroup = heads[index];
      let label;
      if (isGroup) {
        const text = row.isFolded ? `${row.group} (${row.layers.length})` : row.layers[0].name;
        label = el("button", { type: "button", class: "label group", title: row.isFolded ? row.group : row.layers[0].name, "aria-expanded": String(!row.isFolded) },
          el("span", { class: "arrow", "aria-hidden": "true" }, row.isFolded ? "▸" : "▾"), el("span", { class: "name" }, el("bdi", {}, text)));
        label.setAttribute("aria-label", `${row.isFolded ? "Unfold" : "Fold"} ${row.group}`);
        label.addEventListener("click", () => this.toggle(row.group));
      } else {
        label = el("span", { class: "label", title: row.label }, el("span", { class: "name" }, el("bdi", {}, row.label)));
      }
      label.style.top = `${top}px`;
      label.style.height = `${height}px`;
      this.gutter.append(label);
    }
  }

  toggle(group) {
    const folded = new Set(this.folded);
    if (!folded.delete(group)) folded.add(group);
    this.fold(folded);
  }

  foldAll(isFolded) {
    this.fold(new Set(isFolded ? foldable(this.layers) : []));
  }

  fold(folded) {
    this.setLayers(this.layers, folded);
    this.draw();
    this.handlers.fold([...folded]);
  }

  #resized() {
    if (this.lastWidth === this.width) return;
    const isFirst = this.lastWidth === undefined;
    this.lastWidth = this.width;
    this.draw();
    if (!isFirst) this.handlers.resized?.();
  }

  #cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top) / this.rowHeight);
    const step = this.#scale().invert(event.clientX - box.left);
    const column = this.columns.findIndex(({ first, end }) => step >= first && step < end);
    return row >= 0 && row < this.rows.length && column >= 0 ? { row, column } : null;
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch") return;
      canvas.setPointerCapture(event.pointerId);
      const x = event.clientX - canvas.getBoundingClientRect().left;
      this.brush = [x, x];
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.brush) {
        this.brush[1] = event.clientX - canvas.getBoundingClientRect().left;
        this.#drawOverlay();
        return;
      }
      this.#point(this.#cellAt(event), event);
    });
    canvas.addEventListener("pointerup", (event) => {
      const brush = this.brush;
      this.brush = null;
      if (brush && Math.abs(brush[1] - brush[0]) >= LEAST_DRAG) {
        const scale = this.#scale();
        const [from, to] = brush.map((x) => Math.floor(scale.invert(x))).sort((one, other) => one - other);
        this.handlers.zoom(from, to);
        return;
      }
      const cell = this.#cellAt(event);
      if (cell) {
        this.#point(cell, event);
        this.#select();
      }
      this.#drawOverlay();
    });
    canvas.addEventListener("pointercancel", () => { this.brush = null; this.#drawOverlay(); });
    canvas.addEventListener("pointerleave", () => { if (!this.brush && document.activeElement !== canvas) this.#point(null); });
    canvas.addEventListener("dblclick", () => this.handlers.zoom(null, null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("focus", () => {
      if (!this.cursor && this.columns.length && canvas.matches(":focus-visible")) this.#point(this.#startCell());
    });
    canvas.addEventListener("blur", () => this.#point(null));
    this.table.addEventListener("toggle", () => { if (this.table.open) this.#fillTable(); });
  }

  /** Where the keyboard begins: at what is selected, else at the first cell. */
  #startCell() {
    const row = Math.max(0, this.rows.findIndex(({ layers }) => layers.some(({ name }) => name === this.selected.layer)));
    const step = this.selected.step ?? this.view.from;
    const column = Math.max(0, this.columns.findIndex(({ first, end }) => step >= first && step < end));
    return { row, column };
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.columns.length) return;
    const cell = this.cursor ?? this.#startCell();
    const far = event.shiftKey ? 10 : 1;
    const moves = {
      ArrowLeft: [0, -far], ArrowRight: [0, far], ArrowUp: [-far, 0], ArrowDown: [far, 0],
      PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -Infinity], End: [0, Infinity],
    };
    const clamp = (value, most) => Math.max(0, Math.min(most, value));
    if (event.key in moves) {
      const [down, right] = moves[event.key];
      this.#point({ row: clamp(cell.row + down, this.rows.length - 1), column: clamp(cell.column + right, this.columns.length - 1) });
    } else if (event.key === "Enter" || event.key === " ") this.#select();
    else if (event.key === "+" || event.key === "=") this.zoomBy(0.5, this.columns[cell.column].first);
    else if (event.key === "-" || event.key === "_") this.zoomBy(2, this.columns[cell.column].first);
    else if (event.key === "0") this.handlers.zoom(null, null);
    else if (event.key === "f" || event.key === "F") {
      const row = this.rows[cell.row];
      if (row.isFolded || !row.isAlone) {
        this.toggle(row.group);
        const again = this.rows.findIndex(({ group }) => group === row.group);
        this.#point({ row: Math.max(0, again), column: cell.column });
      }
    } else if (event.key === "Escape") this.#point(null);
    else return;
    event.preventDefault();
  }

  /** Show more or fewer steps around one; a factor of 0.5 shows half as many. */
  zoomBy(factor, around = null) {
    const { from, to } = this.view;
    const centre = around ?? (from + to) / 2;
    const span = Math.max(1, Math.round((to - from + 1) * factor));
    const share = (centre - from) / Math.max(1, to - from + 1);
    const first = Math.round(centre - span * share);
    this.handlers.zoom(first, first + span - 1);
  }

  panBy(share) {
    const { from, to } = this.view;
    const distance = Math.trunc((to - from + 1) * share) || Math.sign(share);
    this.handlers.zoom(from + distance, to + distance, true);
  }

  #select() {
    if (!this.cursor) return;
    const row = this.rows[this.cursor.row];
    const column = this.columns[this.cursor.column];
    const { layer } = this.#cellOf(row, column);
    this.handlers.select((layer ?? row.layers[0]).name, column.first);
  }

  /** Tell a cell in words; its minimum and maximum follow when they have come. */
  #point(cell, event = null) {
    if (!cell) {
      if (this.cursor) { this.cursor = null; this.#drawOverlay(); }
      this.tip.hidden = true;
      return;
    }
    const isSame = this.cursor && this.cursor.row === cell.row && this.cursor.column === cell.column;
    this.cursor = cell;
    if (!isSame) {
      this.#drawOverlay();
      const row = this.rows[cell.row];
      const column = this.columns[cell.column];
      const found = this.#cellOf(row, column);
      const layer = found.layer ?? row.layers[0];
      const series = this.byLayer.get(layer.name);
      this.#tell(row, column, layer, series, found.kind);
      clearTimeout(this.pending);
      if (series && series.count[column.at]) {
        this.pending = setTimeout(async () => {
          const asked = this.details.get(layer.name) ?? this.handlers.details(layer.name);
          this.details.set(layer.name, asked);
          const full = await asked.catch(() => null);
          const isStill = this.cursor && this.cursor.row === cell.row && this.cursor.column === cell.column;
          if (full && isStill && full.mean.length > column.at) this.#tell(row, column, layer, full, found.kind);
        }, this.details.has(layer.name) ? 0 : 90);
      }
    }
    this.#placeTip(event);
  }

  #tell(row, column, layer, series, kind) {
    const at = column.at;
    const count = series ? series.count[at] : 0;
    const finite = count - (series ? series.nonfinite[at] : 0);
    const pairs = [];
    if (!count) pairs.push(["", "not touched by an optimizer"]);
    else {
      const show = (name) => (finite > 0 && series[name] ? number(series[name][at]) : finite > 0 ? "…" : "–");
      pairs.push(["min", show("min")], ["mean", show("mean")], ["max", show("max")], ["values", integer(count)]);
      const nans = series.nonfinite[at] - series.infinite[at];
      pairs.push(["not finite", series.nonfinite[at] ? `${integer(series.nonfinite[at])} (${nans} NaN, ${series.infinite[at]} infinite)` : "0"]);
    }
    this.tip.replaceChildren(
      el("strong", {}, row.isFolded ? `${layer.name}, of ${row.layers.length} in ${row.group}` : layer.name),
      el("span", { class: "where" }, `${words(this.statistic)}, ${stepWords(column.first, column.last)}${kind === "nan" || kind === "infinite" ? `: ${SPECIAL[kind].label}` : ""}`),
      el("span", { class: "numbers" }, pairs.map(([name, value]) => el("span", {}, name ? `${name} ` : "", el("b", {}, value)))),
    );
  }

  #placeTip(event) {
    this.tip.hidden = false;
    const plot = this.plot.getBoundingClientRect();
    const root = this.root.getBoundingClientRect();
    const column = this.columns[this.cursor.column];
    const x = event ? event.clientX : plot.left + this.#scale()(column.first);
    const y = event ? event.clientY : plot.top + (this.cursor.row + 1) * this.rowHeight;
    const left = Math.max(0, Math.min(x - root.left + 14, root.width - this.tip.offsetWidth - 4));
    const fitsBelow = y + 16 + this.tip.offsetHeight < window.innerHeight;
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${y - root.top + (fitsBelow ? 16 : -16 - this.tip.offsetHeight)}px`;
  }

  #describe() {
    const bad = this.rows.filter((row) => row.layers.some(({ name }) => this.byLayer.get(name)?.nonfinite.some((count) => count > 0)));
    this.canvas.setAttribute("aria-label",
      `Heatmap of ${words(this.statistic)}: ${this.layers.length} layers, ${stepWords(this.view.from, this.view.to)}` +
      (bad.length ? `; values that are not finite in ${bad.slice(0, 3).map(({ label }) => label).join(", ")}${bad.length > 3 ? ` and ${bad.length - 3} more` : ""}` : "; every value is finite"));
  }

  #fillTable() {
    const head = ["Layer", "Lowest", "Highest", "Last", "Values", "NaN", "Infinite", "First not finite"];
    const body = this.layers.map(({ name }) => {
      const series = this.byLayer.get(name);
      let [low, high, last, count, nonfinite, infinite, since] = [Infinity, -Infinity, null, 0, 0, 0, null];
      for (const { at, first } of series ? this.columns : []) {
        count += series.count[at];
        nonfinite += series.nonfinite[at];
        infinite += series.infinite[at];
        if (series.nonfinite[at] && since === null) since = first;
        if (series.count[at] > series.nonfinite[at]) {
          low = Math.min(low, series.values[at]);
          high = Math.max(high, series.values[at]);
          last = series.values[at];
        }
      }
      const isKnown = low <= high;
      return [name, isKnown ? number(low) : "–", isKnown ? number(high) : "–", number(last), integer(count), integer(nonfinite - infinite), integer(infinite), since === null ? "–" : `step ${integer(since)}`];
    });
    const table = el("table", {},
      el("caption", {}, `${this.cell} of ${words(this.statistic)} per bucket, ${stepWords(this.view.from, this.view.to)}`),
      el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, body.map(([name, ...rest]) => el("tr", {}, el("th", { scope: "row" }, name), rest.map((text) => el("td", { class: "number" }, text))))));
    this.table.querySelector(".scroll")?.remove();
    this.table.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Heatmap as a table" }, table));
  }
}
