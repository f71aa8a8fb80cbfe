// Draws the axes of the heatmap: steps below, layers and modules to the left, findings and verdict changes above.

import { el, svg } from "./dom.js";
import { integer } from "./format.js";
import { nameShortener } from "./layer_names.js";

const LABEL_HEIGHT = 15;
const BUTTON_HEIGHT = 24; // smallest target for a finger (WCAG 2.5.8)
const ARROW_WIDTH = 26; // of the button of a module, with its margin, in pixels
const SMALLEST_WIDTH = 60; // of a name, in pixels, where the page is not laid out yet
const FLAG_HEIGHT = 26;
const FLAG_GAP = 4;

/** Return a function from a name to the text that fits into the gutter. */
function shortenerOf(gutter, names) {
  const label = gutter.appendChild(el("span", { class: "label" }));
  const context = document.createElement("canvas").getContext("2d");
  context.font = getComputedStyle(label).font;
  label.remove();
  return nameShortener(names, Math.max(SMALLEST_WIDTH, gutter.clientWidth - ARROW_WIDTH), (text) => context.measureText(text).width);
}

/** Draw the steps. */
export function drawStepAxis({ axis, plot, width, scale }) {
  const left = plot.offsetLeft;
  axis.replaceChildren();
  axis.setAttribute("width", left + width);
  for (const tick of scale.ticks(Math.max(2, Math.floor(width / 110)), true)) {
    const x = left + scale(tick);
    if (x > left + width - 4) continue;
    axis.append(
      svg("line", { x1: x, x2: x, y1: 0, y2: 5 }),
      svg("text", { x, y: 17, "text-anchor": x < left + 20 ? "start" : "middle" }, integer(tick)),
    );
  }
  axis.append(svg("text", { x: left + width, y: 31, "text-anchor": "end", class: "unit" }, "step"));
}

/** Draw a flag for each mark in view, above its step, in as many levels as the flags need; a click calls `select`. */
export function drawFlags({ flags, plot, marks, view, width, scale }, select) {
  const left = plot.offsetLeft;
  const inView = marks.filter(({ step }) => step >= view.from && step <= view.to);
  inView.sort((a, b) => a.step - b.step);
  flags.replaceChildren();
  const levelEnds = [];
  for (const mark of inView) {
    const flag = el("button", { type: "button", class: "flag", "data-verdict": mark.verdict, title: mark.title }, mark.label);
    flag.addEventListener("click", () => select(mark));
    flags.append(flag);
    const x = left + scale(mark.step + 0.5);
    const start = Math.min(x, left + width - flag.offsetWidth);
    let level = levelEnds.findIndex((end) => end <= start - FLAG_GAP);
    if (level < 0) level = levelEnds.push(0) - 1;
    levelEnds[level] = start + flag.offsetWidth;
    flag.style.left = `${start}px`;
    flag.style.top = `${level * FLAG_HEIGHT}px`;
  }
  flags.style.height = `${Math.max(1, levelEnds.length) * FLAG_HEIGHT}px`; // the first flag of a job that trains moves nothing
}

/** Draw the labels of rows: a button for the first row of a module, which calls `toggle`, and names where they fit. */
export function drawRowLabels({ gutter, rows, rowHeight }, toggle) {
  const height = rowHeight * rows.length;
  gutter.replaceChildren();
  gutter.style.height = `${height}px`;
  const shorten = shortenerOf(gutter, rows.map(({ label }) => label));
  const startsModule = rows.map((row, index) => row.isFolded || (!row.isAlone && rows[index - 1]?.group !== row.group));
  for (const { index, top, labelHeight } of placeLabels(startsModule, rowHeight, height)) {
    const label = startsModule[index] ? moduleButton(rows[index], toggle, shorten) : layerLabel(rows[index], shorten);
    label.style.top = `${top}px`;
    label.style.height = `${labelHeight}px`;
    gutter.append(label);
  }
}

/** Return `{index, top, labelHeight}` of each label that fits, by row. Modules are placed first. */
function placeLabels(startsModule, rowHeight, height) {
  const placed = [];
  const isFree = (top, labelHeight) => placed.every((label) => top >= label.top + label.labelHeight || label.top >= top + labelHeight);
  for (const isModule of [true, false]) {
    startsModule.forEach((starts, index) => {
      const labelHeight = Math.max(rowHeight, starts ? BUTTON_HEIGHT : LABEL_HEIGHT);
      const top = Math.max(0, Math.min(height - labelHeight, (index + 0.5) * rowHeight - labelHeight / 2));
      if (starts === isModule && isFree(top, labelHeight)) placed.push({ index, top, labelHeight });
    });
  }
  return placed.sort((a, b) => a.index - b.index);
}

function moduleButton(row, toggle, shorten) {
  const [title, text] = row.isFolded ? [row.group, `${shorten(row.group)} (${row.layers.length})`] : [row.layers[0].name, shorten(row.layers[0].name)];
  const button = el("button", { type: "button", class: "label group", title, "aria-expanded": String(!row.isFolded), "aria-label": `${row.isFolded ? "Unfold" : "Fold"} ${row.group}` },
    el("span", { class: "arrow", "aria-hidden": "true" }, row.isFolded ? "▸" : "▾"), el("span", { class: "name" }, el("bdi", {}, text)));
  button.addEventListener("click", () => toggle(row.group));
  return button;
}

const layerLabel = (row, shorten) => el("span", { class: "label", title: row.label }, el("span", { class: "name" }, el("bdi", {}, shorten(row.label))));
