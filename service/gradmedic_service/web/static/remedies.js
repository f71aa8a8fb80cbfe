// Remedies in words, their outcomes, and the code that applies them.

import { el } from "./dom.js";
import { number, words } from "./format.js";

export const parametersOf = (remedy) => Object.entries(remedy.parameters).map(([name, value]) => `${name}=${typeof value === "number" ? number(value) : value}`).join(", ");
export const remedyText = (remedy) => `${words(remedy.id)}${parametersOf(remedy) ? ` (${parametersOf(remedy)})` : ""}`;
export const remediesText = (remedies) => (remedies.length ? remedies.map(remedyText).join(" + ") : "unchanged control");

/** Return an outcome in words. */
export function outcomeText(outcome) {
  const seeds = `healthy in ${outcome.healthy} of ${outcome.seeds} ${outcome.seeds === 1 ? "seed" : "seeds"}`;
  const judged = typeof outcome.judged_value === "number"
    ? `, ${outcome.judged_by.replace(/^(maximize|minimize) /, "")} ${number(outcome.judged_value)} against ${outcome.control_judged_value === null ? "none" : number(outcome.control_judged_value)}` : "";
  const loss = `loss ${number(outcome.loss)} against ${number(outcome.control_loss)}${judged}`;
  return {
    verified: `verified: ${seeds}, ${loss} unchanged`,
    healthy: `${seeds}, but not shown to be better: ${loss} unchanged`,
    failed: `did not help: ${seeds}, ${loss} unchanged`,
    not_applicable: "could not be applied to this job",
  }[outcome.state] ?? words(outcome.state);
}

export const outcomeLine = (outcome) => el("p", { class: "outcome", "data-state": outcome.state },
  el("strong", {}, "Tried on this job: "), outcomeText(outcome), outcome.cost_seconds ? ` (${number(Math.round(outcome.cost_seconds))} s of computing). ` : ". ",
  el("a", { href: `/reruns/${outcome.rerun_id}` }, "Show the race"));

const isSame = (a, b) => a.id === b.id && JSON.stringify(a.parameters) === JSON.stringify(b.parameters);

/** Return all remedies of an advice, which are applied together. */
export const remediesOf = (advice) => [advice.remedy, ...advice.with_remedies];

const isSameList = (a, b) => a.length === b.length && a.every((remedy) => b.some((other) => isSame(remedy, other)));

/** Return the advice that consists of these remedies; undefined if there is none. */
export const adviceFor = (remedies, advice) => advice.find((item) => isSameList(remediesOf(item), remedies));

/** Return the code of those remedies that the advice contains. */
export const snippetOf = (remedies, advice) => adviceFor(remedies, advice)?.snippet ?? remedies
  .map((remedy) => adviceFor([remedy], advice)?.snippet)
  .filter(Boolean).join("\n");
