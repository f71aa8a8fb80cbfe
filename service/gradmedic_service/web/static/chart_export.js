// Saves a chart: as a picture, or its values as CSV.

import { readCsv, showError } from "./api.js";
import { swatch } from "./chart_drawing.js";
import { svg } from "./dom.js";
import { csvFile, csvLines, fileName, saveFile } from "./files.js";
import { pictureOf, pngFile, standAlone, svgFile, textOf } from "./picture.js";

const PADDING = 12; // pixels around a picture
const TITLE_HEIGHT = 26;
const LEGEND_HEIGHT = 20;
const SWATCH = 34;

/**
 * Return the `{label, run()}` of the menu of a chart.
 *
 * `options.sources()` of the chart returns `[{runId, runName, query}]`: the series of its lines, by run, as a query of
 * `GET /runs/{id}/steps`. Without it, as where the lines are computed, only the drawn points can be saved.
 */
export function actionsOf(chart) {
  const { options, title, table } = chart;
  const name = () => fileName(options.fileName?.(title.textContent) ?? title.textContent);
  return [
    ...pictureActions(name, () => drawPicture(chart)),
    ...valueActions(name, options.sources?.() ?? [], () => pointRows(chart)),
    ...(options.compact ? [{ label: table.open ? "Hide the table" : "Show as a table", run: () => chart.toggleTable() }] : []),
  ];
}

/** Return a chart with its title, note and legend as a picture. */
function drawPicture(chart) {
  const entries = chart.lines.length > 1 ? chart.lines : [];
  const notes = chart.note.hidden ? [] : [chart.note.textContent];
  const top = PADDING + TITLE_HEIGHT + notes.length * LEGEND_HEIGHT;
  const height = top + chart.height + PADDING + entries.length * LEGEND_HEIGHT;
  const drawing = standAlone(chart.svg);
  const legend = entries.map((line, at) => {
    const y = top + chart.height + PADDING / 2 + at * LEGEND_HEIGHT;
    const hidden = chart.svg.appendChild(swatch(line, chart.options.dots)); // in the page, so that it has its colours
    const sample = svg("g", { transform: `translate(${PADDING},${y})` }, ...standAlone(hidden).children);
    hidden.remove();
    return svg("g", {}, sample, textOf(line.fullName ?? line.name, { x: PADDING + SWATCH, y: y + 9, "font-size": 12 }));
  });
  return pictureOf(chart.width + 2 * PADDING, height,
    textOf(chart.title.textContent, { x: PADDING, y: PADDING + 14, "font-size": 15, "font-weight": 600 }),
    ...notes.map((note) => textOf(note, { x: PADDING, y: PADDING + TITLE_HEIGHT + 8, "font-size": 12 }, "--muted")),
    svg("g", { transform: `translate(${PADDING},${top})` }, ...drawing.children), ...legend);
}

/** Return the drawn points as rows of a table. */
function pointRows(chart) {
  const lines = chart.lines.filter(({ isFit }) => !isFit);
  const isSmooth = lines.some(({ smoothed }) => smoothed);
  const hasTime = lines.some(({ clock }) => clock);
  const isNamed = lines.some(({ points }) => points.some(({ name }) => name !== undefined)); // over layers, not over steps
  const head = ["line", ...(isNamed ? ["name"] : ["first_step", "last_step"]), ...(hasTime ? ["time"] : []), "min", "mean", "max", ...(isSmooth ? ["smoothed"] : []), "nan", "infinite"];
  const rows = lines.flatMap((line) => {
    const smoothed = new Map(line.smoothed?.map(({ x, y }) => [x, y]));
    return line.points.map((point) => [
      line.fullName ?? line.name,
      ...(isNamed ? [point.name] : [point.x, point.last ?? point.x]),
      ...(hasTime ? [line.clock ? new Date(line.clock.timeAt(point.x) * 1000).toISOString() : null] : []),
      point.low, point.y, point.high,
      ...(isSmooth ? [smoothed.get(point.x)] : []), point.nan ?? 0, point.infinite ?? 0,
    ]);
  });
  return [head, ...rows];
}

/** Read every step of the sources as one CSV file; of several runs, with the name of the run in the first column. */
async function readTables(sources) {
  const [first, ...others] = sources;
  if (!others.length) return readCsv(first.runId, first.query);
  const parts = [];
  for (const { runId, runName, query } of sources) {
    const [head, ...rows] = (await (await readCsv(runId, query)).text()).trimEnd().split("\r\n");
    const [run] = csvLines([[runName]]).split("\r\n");
    if (!parts.length) parts.push(`run,${head}\r\n`);
    for (const row of rows) parts.push(`${run},${row}\r\n`);
  }
  return csvFile(...parts);
}

/** Return the `{label, run()}` that save a picture: `draw()` returns it, `name()` the name of the file. */
export function pictureActions(name, draw) {
  return [
    action("Save as PNG", async () => saveFile(await pngFile(draw()), `${name()}.png`)),
    action("Save as SVG", async () => saveFile(svgFile(draw()), `${name()}.svg`)),
  ];
}

/** Return the `{label, run()}` that save values: every step of the sources, and the drawn points, which `rows()` returns. */
export function valueActions(name, sources, rows) {
  return [
    ...(sources.length ? [action("Save as CSV: every step", async () => saveFile(await readTables(sources), `${name()}.csv`))] : []),
    action("Save as CSV: drawn points", async () => saveFile(csvFile(csvLines(rows())), `${name()}-points.csv`)),
  ];
}

const action = (label, run) => ({ label, run: () => run().catch(showError) });
