// A chart in words: the values at a place, the description for a screen reader, and the table of its points.

import { swatch } from "./chart_drawing.js";
import { el } from "./dom.js";
import { integer, number } from "./format.js";

/** Return the numbers of a point as texts: the mean; and the range, the smoothed mean, and how many are not finite. */
function numbersOf(point, smoothed) {
  const range = point.y === null || point.low === undefined || point.low === point.high ? "" : `${number(point.low)} to ${number(point.high)}`;
  return {
    mean: point.y === null ? "" : number(point.y),
    range,
    others: [smoothed === undefined ? "" : `smoothed ${number(smoothed)}`, point.nan ? `${point.nan} NaN` : "", point.infinite ? `${point.infinite} infinite` : ""].filter(Boolean),
  };
}

/** Return `{line, where, time, mean, range, others}` of each line at a place of the horizontal axis, as texts. */
export function valuesAt(chart, x) {
  return chart.lines.flatMap((line) => {
    const point = line.isFit ? null : chart.pointOf(line, x);
    if (!point) return [];
    const smoothed = line.smoothed?.find((each) => each.x === point.x)?.y;
    const time = line.clock ? chart.axis.write(line.clock, point.x) : "";
    return [{ line, where: chart.options.describeX(point), time, ...numbersOf(point, smoothed) }];
  });
}

/** Return the place that all values share, or "" if they are at different steps. */
const sharedPlace = ([first, ...rest]) => (rest.every(({ where }) => where === first.where) ? [first.where, first.time].filter(Boolean).join(", ") : "");

/** Return the values at a place as one sentence. */
export function readoutOf(chart, values) {
  if (!values.length) return "";
  const place = sharedPlace(values);
  const textOf = ({ mean, range, others }) => [range ? `${mean} (${range})` : mean, ...others].filter(Boolean).join(", ");
  const named = ({ line, where, ...numbers }) => `${chart.lines.length > 1 ? `${line.fullName ?? line.name} ` : ""}${place ? "" : `(${where}) `}${textOf(numbers)}`;
  return `${place || values[0].time}${place || values[0].time ? ": " : ""}${values.map(named).join("; ")}`;
}

/** Return the values at a place as the elements of a tip. */
export function tipOf(chart, values) {
  const place = sharedPlace(values);
  const isAlone = chart.lines.length === 1;
  const rows = values.map(({ line, where, mean, range, others }) => el("span", { class: "value" },
    isAlone ? null : [swatch(line), el("span", { class: "name" }, line.fullName ?? line.name)],
    mean ? el("b", {}, mean) : null,
    [isAlone ? range : "", ...others, place || values[0].time ? "" : where].filter(Boolean).map((text) => el("span", { class: "where" }, text))));
  return [el("span", { class: "where" }, place || values[0].time), ...rows];
}

/** Return the description of the whole chart. */
export function describe({ title, lines }, range) {
  const what = `${title.textContent}${lines.length > 1 ? ` of ${lines.map(({ name }) => name).join(", ")}` : ""}`;
  const bad = lines.some(({ points }) => points.some(({ nan, infinite }) => nan || infinite));
  if (!range) return `${what}: ${bad ? "only values that are not finite" : "no values"}`;
  const ends = lines.filter(({ isFit }) => !isFit).map(({ points }) => points.filter(({ y }) => y !== null)).filter((points) => points.length)
    .map((points) => `from ${number(points[0].y)} to ${number(points.at(-1).y)}`);
  return `${what}: ${ends.join("; ")}${bad ? "; with values that are not finite" : ""}. Arrow keys show values.`;
}

/** Return the points of all lines as a table. */
export function tableOf({ title, lines, options }) {
  const drawn = lines.filter(({ isFit }) => !isFit);
  const isNamed = drawn.length > 1;
  const rows = drawn.flatMap(({ name, fullName, points }) => points.map((point) => el("tr", {},
    isNamed ? el("th", { scope: "row" }, fullName ?? name) : null,
    el("th", { scope: "row" }, options.describeX(point)),
    [point.low, point.y, point.high].map((value) => el("td", { class: "number" }, number(value))),
    el("td", { class: "number" }, integer(point.nan ?? 0)), el("td", { class: "number" }, integer(point.infinite ?? 0)))));
  const head = [...(isNamed ? ["Line"] : []), "Where", "Minimum", "Mean", "Maximum", "NaN", "Infinite"];
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title.textContent} as a table` },
    el("table", {}, el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows)));
}
