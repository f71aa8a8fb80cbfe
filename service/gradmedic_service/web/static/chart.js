// A chart of lines over steps or over depth: the mean, the range from minimum to maximum, and marks above for values that
// are not finite.
//
// It is SVG; the style sheet colours it, for light and dark. A line has up to some thousand points, each of them a bucket
// of steps.

import { AXES } from "./axes.js";
import { listenToBrush } from "./brush.js";
import { COMPACT, LARGE, drawChart, drawLegend, valueRange } from "./chart_drawing.js";
import { actionsOf } from "./chart_export.js";
import { lastAtMost } from "./chart_points.js";
import { describe, readoutOf, tableOf, tipOf, valuesAt } from "./chart_text.js";
import { el, svg } from "./dom.js";
import { number, steps as stepText } from "./format.js";
import { menuButton } from "./menu.js";
import { smooth } from "./smoothing.js";

export { CONTROL, lineStyle, pointsOf } from "./chart_points.js";

const FAR = 10; // points that a move with Shift or Page passes
const NEAR_SHARE = 0.015; // of the axis, in which points of several lines count as one place
const TIP_DISTANCE = 14; // pixels from the pointer

export class Chart {
  /**
   * options: `title`; `scale`: "linear" or "log"; `onScale(scale)`: called when the reader changes it; `onSelect(x)`: called
   * when the reader selects a point, with its step; `onZoom(from, to)`: called when the reader chooses a range, in units of
   * the axis, null and null for all; `zoomsItself`: whether the chart keeps the chosen range itself, because no other chart
   * has its axis; `onPoint(x)`: called when the reader points at a place of the axis, null at none;
   * `describeX(point)`: text of a point's place, its steps by default; `unit` of the horizontal axis; `dots`: whether to draw
   * points without lines; `heading`: h3 by default; `height` in pixels; `cutsOutliers`: whether few values far above all
   * others, as of a run that explodes, are drawn at the upper edge; `compact`: whether it is one of many small charts;
   * `fileName(title)`: name of saved files, the title by default; `sources()`: where every step of its lines is read,
   * `[{runId, runName, query}]`, see `chart_export.js`; `actions()`: further `{label, run()}` of its menu.
   */
  constructor(root, options) {
    this.options = {
      describeX: (point) => stepText(point.x, point.last ?? point.x),
      ...(options.zoomsItself && { onZoom: (from, to) => this.#zoomItself(from, to) }), ...options,
    };
    this.layout = options.compact ? COMPACT : LARGE;
    this.scale = options.scale ?? "linear";
    this.axis = AXES.step;
    this.lines = [];
    this.marks = [];
    this.selected = null; // step
    this.at = null; // place of the axis that is pointed at
    this.brush = null; // [start, end] of a drag, in pixels
    this.data = null; // what `setData` was called with
    this.range = null; // {from, to} of the axis that the reader has chosen, if the chart keeps it
    this.emptyText = "no values in these steps";
    this.root = root;
    this.title = el(options.heading ?? "h3", {}, options.title);
    this.value = el("span", { class: "value", hidden: !options.compact });
    this.note = el("p", { class: "note muted", hidden: true });
    this.height = options.height ?? this.layout.height;
    this.svg = svg("svg", { class: "chart", height: this.height, role: "img", tabindex: "0" });
    this.readout = el("p", { class: options.compact ? "hidden" : "readout", role: "status", "aria-live": "polite" });
    this.tip = el("div", { class: "tip", "aria-hidden": "true", hidden: true });
    this.legend = el("ul", { class: "key" });
    this.table = el("details", { class: "data-table", hidden: options.compact }, el("summary", {}, "Show as a table"));
    this.scaleButton = el("button", { type: "button", class: "scale" });
    this.scaleButton.addEventListener("click", () => {
      this.scale = this.scale === "log" ? "linear" : "log";
      this.draw();
      this.options.onScale?.(this.scale);
    });
    const reset = { label: "Reset the zoom", run: () => this.options.onZoom(null, null) };
    this.menu = menuButton(() => [...(this.range ? [reset] : []), ...actionsOf(this), ...(options.actions?.() ?? [])]);
    root.append(
      el("div", { class: "head" }, this.title, this.value, el("span", { class: "tools" }, this.scaleButton, this.menu.root)),
      this.note, el("div", { class: "canvas" }, this.svg, this.tip), this.readout, this.legend, this.table,
    );
    if (options.onZoom) this.svg.classList.add("zooms");
    listenToBrush(this.svg, {
      mayDrag: () => Boolean(this.options.onZoom && this.xScale),
      point: (event) => this.#pointAt(this.#nearest(event), event),
      leave: () => this.#pointAt(null),
      mark: (range) => {
        if (range) this.#pointAt(null);
        this.brush = range;
        this.#drawBrush();
      },
      choose: (low, high) => this.options.onZoom(...[low, high].map((pixels) => this.#clamp(this.xScale.invert(pixels)))),
      click: (event) => this.#select(this.#nearest(event), event),
      reset: () => this.options.onZoom?.(null, null),
    });
    this.svg.addEventListener("blur", () => this.#pointAt(null));
    this.svg.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.altKey && this.#applyKey(event)) event.preventDefault();
    });
    this.table.addEventListener("toggle", () => { if (this.table.open) this.#fillTable(); });
    new ResizeObserver(() => { if (this.width !== this.svg.clientWidth) this.draw(); }).observe(this.svg);
  }

  setTitle(text) {
    this.title.textContent = text;
  }

  setHeight(height) {
    this.height = height;
    this.svg.setAttribute("height", height);
    this.draw();
  }

  /**
   * Show `lines: [{name, fullName?, points, index?, isFit?, clock?}]` from `from` to `to` of the horizontal axis, with a note
   * below the title. `fullName` distinguishes lines of one name. On an axis of `AXES` that needs clocks, `from` and `to` are
   * in its units, and a line without a clock is left out. `smoothing`, from 0 to below 1, draws a smoothed line over each
   * line, which becomes paler.
   */
  setData(data) {
    this.data = data;
    const { lines, note = "", axis = AXES.step, smoothing = 0 } = data;
    const { from, to } = this.range ?? data;
    this.axis = axis;
    this.lines = lines.map((line, index) => ({ index, ...line })).filter(({ clock }) => !axis.needsClock || clock).map((line) => {
      const isInView = ({ x, last }) => axis.place(line.clock, last ?? x) >= from && axis.place(line.clock, x) <= to;
      const points = line.points.filter(isInView); // others are left from the steps that were in view before
      return {
        ...line, points, places: points.map(({ x }) => axis.place(line.clock, x)),
        smoothed: smoothing > 0 && !line.isFit ? smooth(points, smoothing) : null,
      };
    });
    this.from = from;
    this.to = to;
    this.noteText = note;
    this.draw();
  }

  setMarks(marks) {
    this.marks = marks;
    this.draw();
  }

  /** Mark a step as selected; null marks none. */
  setSelected(step) {
    this.selected = step;
    this.draw();
  }

  /** Return the place of a step on the axis, by the clock of a line. */
  placeOf(step, line = this.lines[0]) {
    return this.axis.place(line?.clock, step);
  }

  /**
   * Return the point of a line whose bucket contains a place of the axis, else one that is so near that a reader cannot tell
   * them apart, else undefined.
   */
  pointOf({ points, places, clock }, x) {
    const at = lastAtMost(places, x);
    const [before, after] = [points[at], points[at + 1]];
    if (before && (places[at] === x || x <= this.axis.place(clock, before.last ?? before.x))) return before;
    const isNearer = after && (!before || places[at + 1] - x < x - places[at]);
    const nearest = isNearer ? at + 1 : at;
    return Math.abs(places[nearest] - x) <= (this.to - this.from) * NEAR_SHARE ? points[nearest] : undefined;
  }

  draw() {
    this.width = this.svg.clientWidth;
    this.scaleButton.textContent = this.scale === "log" ? "log" : "linear";
    this.scaleButton.setAttribute("aria-label", `Vertical axis of ${this.title.textContent}: ${this.scale}; switch scale`);
    this.menu.setName(`Menu of ${this.title.textContent}`);
    if (!this.width || this.from === undefined) return;
    const range = valueRange(this.lines, this.scale === "log", this.options.cutsOutliers);
    const cutNote = range && range.cut !== null && !this.options.compact ? `Values above ${number(range.high)} are drawn at the upper edge.` : "";
    this.note.textContent = [this.noteText, cutNote].filter(Boolean).join(" ");
    this.note.hidden = !this.note.textContent;
    this.svg.setAttribute("aria-label", describe(this, range));
    drawChart(this, range);
    if (this.options.compact) this.#showLast();
    this.cross = svg("line", { y1: this.layout.margin.top, y2: this.plotBottom, class: "cross", visibility: "hidden" });
    this.svg.append(this.cross);
    if (this.at !== null && (this.at < this.from || this.at > this.to)) this.#pointAt(null);
    this.#placeCross(this.at);
    this.#drawBrush();
    drawLegend(this);
    if (this.table.open) this.#fillTable();
  }

  /** Show a cross at a place that the reader points at in another chart; null shows none. */
  echo(x) {
    if (this.at === null) this.#placeCross(x);
  }

  /** Show or hide the points as a table. */
  toggleTable() {
    this.table.hidden = false;
    this.table.open = !this.table.open;
    if (!this.table.open) this.table.hidden = Boolean(this.options.compact);
    else this.table.querySelector("summary").focus();
  }

  /** Show a range of the axis, at least one unit wide; null and null, or a range that has everything, shows all. */
  #zoomItself(from, to) {
    const { from: first, to: last } = this.data;
    const middle = (from + to) / 2;
    const half = Math.max(to - from, 1) / 2;
    const range = { from: Math.max(first, middle - half), to: Math.min(last, middle + half) };
    this.range = from === null || (range.from === first && range.to === last) ? null : range;
    this.setData(this.data);
  }

  /** Show the last number of a line that is alone, beside the title. */
  #showLast() {
    const last = this.lines.length === 1 ? this.lines[0].points.at(-1) : null;
    this.value.textContent = !last ? "" : last.nan ? "NaN" : last.infinite ? "infinite" : number(last.y);
    this.value.title = last ? `mean of ${this.options.describeX(last)}` : "";
  }

  #drawBrush() {
    this.svg.querySelector(".brush")?.remove();
    if (!this.brush) return;
    const [low, high] = this.brush.map((x) => Math.max(this.layout.margin.left, Math.min(this.plotRight, x))).sort((a, b) => a - b);
    this.svg.append(svg("rect", { x: low, y: this.layout.margin.top, width: high - low, height: this.plotBottom - this.layout.margin.top, class: "brush" }));
  }

  #clamp(x) {
    return Math.max(this.from, Math.min(this.to, x));
  }

  /** Return the places of all points, in order. */
  #places() {
    return [...new Set(this.lines.flatMap(({ places, isFit }) => (isFit ? [] : places)))].sort((a, b) => a - b);
  }

  #nearest(event) {
    if (!this.xScale) return null;
    const pointed = this.xScale.invert(event.clientX - this.svg.getBoundingClientRect().left);
    let nearest = null;
    for (const { places, isFit } of this.lines) {
      if (isFit || !places.length) continue;
      const at = lastAtMost(places, pointed);
      for (const place of [places[Math.max(0, at)], places[Math.min(places.length - 1, at + 1)]]) {
        if (nearest === null || Math.abs(place - pointed) < Math.abs(nearest - pointed)) nearest = place;
      }
    }
    return nearest;
  }

  /** Select the step of a place, and keep pointing at it after a tap of a finger. */
  #select(x, event = null) {
    if (x === null) return;
    if (event?.pointerType === "touch") this.#pointAt(x, event);
    const line = this.lines.find((each) => !each.isFit && this.pointOf(each, x));
    if (line) this.options.onSelect?.(this.pointOf(line, x).x);
  }

  /** Carry out the action of a key; return whether the key has one. */
  #applyKey({ key, shiftKey }) {
    const places = this.#places();
    if (!places.length) return false;
    const current = this.at === null ? -1 : places.indexOf(this.at);
    const distance = shiftKey ? FAR : 1;
    const moves = {
      ArrowRight: current + distance, ArrowLeft: current < 0 ? places.length - 1 : current - distance,
      PageDown: current + FAR, PageUp: current - FAR, Home: 0, End: places.length - 1,
    };
    if (key in moves) this.#pointAt(places[Math.max(0, Math.min(places.length - 1, moves[key]))]);
    else if (key === "Enter" && this.at !== null) this.#select(this.at);
    else if (key === "Escape" && this.at !== null) this.#pointAt(null);
    else return Boolean(this.options.onZoom) && this.#applyZoomKey(key);
    return true;
  }

  #applyZoomKey(key) {
    const { from, to, at } = this;
    const centre = at ?? (from + to) / 2;
    const zoomBy = (factor) => this.options.onZoom(centre - (centre - from) * factor, centre + (to - centre) * factor);
    if (key === "+" || key === "=") zoomBy(0.5);
    else if (key === "-" || key === "_") zoomBy(2);
    else if (key === "0") this.options.onZoom(null, null);
    else if ((key === "s" || key === "S") && at !== null) this.options.onZoom(at, to);
    else if ((key === "e" || key === "E") && at !== null) this.options.onZoom(from, at);
    else return false;
    return true;
  }

  #placeCross(x) {
    if (!this.cross) return;
    const isShown = x !== null && x >= this.from && x <= this.to && Boolean(this.xScale);
    if (isShown) for (const end of ["x1", "x2"]) this.cross.setAttribute(end, this.xScale(x));
    this.cross.setAttribute("visibility", isShown ? "visible" : "hidden");
  }

  /** Point at a place: draw the cross and show the values of all lines there. null points nowhere. */
  #pointAt(x, event = null) {
    const isNew = this.at !== x;
    this.at = x;
    if (isNew) this.options.onPoint?.(x, this);
    this.#placeCross(x);
    if (x === null) {
      this.tip.hidden = true;
      this.readout.style.minHeight = `${this.readout.offsetHeight}px`; // so that what is below does not move away from a click
      this.readout.textContent = "";
      return;
    }
    const values = valuesAt(this, x);
    if (isNew) this.readout.textContent = readoutOf(this, values);
    if (this.options.compact) this.#showTip(values, x, event);
  }

  #showTip(values, x, event) {
    this.tip.hidden = !values.length;
    if (this.tip.hidden) return;
    this.tip.replaceChildren(...tipOf(this, values));
    const box = this.svg.getBoundingClientRect();
    const place = event ? event.clientX - box.left : this.xScale(x);
    const isLeft = place > this.width / 2;
    this.tip.style.left = `${isLeft ? Math.max(place - TIP_DISTANCE - this.tip.offsetWidth, -box.left) : place + TIP_DISTANCE}px`;
    this.tip.style.top = `${this.layout.margin.top}px`;
  }

  #fillTable() {
    this.table.querySelector(".scroll")?.remove();
    this.table.append(tableOf(this));
  }
}
