// The heatmap as a picture and as a table of its cells.

import { SPECIAL, isLinear, viridis } from "./colors.js";
import { svg } from "./dom.js";
import { number, steps as stepText, words } from "./format.js";
import { colorOf, imageOf, pictureOf, standAlone, textOf } from "./picture.js";

const PADDING = 12; // pixels around the picture
const TITLE_HEIGHT = 28;
const LEGEND_HEIGHT = 24;
const BAR = { width: 130, height: 12, parts: 64 };
const SPACE = 18; // between entries of the legend
const LETTER = 6.6; // about the width of a letter
const MAX_NAME = 34; // letters of a layer's name

/** Return the heatmap with names, axis and legend as a picture. */
export function drawPicture(heatmap) {
  const { canvas, overlay, axis, plot, gutter, width, rows, rowHeight, statistic, view } = heatmap;
  const left = Math.max(gutter.clientWidth, longestName(gutter) * LETTER + 2 * PADDING);
  const height = rowHeight * rows.length;
  const top = PADDING + TITLE_HEIGHT;
  const names = [...gutter.children].map((label) => textOf(shorten(label.querySelector(".name").textContent), {
    x: PADDING + left - 8, y: top + label.offsetTop + label.offsetHeight / 2 + 4, "text-anchor": "end", "font-size": 11.5,
  }, label.matches(".group") ? "--text" : "--muted"));
  const marks = standAlone(overlay);
  const steps = standAlone(axis);
  const axisTop = top + height;
  return pictureOf(left + width + 2 * PADDING, axisTop + axis.clientHeight + LEGEND_HEIGHT + PADDING,
    textOf(`${words(statistic)} of layers, ${stepText(view.from, view.to)}`, { x: PADDING, y: PADDING + 14, "font-size": 15, "font-weight": 600 }),
    ...names,
    imageOf(canvas, { x: PADDING + left, y: top, width, height }),
    svg("g", { transform: `translate(${PADDING + left},${top})` }, ...marks.children),
    svg("g", { transform: `translate(${PADDING + left - plot.offsetLeft},${axisTop})` }, ...steps.children),
    svg("g", { transform: `translate(${PADDING},${axisTop + axis.clientHeight})` }, ...legendOf(heatmap)));
}

const longestName = (gutter) => Math.min(MAX_NAME, Math.max(0, ...[...gutter.children].map((label) => label.querySelector(".name").textContent.length)));
const shorten = (name) => (name.length > MAX_NAME ? `…${name.slice(1 - MAX_NAME)}` : name);

function legendOf({ statistic, domain: [low, high] }) {
  const write = (value) => number(Number((isLinear(statistic) ? value : 10 ** value).toPrecision(2)));
  const elements = [];
  let x = 0;
  const addText = (text) => {
    elements.push(textOf(text, { x, y: 17, "font-size": 12 }, "--muted"));
    x += text.length * LETTER + 8;
  };
  addText(`${words(statistic)}: ${write(low)}`);
  for (let part = 0; part < BAR.parts; part += 1) {
    elements.push(svg("rect", { x: x + (part * BAR.width) / BAR.parts, y: 7, width: BAR.width / BAR.parts + 0.5, height: BAR.height, fill: `rgb(${viridis(part / (BAR.parts - 1)).join(",")})` }));
  }
  x += BAR.width + 8;
  addText(write(high));
  for (const { color, label } of Object.values(SPECIAL)) {
    x += SPACE;
    elements.push(svg("rect", { x, y: 7, width: 16, height: BAR.height, fill: `rgb(${color.join(",")})`, stroke: colorOf("--strong-line") }));
    x += 22;
    addText(label);
  }
  x += SPACE;
  addText("paler: not sampled, the last sample");
  return elements;
}

/** Return the cells of the heatmap as rows of a table. A cell without a value is left out. */
export function cellRows({ layers, columns, seriesByLayer, statistic, cell }) {
  const head = ["layer", "first_step", "last_step", `${cell}_${statistic}`, "values", "nan", "infinite"];
  const rows = layers.flatMap(({ name }) => {
    const series = seriesByLayer.get(name);
    return columns.filter(({ index }) => series?.count[index]).map(({ index, first, last }) => {
      const [count, nonfinite, infinite] = [series.count[index], series.nonfinite[index], series.infinite[index]];
      return [name, first, last, count > nonfinite ? series.values[index] : null, count, nonfinite - infinite, infinite];
    });
  });
  return [head, ...rows];
}
