// The sentences on top of a comparison: what differs between the runs, and how they ended. Pure functions.

import { divides } from "./comparison_differences.js";
import { failingOf } from "./comparison_outcomes.js";
import { integer, number, words } from "./format.js";

const MAX_NAMED = 3; // settings named with their values
const MAX_NAMED_FACTS = 2; // facts of environment and model named with their values
const MAX_LISTED_VALUES = 3; // of a setting
const MAX_CLAUSES = 3; // runs with a clause of their own; more are counted
const MAX_VALUE_LENGTH = 28; // characters

/** Return items as text: "a", "a and b", "a, b and c". */
export const listOf = (items) => (items.length < 2 ? items.join("") : `${items.slice(0, -1).join(", ")} and ${items.at(-1)}`);

const plural = (count, noun) => `${integer(count)} ${noun}${count === 1 ? "" : "s"}`;
const shorten = (text) => (text.length > MAX_VALUE_LENGTH ? `${text.slice(0, MAX_VALUE_LENGTH - 1)}…` : text);

/** Return the values of a row in the order of the runs: each, if there are few, else the range or the distinct ones. */
function valuesText({ texts, values, isNumeric }) {
  const shown = (text) => (text === null ? "not set" : shorten(text));
  if (texts.length <= MAX_LISTED_VALUES) return texts.map(shown).join(", ");
  const distinct = [...new Set(texts)];
  if (distinct.length <= MAX_LISTED_VALUES) return distinct.map(shown).join(", ");
  const numbers = values.filter((value) => typeof value === "number");
  if (isNumeric) return `${number(Math.min(...numbers))} to ${number(Math.max(...numbers))}${numbers.length < values.length ? ", or not set" : ""}`;
  return `${distinct.slice(0, 2).map(shown).join(", ")} and ${distinct.length - 2} more`;
}

const named = (row) => `${row.key} (${valuesText(row)})`;

/** Return the facts, not measured, that no setting repeats: an optimizer's learning rate has the numbers of the setting `lr`. */
function newFacts(facts, settings) {
  const keyOf = ({ texts }) => JSON.stringify(texts).toLowerCase(); // the setting "adamw" is the optimizer AdamW
  const known = new Set(settings.map(keyOf));
  return facts.filter((row) => !row.isMeasured && !row.texts.includes(null) && !known.has(keyOf(row)));
}

/** Return what differs between the runs, without a full stop. */
export function describeDifferences({ settings, facts, layers }) {
  const total = settings.different.length + settings.equal.length;
  const others = layers.different.length
    ? newFacts(facts.different, settings.different).filter(({ key }) => key !== "layers" && key !== "parameters")
    : newFacts(facts.different, settings.different);
  const outside = others.slice(0, MAX_NAMED_FACTS).map(named);
  if (others.length > outside.length) outside.push(plural(others.length - outside.length, "other fact"));
  if (layers.different.length) outside.push(`${integer(layers.different.length)} of ${plural(layers.different.length + layers.equal.length, "layer")}`);
  if (!settings.different.length) {
    const equal = !total ? "The runs have no settings" : total === 1 ? `Their setting ${settings.equal[0].key} is equal` : `Their ${integer(total)} settings are equal`;
    return outside.length ? `${equal}; they differ in ${listOf(outside)}` : `${equal}${total ? ", and no other difference is known" : ""}`;
  }
  const shown = settings.different.length <= MAX_NAMED ? settings.different : settings.different.slice(0, MAX_NAMED - 1);
  const parts = shown.map(named);
  if (settings.different.length > shown.length) parts.push(`${integer(settings.different.length - shown.length)} more`);
  const count = `${integer(settings.different.length)} of ${plural(total, "setting")}`;
  return `They differ in ${count}: ${listOf(parts)}${outside.length ? `; also in ${listOf(outside)}` : ""}`;
}

/** Return what a run's verdict is, as a verb and its object. */
function clauseOf({ diagnosis, firstLayer }) {
  const since = diagnosis.since_step === null ? "" : ` since step ${integer(diagnosis.since_step)}`;
  const where = `${since}${firstLayer ? ` in ${firstLayer}` : ""}`;
  if (diagnosis.verdict === "exploding") return `explodes${where}`;
  if (diagnosis.verdict === "vanishing") return `has vanishing gradients${where}`;
  if (diagnosis.verdict === "undetermined") return "has too little data for a verdict";
  if (diagnosis.level !== "attention") return "is healthy";
  return { stuck: "is healthy, but its loss is stuck", worsening: "is healthy, but its loss gets worse" }[diagnosis.learning] ?? "is healthy, but needs attention";
}

const GROUPS = [
  { verb: ["explodes", "explode"], holds: ({ verdict }) => verdict === "exploding", hasStart: true },
  { verb: ["has vanishing gradients", "have vanishing gradients"], holds: ({ verdict }) => verdict === "vanishing", hasStart: true },
  { verb: ["is healthy, but needs attention", "are healthy, but need attention"], holds: ({ verdict, level }) => verdict === "healthy" && level === "attention" },
  { verb: ["is healthy", "are healthy"], holds: ({ verdict, level }) => verdict === "healthy" && level !== "attention" },
  { verb: ["has too little data", "have too little data"], holds: ({ verdict }) => verdict === "undetermined" },
];

/** Return how the runs end: a clause for each of few runs, and numbers of many. Without a full stop. */
export function describeVerdicts(items) {
  const clauses = items.map(clauseOf);
  if (clauses.every((clause) => clause === "is healthy")) return items.length === 2 ? "both runs are healthy" : `all ${items.length} runs are healthy`;
  if (items.length <= MAX_CLAUSES) return items.map(({ letter }, at) => `run ${letter} ${clauses[at]}`).join(clauses.some((clause) => clause.includes(",")) ? "; " : ", ");
  const parts = GROUPS.flatMap(({ verb, holds, hasStart }) => {
    const members = items.filter(({ diagnosis }) => holds(diagnosis));
    if (!members.length) return [];
    const starts = new Set(members.map(({ diagnosis }) => diagnosis.since_step));
    const each = hasStart && starts.size > 1 && members.length <= MAX_CLAUSES;
    const names = listOf(members.map(({ letter, diagnosis }) => `${letter}${each ? ` since step ${integer(diagnosis.since_step)}` : ""}`));
    const together = hasStart && starts.size === 1 ? ` since step ${integer(members[0].diagnosis.since_step)}` : "";
    return [`${members.length} ${verb[members.length === 1 ? 0 : 1]} (${names}${together})`];
  });
  return `of ${items.length} runs, ${listOf(parts)}`;
}

/** Return which settings divide failing from healthy runs, as a sentence; null where none does or there are too few runs. */
export function describeDivision(items, { settings }) {
  const isFailing = failingOf(items.map(({ diagnosis }) => diagnosis));
  const dividing = settings.different.filter((row) => divides(row, isFailing));
  if (!dividing.length) return null;
  const side = (row, wanted) => {
    const members = isFailing.flatMap((value, at) => (value === wanted ? [at] : []));
    const other = isFailing.flatMap((value, at) => (value === !wanted ? [at] : []));
    const values = members.map((at) => row.values[at]);
    if (!row.isNumeric || values.includes(undefined)) return listOf([...new Set(members.map((at) => row.texts[at] ?? "not set"))].map(shorten));
    const isAbove = Math.min(...values) > Math.max(...other.map((at) => row.values[at]));
    const distinct = new Set(values);
    if (distinct.size === 1) return number(values[0]);
    return isAbove ? `${number(Math.min(...values))} or more` : `${number(Math.max(...values))} or less`;
  };
  if (dividing.length === 1) {
    const [row] = dividing;
    return `Of the settings, only ${row.key} divides them: failing runs have ${side(row, true)}, healthy ones ${side(row, false)}.`;
  }
  const names = dividing.slice(0, MAX_NAMED).map(({ key }) => key);
  if (dividing.length > MAX_NAMED) names.push(`${dividing.length - MAX_NAMED} more`);
  return `Each of the settings ${listOf(names)} divides failing from healthy runs.`;
}

const lossText = ({ value, step }) => `${number(value)} at step ${integer(step)}`;

/** Return which run has the lowest last loss; null where their losses cannot be compared or are not known. */
export function describeLoss(items) {
  const kinds = [...new Set(items.map(({ run }) => run.training?.loss?.kind).filter(Boolean))];
  if (kinds.length > 1) return `Their losses are of different kinds (${kinds.map(words).join(", ")}), so do not compare them.`;
  if (items.some(({ run }) => run.training?.loss?.surrogate || (run.training?.objective && run.training.objective.kind !== "loss"))) return null;
  const known = items.filter(({ lastLoss }) => lastLoss);
  const finite = known.filter(({ lastLoss }) => Number.isFinite(lastLoss.value)).sort((a, b) => a.lastLoss.value - b.lastLoss.value);
  if (known.length < 2 || !finite.length) return null;
  const best = finite.filter(({ lastLoss }) => lastLoss.value === finite[0].lastLoss.value);
  if (best.length === items.length) return `All runs have the same last loss, ${lossText(best[0].lastLoss)}.`;
  if (best.length > 1) return `${best.length > MAX_CLAUSES ? `${best.length} runs` : `Runs ${listOf(best.map(({ letter }) => letter))}`} have the lowest last loss, ${lossText(best[0].lastLoss)}.`;
  const other = items.length === 2 ? items.find((item) => item !== best[0]) : null;
  return `Run ${best[0].letter} has the lowest last loss, ${lossText(best[0].lastLoss)}${other ? `; run ${other.letter} has ${other.lastLoss ? lossText(other.lastLoss) : "none"}` : ""}.`;
}

const asSentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

/**
 * Return the sentences of a comparison, `{lead, others}`: what differs and how the runs ended; then a list of what divides
 * them, and their losses.
 *
 * `items` are two or more runs, each `{letter, run, diagnosis, firstLayer, lastLoss}`; `differences` has `settings`, `facts`
 * and `layers` as `{different, equal}` rows.
 */
export function describeComparison(items, differences) {
  return {
    lead: `${asSentence(describeDifferences(differences))} ${asSentence(describeVerdicts(items))}`,
    others: [describeDivision(items, differences), describeLoss(items)].filter(Boolean),
  };
}
