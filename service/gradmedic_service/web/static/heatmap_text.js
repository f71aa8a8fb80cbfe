// The heatmap in words: the tip of a cell, the description for a screen reader, and the table of the layers.

import { SPECIAL } from "./colors.js";
import { el } from "./dom.js";
import { integer, number, steps as stepText, words } from "./format.js";

/** Return the elements of a cell's tip; a number that `series` does not have yet is an ellipsis. */
export function tipOf({ row, column, layer, series, kind, statistic, isHeld = false }) {
  const at = column.index;
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
  const place = stepText(column.first, column.last);
  return [
    el("strong", {}, row.isFolded ? `${layer.name}, of ${row.layers.length} layers in ${row.group}` : layer.name),
    el("span", { class: "where" }, `${words(statistic)}, ${isHeld ? `not sampled here; the last sample is of ${place}` : place}${kind === "nan" || kind === "infinite" ? `: ${SPECIAL[kind].label}` : ""}`),
    el("span", { class: "numbers" }, pairs.map(([name, value]) => el("span", {}, name ? `${name} ` : "", el("b", {}, value)))),
  ];
}

/** Return the description of the whole heatmap. */
export function describe({ statistic, layers, rows, seriesByLayer, view }) {
  const badRows = rows.filter((row) => row.layers.some(({ name }) => seriesByLayer.get(name)?.nonfinite.some((count) => count > 0)));
  const named = badRows.slice(0, 3).map(({ label }) => label).join(", ");
  return `Heatmap of ${words(statistic)}: ${layers.length} layers, ${stepText(view.from, view.to)}` +
    (badRows.length ? `; values that are not finite in ${named}${badRows.length > 3 ? ` and ${badRows.length - 3} more` : ""}` : "; every value is finite");
}

/** Return a table with a row for each layer. */
export function tableOf({ layers, columns, seriesByLayer, statistic, cell, view }) {
  const head = ["Layer", "Lowest", "Highest", "Last", "Values", "NaN", "Infinite", "First not finite"];
  const body = layers.map(({ name }) => {
    const series = seriesByLayer.get(name);
    let [low, high, last, count, nonfinite, infinite, since] = [Infinity, -Infinity, null, 0, 0, 0, null];
    for (const { index, first } of series ? columns : []) {
      count += series.count[index];
      nonfinite += series.nonfinite[index];
      infinite += series.infinite[index];
      if (series.nonfinite[index] && since === null) since = first;
      if (series.count[index] > series.nonfinite[index]) {
        low = Math.min(low, series.values[index]);
        high = Math.max(high, series.values[index]);
        last = series.values[index];
      }
    }
    const isKnown = low <= high;
    return [name, isKnown ? number(low) : "–", isKnown ? number(high) : "–", number(last), integer(count), integer(nonfinite - infinite), integer(infinite), since === null ? "–" : `step ${integer(since)}`];
  });
  const table = el("table", {},
    el("caption", {}, `${cell} of ${words(statistic)} per bucket, ${stepText(view.from, view.to)}`),
    el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, body.map(([name, ...rest]) => el("tr", {}, el("th", { scope: "row" }, name), rest.map((text) => el("td", { class: "number" }, text))))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Heatmap as a table" }, table);
}
