// Lines over steps (or over depth): mean with the range from minimum to maximum, and what is not finite marked above.
//
// SVG that the style sheet colours, so that light and dark need nothing here. Up to some thousand points a line; the
// service has made buckets of them.

import { el, svg } from "./dom.js";
import { integer, number, steps as stepWords } from "./format.js";
import * as scales from "./scales.js";

const HEIGHT = 210;
const COLORS = 6;
const SHOWN = 0.98; // of the values have room where `cuts`, and what is no more than so many times higher:
const MOST_ROOM = 10;
const MARGIN = { left: 62, right: 10, top: 16, bottom: 36 };
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "5 5", "1 4"];

/** What the others are measured by is a line in the colour of text. */
export const CONTROL = -1;

/** How a line looks by its index: colours, and dashes too, so that colour is not the only sign. */
export const lineStyle = (index) => (index === CONTROL
  ? { class: "line line-control", dash: "" }
  : { class: `line line-${index % COLORS}`, dash: DASHES[(index + Math.floor(index / COLORS)) % DASHES.length] });

/** The bucket of a line that a step is in. */
const pointAt = (points, x) => points.find((point) => point.x === x) ?? points.find((point) => point.x <= x && x <= (point.last ?? point.x));

/** Points of a series: what is not finite in a bucket is kept beside its numbers. */
export function pointsOf(table, series) {
  const points = [];
  for (let at = 0; at < table.first.length; at += 1) {
    if (!series.count[at]) continue;
    const isFinite = series.count[at] > series.nonfinite[at];
    points.push({
      x: table.first[at],
      last: table.last[at],
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
   * options: `title`, `scale` ("linear" or "log"), `toScale(scale)` when the reader changes it, `pick(x)` when a place is
   * chosen, `x` (how a place is told, steps by default), `unit` of the horizontal axis, `dots` for points without lines, `heading` (h3 by default), `height` in pixels, `cuts`:
   * whether rare values far above all others, as of a run that explodes beside those that do not, are drawn at the upper edge.
   */
  constructor(root, options) {
    this.options = { unit: "step", x: (point) => stepWords(point.x, point.last ?? point.x), ...options };
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
    this.key = el("ul", { class: "key" });
    this.table = el("details", { class: "behind" }, el("summary", {}, "The same as a table"));
    this.toggle = el("button", { type: "button", class: "scale" });
    this.toggle.addEventListener("click", () => {
      this.scale = this.scale === "log" ? "linear" : "log";
      this.draw();
      this.options.toScale?.(this.scale);
    });
    root.append(el("div", { class: "head" }, this.title, this.toggle), this.note, this.svg, this.readout, this.key, this.table);
    this.svg.addEventListener("pointermove", (event) => this.#point(this.#nearest(event)));
    this.svg.addEventListener("pointerleave", () => this.#point(null));
    this.svg.addEventListener("click", (event) => {
      const x = this.#nearest(event);
      if (x !== null) this.options.pick?.(x);
    });
    this.svg.addEventListener("blur", () => this.#point(null));
    this.svg.addEventListener("keydown", (event) => this.#key(event));
    this.table.addEventListener("toggle", () => { if (this.table.open) this.#fillTable(); });
    new ResizeObserver(() => { if (this.width !== this.svg.clientWidth) this.draw(); }).observe(this.svg);
  }

  setTitle(text) {
    this.title.textContent = text;
  }

  /** `lines: [{name, told?, points, index?, isFit?}]`; `told` tells lines of one name apart, `from` and `to` of the horizontal axis, `note` below the title. */
  setData({ lines, from, to, note = "" }) {
    this.lines = lines.map((line, index) => ({ index, ...line }));
    this.from = from;
    this.to = to;
    this.about = note;
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

  #range() {
    let [low, high] = [Infinity, -Infinity];
    const highs = [];
    for (const { points } of this.lines) {
      for (const point of points) {
        for (const value of [point.low ?? point.y, point.high ?? point.y]) {
          if (value === null || (this.scale === "log" && value <= 0)) continue;
          low = Math.min(low, value);
          high = Math.max(high, value);
          highs.push(value);
        }
      }
    }
    if (low > high) return null;
    const most = this.options.cuts ? Float64Array.from(highs).sort()[Math.floor(SHOWN * (highs.length - 1))] : high;
    this.cut = most < high / MOST_ROOM ? most : null;
    if (this.cut !== null) high = most;
    if (this.scale === "log") return low === high ? [low / 2, high * 2] : [low / (high / low) ** 0.04, high * (high / low) ** 0.04];
    const margin = (high - low || Math.abs(high) || 1) * 0.05;
    return [low - margin, high + margin];
  }

  draw() {
    this.width = this.svg.clientWidth;
    this.toggle.textContent = this.scale === "log" ? "log" : "linear";
    this.toggle.setAttribute("aria-label", `Vertical axis of ${this.title.textContent}: ${this.scale}; switch`);
    if (!this.width || this.from === undefined) return;
    const range = this.#range();
    const cut = range && this.cut !== null ? `What is higher than ${number(range[1])} is drawn at the upper edge.` : "";
    this.note.textContent = [this.about, cut].filter(Boolean).join(" ");
    this.note.hidden = !this.note.textContent;
    const hasPoints = this.lines.some(({ points }) => points.length);
    this.svg.replaceChildren();
    this.svg.setAttribute("aria-label", this.#summary(range));
    const [right, bottom] = [this.width - MARGIN.right, this.height - MARGIN.bottom];
    const x = scales.linear(this.from, Math.max(this.to, this.from + 1), MARGIN.left, right);
    this.x = x;
    if (!hasPoints) {
      this.svg.append(svg("text", { x: this.width / 2, y: this.height / 2, "text-anchor": "middle", class: "nothing" }, "nothing here in these steps"));
      this.#legend();
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
    this.#legend();
    if (this.table.open) this.#fillTable();
  }

  #drawLine({ name, points, index, isFit }, x, y, bottom) {
    const shown = (value) => value !== null && (this.scale !== "log" || value > 0);
    const parts = [];
    let part = [];
    for (const point of points) {
      if (shown(point.y)) part.push(point);
      else if (part.length) { parts.push(part); part = []; }
    }
    if (part.length) parts.push(part);
    const high = (value) => Math.max(y(value), MARGIN.top);
    const low = (point) => Math.min(high(shown(point.low) ? point.low : point.y), bottom);
    const group = svg("g", { class: `${lineStyle(index).class}${isFit ? " fit" : ""}` });
    for (const one of parts) {
      if (!isFit && !this.options.dots && one.some((point) => point.low !== point.high)) {
        const top = one.map((point) => `${x(point.x).toFixed(1)},${high(point.high ?? point.y).toFixed(1)}`);
        const back = one.map((point) => `${x(point.x).toFixed(1)},${low(point).toFixed(1)}`).reverse();
        group.append(svg("path", { d: `M${top.join("L")}L${back.join("L")}Z`, class: "range" }));
      }
      const path = one.map((point) => `${x(point.x).toFixed(1)},${high(point.y).toFixed(1)}`).join("L");
      if (this.options.dots && !isFit) {
        for (const point of one) group.append(svg("circle", { cx: x(point.x), cy: high(point.y), r: one.length > 60 ? 2 : 3.2 }));
      } else if (one.length === 1) {
        group.append(svg("circle", { cx: x(one[0].x), cy: high(one[0].y), r: 2.5 }));
      } else {
        group.append(svg("path", { d: `M${path}`, "stroke-dasharray": isFit ? "6 4" : lineStyle(index).dash }));
      }
    }
    this.svg.append(group);
    const isAlone = this.lines.length === 1;
    for (const [at, point] of points.entries()) {
      const isBad = ({ nan, infinite }) => nan || infinite;
      if (!isBad(point) || (!isAlone && at > 0 && isBad(points[at - 1]))) continue; // of several lines, where each goes bad
      const [place, kind] = [x(point.x), point.nan ? "nan" : "infinite"];
      const top = MARGIN.top - 12;
      const shape = kind === "nan" ? `M${place - 4},${top}l8,8m0,-8l-8,8` : `M${place - 4},${top + 8}l4,-8l4,8z`;
      (isAlone ? this.svg : group).append(svg("path", { d: shape, class: `not-finite ${kind}` }, svg("title", {}, `${isAlone ? "" : `${name}: `}${kind === "nan" ? "NaN" : "infinite"}, ${this.options.x(point)}`)));
    }
  }

  #legend() {
    const lines = this.lines.filter(({ name }, at) => this.lines.findIndex((line) => line.name === name) === at);
    this.key.hidden = lines.length < 2;
    this.key.replaceChildren(...lines.map(({ name, index, isFit }) => el("li", {},
      svg("svg", { width: 26, height: 10, "aria-hidden": "true", class: `${lineStyle(index).class}${isFit ? " fit" : ""}` },
        this.options.dots && !isFit ? svg("circle", { cx: 13, cy: 5, r: 3.2 }) : svg("path", { d: "M0,5H26", "stroke-dasharray": isFit ? "6 4" : lineStyle(index).dash })),
      name)));
  }

  #summary(range) {
    const what = `${this.title.textContent}${this.lines.length > 1 ? ` of ${this.lines.map(({ name }) => name).join(", ")}` : ""}`;
    const bad = this.lines.some(({ points }) => points.some(({ nan, infinite }) => nan || infinite));
    if (!range) return `${what}: ${bad ? "only values that are not finite" : "nothing to show"}`;
    const ends = this.lines.filter(({ isFit }) => !isFit).map(({ points }) => points.filter(({ y }) => y !== null)).filter((points) => points.length)
      .map((points) => `from ${number(points[0].y)} to ${number(points.at(-1).y)}`);
    return `${what}: ${ends.join("; ")}${bad ? "; with values that are not finite" : ""}. Arrow keys read values.`;
  }

  #nearest(event) {
    if (!this.x) return null;
    const place = this.x.invert(event.clientX - this.svg.getBoundingClientRect().left);
    let best = null;
    for (const point of this.lines.flatMap(({ points, isFit }) => (isFit ? [] : points))) {
      if (best === null || Math.abs(point.x - place) < Math.abs(best - place)) best = point.x;
    }
    return best;
  }

  #key(event) {
    const places = [...new Set(this.lines.flatMap(({ points, isFit }) => (isFit ? [] : points.map(({ x }) => x))))].sort((one, other) => one - other);
    if (!places.length) return;
    const now = this.at === null ? -1 : places.indexOf(this.at);
    const moves = { ArrowRight: now + 1, ArrowLeft: now < 0 ? places.length - 1 : now - 1, Home: 0, End: places.length - 1 };
    if (event.key in moves) this.#point(places[Math.max(0, Math.min(places.length - 1, moves[event.key]))]);
    else if (event.key === "Enter" && this.at !== null) this.options.pick?.(this.at);
    else return;
    event.preventDefault();
  }

  #point(place) {
    this.at = place;
    if (!this.cross) return;
    if (place === null) {
      this.cross.setAttribute("visibility", "hidden");
      this.readout.style.minHeight = `${this.readout.offsetHeight}px`; // so that nothing below moves away from a click
      this.readout.textContent = "";
      return;
    }
    this.cross.setAttribute("x1", this.x(place));
    this.cross.setAttribute("x2", this.x(place));
    this.cross.setAttribute("visibility", "visible");
    const told = [];
    let where = "";
    for (const { name, told: title, points, isFit } of this.lines) {
      if (isFit) continue;
      const point = pointAt(points, place);
      if (!point) continue;
      where = this.options.x(point);
      const finite = point.y === null ? "" : point.low === point.high || point.low === undefined ? number(point.y) : `${number(point.y)} (${number(point.low)} to ${number(point.high)})`;
      const bad = [point.nan ? `${point.nan} NaN` : "", point.infinite ? `${point.infinite} infinite` : ""].filter(Boolean).join(", ");
      told.push(`${this.lines.length > 1 ? `${title ?? name} ` : ""}${[finite, bad].filter(Boolean).join(", ")}`);
    }
    this.readout.textContent = `${where}: ${told.join("; ")}`;
  }

  #fillTable() {
    const lines = this.lines.filter(({ isFit }) => !isFit);
    const rows = lines.flatMap(({ name, told: title, points }) => points.map((point) => el("tr", {},
      lines.length > 1 ? el("th", { scope: "row" }, title ?? name) : null,
      el("th", { scope: "row" }, this.options.x(point)),
      [point.low, point.y, point.high].map((value) => el("td", { class: "number" }, number(value))),
      el("td", { class: "number" }, integer(point.nan ?? 0)), el("td", { class: "number" }, integer(point.infinite ?? 0)))));
    const head = [...(lines.length > 1 ? ["Line"] : []), "Where", "Minimum", "Mean", "Maximum", "NaN", "Infinite"];
    this.table.querySelector(".scroll")?.remove();
    this.table.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${this.title.textContent} as a table` },
      el("table", {}, el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows))));
  }
}
