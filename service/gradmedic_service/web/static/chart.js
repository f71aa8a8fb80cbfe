// A chart of lines over steps or over depth: the mean, the range from minimum to maximum, and marks above for values that
// are not finite.
//
// It is SVG; the style sheet colours it, for light and dark. A line has up to some thousand points, each of them a bucket
// of steps.

import { el, svg } from "./dom.js";
import { integer, number, steps as stepText } from "./format.js";
import * as scales from "./scales.js";

const HEIGHT = 210;
const COLORS = 6;
const SHOWN_SHARE = 0.98; // with `cutsOutliers`, this share of the values is in the range of the axis, ...
const CUT_FACTOR = 10; // ... if the largest value is more than so many times higher
const MARGIN = { left: 62, right: 10, top: 16, bottom: 36 };
const GAP_DASH = "1 3"; // of a line over steps without a value, ...
const GAP_RADIUS = 1.8; // ... whose ends are dots
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "5 5", "1 4"];

/** Index of a line in the colour of text, for the unchanged control. */
export const CONTROL = -1;

/** Return the style of a line by its index: a colour and a dash, so that colour is not the only sign. */
export const lineStyle = (index) => (index === CONTROL
  ? { class: "line line-control", dash: "" }
  : { class: `line line-${index % COLORS}`, dash: DASHES[(index + Math.floor(index / COLORS)) % DASHES.length] });

/** Return the point of a line whose bucket contains a step. */
const pointAt = (points, x) => points.find((point) => point.x === x) ?? points.find((point) => point.x <= x && x <= (point.last ?? point.x));

/**
 * Return the stretches of a line, `{points, isGap}`: those whose buckets follow each other, and those over steps that are
 * stored without a value. A point without `last` is followed by the next one.
 */
function stretchesOf(points) {
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

/** Return the points of a series, one for each bucket with values, with the numbers of NaN and of infinite values. */
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

export class Chart {
  /**
   * options: `title`; `scale`: "linear" or "log"; `onScale(scale)`: called when the reader changes it; `onSelect(x)`: called
   * when the reader selects a point; `describeX(point)`: text of a point's place, its steps by default; `unit` of the
   * horizontal axis; `dots`: whether to draw points without lines; `heading`: h3 by default; `height` in pixels;
   * `cutsOutliers`: whether few values far above all others, as of a run that explodes, are drawn at the upper edge.
   */
  constructor(root, options) {
    this.options = { unit: "step", describeX: (point) => stepText(point.x, point.last ?? point.x), ...options };
    this.scale = options.scale ?? "linear";
    this.lines = [];
    this.marks = [];
    this.selected = null;
    this.at = null;
    this.title = el(options.heading ?? "h3", {}, options.title);
    this.note = el("p", { class: "note muted" });
    this.height = options.height ?? HEIGHT;
    this.svg = svg("svg", { class: "chart", height: this.height, role: "img", tabindex: "0" });
    this.readout = el("p", { class: "readout", role: "status", "aria-live": "polite" });
    this.legend = el("ul", { class: "key" });
    this.table = el("details", { class: "data-table" }, el("summary", {}, "Show as a table"));
    this.scaleButton = el("button", { type: "button", class: "scale" });
    this.scaleButton.addEventListener("click", () => {
      this.scale = this.scale === "log" ? "linear" : "log";
      this.draw();
      this.options.onScale?.(this.scale);
    });
    root.append(el("div", { class: "head" }, this.title, this.scaleButton), this.note, this.svg, this.readout, this.legend, this.table);
    this.svg.addEventListener("pointermove", (event) => this.#pointAt(this.#nearest(event)));
    this.svg.addEventListener("pointerleave", () => this.#pointAt(null));
    this.svg.addEventListener("click", (event) => {
      const x = this.#nearest(event);
      if (x !== null) this.options.onSelect?.(x);
    });
    this.svg.addEventListener("blur", () => this.#pointAt(null));
    this.svg.addEventListener("keydown", (event) => this.#applyKey(event));
    this.table.addEventListener("toggle", () => { if (this.table.open) this.#fillTable(); });
    new ResizeObserver(() => { if (this.width !== this.svg.clientWidth) this.draw(); }).observe(this.svg);
  }

  setTitle(text) {
    this.title.textContent = text;
  }

  /**
   * Show `lines: [{name, fullName?, points, index?, isFit?}]` from `from` to `to` of the horizontal axis, with a note below
   * the title. `fullName` distinguishes lines of one name.
   */
  setData({ lines, from, to, note = "" }) {
    this.lines = lines.map((line, index) => ({ index, ...line }));
    this.from = from;
    this.to = to;
    this.noteText = note;
    this.draw();
  }

  setMarks(marks) {
    this.marks = marks;
    this.draw();
  }

  setSelected(x) {
    this.selected = x;
    this.draw();
  }

  #valueRange() {
    let [low, high] = [Infinity, -Infinity];
    const values = [];
    for (const { points } of this.lines) {
      for (const point of points) {
        for (const value of [point.low ?? point.y, point.high ?? point.y]) {
          if (value === null || (this.scale === "log" && value <= 0)) continue;
          low = Math.min(low, value);
          high = Math.max(high, value);
          values.push(value);
        }
      }
    }
    if (low > high) return null;
    const cut = this.options.cutsOutliers ? Float64Array.from(values).sort()[Math.floor(SHOWN_SHARE * (values.length - 1))] : high;
    this.cut = cut < high / CUT_FACTOR ? cut : null;
    if (this.cut !== null) high = cut;
    if (this.scale === "log") return low === high ? [low / 2, high * 2] : [low / (high / low) ** 0.04, high * (high / low) ** 0.04];
    const margin = (high - low || Math.abs(high) || 1) * 0.05;
    return [low - margin, high + margin];
  }

  draw() {
    this.width = this.svg.clientWidth;
    this.scaleButton.textContent = this.scale === "log" ? "log" : "linear";
    this.scaleButton.setAttribute("aria-label", `Vertical axis of ${this.title.textContent}: ${this.scale}; switch scale`);
    if (!this.width || this.from === undefined) return;
    const range = this.#valueRange();
    const cutNote = range && this.cut !== null ? `Values above ${number(range[1])} are drawn at the upper edge.` : "";
    this.note.textContent = [this.noteText, cutNote].filter(Boolean).join(" ");
    this.note.hidden = !this.note.textContent;
    const hasPoints = this.lines.some(({ points }) => points.length);
    this.svg.replaceChildren();
    this.svg.setAttribute("aria-label", this.#describe(range));
    const [right, bottom] = [this.width - MARGIN.right, this.height - MARGIN.bottom];
    const x = scales.linear(this.from, Math.max(this.to, this.from + 1), MARGIN.left, right);
    this.xScale = x;
    if (!hasPoints) {
      this.svg.append(svg("text", { x: this.width / 2, y: this.height / 2, "text-anchor": "middle", class: "nothing" }, "no values in these steps"));
      this.#drawLegend();
      return;
    }
    const y = range && scales[this.scale](range[0], range[1], bottom, MARGIN.top);
    for (const tick of y ? y.ticks(4) : []) {
      this.svg.append(
        svg("line", { x1: MARGIN.left, x2: right, y1: y(tick), y2: y(tick), class: "rule" }),
        svg("text", { x: MARGIN.left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick)),
      );
    }
    for (const tick of x.ticks(Math.max(2, Math.floor(this.width / 100)), true)) {
      this.svg.append(svg("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, integer(tick)));
    }
    this.svg.append(svg("text", { x: right, y: this.height - 1, "text-anchor": "end", class: "unit" }, this.options.unit));
    for (const mark of this.marks) {
      if (mark.step < this.from || mark.step > this.to) continue;
      this.svg.append(svg("line", { x1: x(mark.step), x2: x(mark.step), y1: MARGIN.top, y2: bottom, class: "mark", "data-verdict": mark.verdict }, svg("title", {}, mark.title)));
    }
    for (const line of this.lines) this.#drawLine(line, x, y, bottom);
    if (this.selected !== null && this.selected >= this.from && this.selected <= this.to) {
      this.svg.append(svg("line", { x1: x(this.selected), x2: x(this.selected), y1: MARGIN.top, y2: bottom, class: "selected" }));
    }
    this.cross = svg("line", { y1: MARGIN.top, y2: bottom, class: "cross", visibility: "hidden" });
    this.svg.append(this.cross);
    this.#drawLegend();
    if (this.table.open) this.#fillTable();
  }

  #drawLine({ name, points, index, isFit }, x, y, bottom) {
    const canDraw = (value) => value !== null && (this.scale !== "log" || value > 0);
    const parts = []; // of the line, between points that cannot be drawn
    let part = [];
    for (const point of points) {
      if (canDraw(point.y)) part.push(point);
      else if (part.length) { parts.push(part); part = []; }
    }
    if (part.length) parts.push(part);
    const high = (value) => Math.max(y(value), MARGIN.top);
    const low = (point) => Math.min(high(canDraw(point.low) ? point.low : point.y), bottom);
    const group = svg("g", { class: `${lineStyle(index).class}${isFit ? " fit" : ""}` });
    for (const segment of parts) {
      if (!isFit && !this.options.dots && segment.some((point) => point.low !== point.high)) {
        const top = segment.map((point) => `${x(point.x).toFixed(1)},${high(point.high ?? point.y).toFixed(1)}`);
        const back = segment.map((point) => `${x(point.x).toFixed(1)},${low(point).toFixed(1)}`).reverse();
        group.append(svg("path", { d: `M${top.join("L")}L${back.join("L")}Z`, class: "range" }));
      }
      const place = (point) => `${x(point.x).toFixed(1)},${high(point.y).toFixed(1)}`;
      if (this.options.dots && !isFit) {
        for (const point of segment) group.append(svg("circle", { cx: x(point.x), cy: high(point.y), r: segment.length > 60 ? 2 : 3.2 }));
      } else if (segment.length === 1) {
        group.append(svg("circle", { cx: x(segment[0].x), cy: high(segment[0].y), r: 2.5 }));
      } else {
        for (const { points: stretch, isGap } of stretchesOf(segment)) {
          const path = `M${stretch.map(place).join("L")}`;
          group.append(svg("path", { d: path, class: isGap ? "gap" : null, "stroke-dasharray": isGap ? GAP_DASH : isFit ? "6 4" : lineStyle(index).dash }));
          if (isGap) group.append(...stretch.map((point) => svg("circle", { cx: x(point.x), cy: high(point.y), r: GAP_RADIUS })));
        }
      }
    }
    this.svg.append(group);
    const isAlone = this.lines.length === 1;
    for (const [at, point] of points.entries()) {
      const isBad = ({ nan, infinite }) => nan || infinite;
      if (!isBad(point) || (!isAlone && at > 0 && isBad(points[at - 1]))) continue; // of several lines, only the first point of each stretch is marked
      const [left, kind] = [x(point.x), point.nan ? "nan" : "infinite"];
      const top = MARGIN.top - 12;
      const shape = kind === "nan" ? `M${left - 4},${top}l8,8m0,-8l-8,8` : `M${left - 4},${top + 8}l4,-8l4,8z`;
      (isAlone ? this.svg : group).append(svg("path", { d: shape, class: `not-finite ${kind}` }, svg("title", {}, `${isAlone ? "" : `${name}: `}${kind === "nan" ? "NaN" : "infinite"}, ${this.options.describeX(point)}`)));
    }
  }

  #drawLegend() {
    const lines = this.lines.filter(({ name }, at) => this.lines.findIndex((line) => line.name === name) === at);
    this.legend.hidden = lines.length < 2;
    this.legend.replaceChildren(...lines.map(({ name, index, isFit }) => el("li", {},
      svg("svg", { width: 26, height: 10, "aria-hidden": "true", class: `${lineStyle(index).class}${isFit ? " fit" : ""}` },
        this.options.dots && !isFit ? svg("circle", { cx: 13, cy: 5, r: 3.2 }) : svg("path", { d: "M0,5H26", "stroke-dasharray": isFit ? "6 4" : lineStyle(index).dash })),
      name)));
  }

  #describe(range) {
    const what = `${this.title.textContent}${this.lines.length > 1 ? ` of ${this.lines.map(({ name }) => name).join(", ")}` : ""}`;
    const bad = this.lines.some(({ points }) => points.some(({ nan, infinite }) => nan || infinite));
    if (!range) return `${what}: ${bad ? "only values that are not finite" : "no values"}`;
    const ends = this.lines.filter(({ isFit }) => !isFit).map(({ points }) => points.filter(({ y }) => y !== null)).filter((points) => points.length)
      .map((points) => `from ${number(points[0].y)} to ${number(points.at(-1).y)}`);
    return `${what}: ${ends.join("; ")}${bad ? "; with values that are not finite" : ""}. Arrow keys show values.`;
  }

  #nearest(event) {
    if (!this.xScale) return null;
    const pointed = this.xScale.invert(event.clientX - this.svg.getBoundingClientRect().left);
    let nearest = null;
    for (const { x } of this.lines.flatMap(({ points, isFit }) => (isFit ? [] : points))) {
      if (nearest === null || Math.abs(x - pointed) < Math.abs(nearest - pointed)) nearest = x;
    }
    return nearest;
  }

  #applyKey(event) {
    const positions = [...new Set(this.lines.flatMap(({ points, isFit }) => (isFit ? [] : points.map(({ x }) => x))))].sort((a, b) => a - b);
    if (!positions.length) return;
    const current = this.at === null ? -1 : positions.indexOf(this.at);
    const moves = { ArrowRight: current + 1, ArrowLeft: current < 0 ? positions.length - 1 : current - 1, Home: 0, End: positions.length - 1 };
    if (event.key in moves) this.#pointAt(positions[Math.max(0, Math.min(positions.length - 1, moves[event.key]))]);
    else if (event.key === "Enter" && this.at !== null) this.options.onSelect?.(this.at);
    else return;
    event.preventDefault();
  }

  /** Point at a position: draw the cross and show the values of all lines there. null points nowhere. */
  #pointAt(x) {
    this.at = x;
    if (!this.cross) return;
    if (x === null) {
      this.cross.setAttribute("visibility", "hidden");
      this.readout.style.minHeight = `${this.readout.offsetHeight}px`; // so that what is below does not move away from a click
      this.readout.textContent = "";
      return;
    }
    this.cross.setAttribute("x1", this.xScale(x));
    this.cross.setAttribute("x2", this.xScale(x));
    this.cross.setAttribute("visibility", "visible");
    const texts = [];
    let where = "";
    for (const { name, fullName, points, isFit } of this.lines) {
      if (isFit) continue;
      const point = pointAt(points, x);
      if (!point) continue;
      where = this.options.describeX(point);
      const finite = point.y === null ? "" : point.low === point.high || point.low === undefined ? number(point.y) : `${number(point.y)} (${number(point.low)} to ${number(point.high)})`;
      const bad = [point.nan ? `${point.nan} NaN` : "", point.infinite ? `${point.infinite} infinite` : ""].filter(Boolean).join(", ");
      texts.push(`${this.lines.length > 1 ? `${fullName ?? name} ` : ""}${[finite, bad].filter(Boolean).join(", ")}`);
    }
    this.readout.textContent = `${where}: ${texts.join("; ")}`;
  }

  #fillTable() {
    const lines = this.lines.filter(({ isFit }) => !isFit);
    const rows = lines.flatMap(({ name, fullName, points }) => points.map((point) => el("tr", {},
      lines.length > 1 ? el("th", { scope: "row" }, fullName ?? name) : null,
      el("th", { scope: "row" }, this.options.describeX(point)),
      [point.low, point.y, point.high].map((value) => el("td", { class: "number" }, number(value))),
      el("td", { class: "number" }, integer(point.nan ?? 0)), el("td", { class: "number" }, integer(point.infinite ?? 0)))));
    const head = [...(lines.length > 1 ? ["Line"] : []), "Where", "Minimum", "Mean", "Maximum", "NaN", "Infinite"];
    this.table.querySelector(".scroll")?.remove();
    this.table.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${this.title.textContent} as a table` },
      el("table", {}, el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows))));
  }
}
