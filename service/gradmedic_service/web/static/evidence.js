// The numbers of findings and causes, with their units.

import { el } from "./dom.js";
import { integer, number, words } from "./format.js";

const percent = (value) => (value > 0 && value < 1e-5 ? `${number(100 * value)} %` : `${number(Number((100 * value).toPrecision(3)))} %`);
const times = (unit = "") => (value) => `×${number(Number(value.toPrecision(3)))}${unit}`;
const count = (one, many = `${one}s`) => (value) => `${integer(Math.round(value))} ${Math.round(value) === 1 ? one : many}`;

// Units by the name of the number, the first that fits.
const UNITS = [
  [/^broadcasts$/, (value) => (value ? "yes" : "no")],
  [/_per_step$/, times(" per step")],
  [/^factor_per_time_step$/, times(" per time step")],
  [/^time_steps$/, count("time step")],
  [/steps$/, count("step")],
  [/_decades$/, (value) => `×${number(Number((10 ** value).toPrecision(2)))} (${number(Number(value.toPrecision(2)))} decades)`],
  [/log10_/, (value) => number(Number((10 ** value).toPrecision(3)))],
  [/(^|_)share($|_)|_fraction$|^loss_fallen$|^swing$/, percent],
  [/^step$|_step$/, (value) => `step ${integer(Math.round(value))}`],
  [/^update_to_weight$/, percent],
  [/(^|_)(growth|rise|factor|ratio)$|_over_reference$/, times()],
  [/^(layers_|saturated_layers|dead_layers)/, count("layer")],
  [/nonfinite_count$/, count("element")],
  [/^modules_/, count("module")],
  [/^routers_/, count("router")],
  [/^losses/, count("loss", "losses")],
  [/^spikes/, count("spike")],
  [/^bursts/, count("burst")],
  [/probes$/, count("probe")],
];

/** Return a number of the evidence with its unit. A number that is not finite is its name. */
export function quantity(name, value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return number(value);
  const unit = UNITS.find(([pattern]) => pattern.test(name));
  return unit ? unit[1](value) : number(value);
}

/** Return the pairs of names and numbers as terms of a list. */
export const pairsOf = (numbers) => Object.entries(numbers).map(([name, value]) => [el("dt", {}, words(name.replace(/log10_|_decades$/, ""))), el("dd", {}, quantity(name, value))]);

/** Return the evidence as a list that is folded; null if there is none. */
export const foldedEvidence = (numbers) => (Object.keys(numbers).length ? el("details", { class: "numbers" }, el("summary", {}, "Numbers"), el("dl", { class: "pairs" }, pairsOf(numbers))) : null);
