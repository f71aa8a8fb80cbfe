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
  const name = () => fileName(chart.options.fileName?.(chart.title.textContent) ?? chart.title.textContent);
  const save = (action) => () => action().catch(showError);
  const sources = chart.options.sources?.() ?? [];
  return [
    { label: "Save as PNG", run: save(async () => saveFile(await pngFile(drawPicture(chart)), `${name()}.png`)) },
    { label: "Save as SVG", run: save(async () => saveFile(svgFile(drawPicture(chart)), `${name()}.svg`)) },
    ...(sources.length ? [{ label: "Save as CSV: every step", run: save(async () => saveFile(await readTables(sources), `${name()}.csv`)) }] : []),
    { label: "Save as CSV: drawn points", run: save(async () => saveFile(csvFile(csvLines(pointRows(chart))), `${name()}-points.csv`)) },
    ...(chart.options.compact ? [{ label: chart.table.open ? "Hide the table" : "Show as a table", run: () => chart.toggleTable() }] : []),
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
export async function readTables(sources) {
  const texts = [];
  for (const { runId, query } of sources) texts.push(await readCsv(runId, query));
  if (sources.length === 1) return csvFile(texts[0]);
  const [head] = texts[0].split("\n", 1);
  const parts = [`run,${head.trimEnd()}\r\n`];
  for (const [at, { runName }] of sources.entries()) {
    const run = csvLines([[runName]]).trimEnd();
    for (const row of texts[at].split("\n").slice(1)) if (row.trim()) parts.push(`${run},${row.trimEnd()}\r\n`);
  }
  return csvFile(...parts);
}
