// The diagnosis in words: findings, causes, and advice with what came of it.

import { copyButton, el } from "./dom.js";
import { badge, integer, isUnhealthy, number, words } from "./format.js";
import { outcomeLine, outcomeText, parametersOf, remediesText, remedyText, snippetOf } from "./remedies.js";

const FIRST_ADVICE = 3;

const evidence = (numbers) => {
  const entries = Object.entries(numbers);
  return entries.length
    ? el("details", { class: "numbers" }, el("summary", {}, "Numbers"), el("dl", { class: "pairs" }, entries.map(([name, value]) => [el("dt", {}, words(name)), el("dd", {}, number(value))])))
    : null;
};

const none = (text) => el("li", { class: "muted none" }, text);

/** Keep what a reader has opened open while the content is replaced. */
function replace(list, items) {
  const open = new Set([...list.querySelectorAll("li")].filter((item) => item.querySelector("details[open]")).map((item) => item.dataset.key));
  list.replaceChildren(...items);
  for (const item of items) if (open.has(item.dataset?.key)) for (const details of item.querySelectorAll("details")) details.open = true;
}

/** Show the first few remedies; the others when they are asked for. */
export function showAdvice(list, diagnosis) {
  const isWhole = list.dataset.whole === "yes";
  const shown = diagnosis.advice.filter((advice, index) => isWhole || index < FIRST_ADVICE || advice.outcome);
  const items = shown.map((advice) => el("li", { class: "card advice", "data-key": advice.remedy.id + parametersOf(advice.remedy) },
    el("h3", {}, `${advice.rank}. ${remedyText(advice.remedy)}`),
    advice.outcome ? outcomeLine(advice.outcome) : null,
    el("p", {}, advice.reason),
    el("div", { class: "snippet" }, el("pre", { tabindex: "0", "aria-label": `Code for ${words(advice.remedy.id)}` }, el("code", {}, advice.snippet)), copyButton(advice.snippet)),
    el("p", { class: "muted small" }, `Takes away: ${advice.cost}`),
    advice.sources.length ? el("p", { class: "muted small" }, `Source: ${advice.sources.join("; ")}`) : null));
  if (shown.length < diagnosis.advice.length) {
    const more = el("button", { type: "button" }, `${diagnosis.advice.length - shown.length} more remedies`);
    more.addEventListener("click", () => {
      list.dataset.whole = "yes";
      showAdvice(list, diagnosis);
      list.children[shown.length]?.querySelector("pre, button")?.focus();
    });
    items.push(el("li", {}, more));
  }
  replace(list, items.length ? items : [none(diagnosis.verdict === "healthy" ? "Nothing: go on." : "No advice yet.")]);
}

const isVerified = ({ outcome }) => outcome.state === "verified";
const lossOf = ({ outcome }) => (typeof outcome.loss === "number" ? outcome.loss : Infinity);

/** The remedies that are proven on the job itself, the best first. */
export const proven = (diagnosis) => diagnosis.tried.filter(isVerified).sort((one, other) => lossOf(one) - lossOf(other));

/** Show what reruns have tried that is not said beside a remedy already: combinations, and what is no advice. */
export function showTried(list, diagnosis) {
  const isTold = ({ remedies, outcome }) => remedies.length === 1 && diagnosis.advice.some((advice) => advice.outcome?.rerun_id === outcome.rerun_id && remediesText([advice.remedy]) === remediesText(remedies));
  const others = diagnosis.tried.filter((one) => !isTold(one)).sort((one, other) => isVerified(other) - isVerified(one) || lossOf(one) - lossOf(other));
  replace(list, others.map(({ remedies, outcome }) => {
    const snippet = snippetOf(remedies, diagnosis.advice);
    return el("li", { class: "outcome", "data-state": outcome.state },
      el("p", {}, el("strong", {}, remediesText(remedies)), ": ", outcomeText(outcome), ". ", el("a", { href: `/reruns/${outcome.rerun_id}` }, "See the race")),
      snippet && isVerified({ outcome }) ? el("div", { class: "snippet" }, el("pre", { tabindex: "0", role: "region", "aria-label": `Code for ${remediesText(remedies)}` }, el("code", {}, snippet)), copyButton(snippet)) : null);
  }));
}

export function showCauses(list, diagnosis) {
  replace(list, diagnosis.causes.length ? diagnosis.causes.map((cause) => {
    const meter = el("meter", { min: 0, max: 1, value: cause.score, "aria-label": `Evidence for ${words(cause.cause)}` });
    return el("li", { class: "card", "data-key": cause.cause },
      el("h3", {}, words(cause.cause), " ", el("span", { class: "score" }, meter, ` ${cause.score.toFixed(2)}`)),
      el("p", {}, cause.explanation), evidence(cause.evidence));
  }) : [none("No cause is needed, or known.")]);
}

export function showFindings(list, diagnosis, select) {
  replace(list, diagnosis.findings.length ? diagnosis.findings.map((finding) => {
    const go = el("button", { type: "button", class: "link" }, `step ${integer(finding.first_step)}`);
    go.addEventListener("click", () => select(finding.layers[0] ?? null, finding.first_step));
    const layers = finding.layers.slice(0, 4).map((name) => {
      const button = el("button", { type: "button", class: "link code" }, name);
      button.addEventListener("click", () => select(name, finding.first_step));
      return [button, " "];
    });
    return el("li", { class: "card", "data-key": finding.detector },
      el("h3", {}, words(finding.detector), " ", badge(finding.class), " ", el("span", { class: "severity", "data-severity": finding.severity }, finding.severity)),
      el("p", {}, finding.explanation),
      el("p", { class: "small" }, "From ", go, finding.resolved_step === null ? `, still at step ${integer(finding.last_step)}` : `, over at step ${integer(finding.resolved_step)}`,
        finding.layers.length ? ": " : ".", layers, finding.layers.length > 4 ? `and ${finding.layers.length - 4} more` : ""),
      evidence(finding.evidence));
  }) : [none("No detector has found anything.")]);
}

export function showHistory(list, items, select) {
  replace(list, items.length ? items.map((change) => {
    const go = el("button", { type: "button", class: "link" }, `step ${integer(change.step)}`);
    go.addEventListener("click", () => select(null, change.step));
    return el("li", {}, go, " ", badge(change.verdict), change.finding ? ` ${words(change.finding)}` : "");
  }) : [none("No verdict yet.")]);
}

/** What stands on the step axis: where findings began, and where the verdict changed. */
export function marksOf(diagnosis, history) {
  const marks = diagnosis.findings.map((finding) => ({
    step: finding.first_step, verdict: finding.class, layer: finding.layers[0] ?? null, label: words(finding.detector),
    title: `${words(finding.detector)} from step ${finding.first_step}: ${finding.explanation}`,
  }));
  for (const change of history) {
    if (!isUnhealthy(change.verdict)) continue;
    marks.push({ step: change.step, verdict: change.verdict, layer: null, label: `${change.verdict} (verdict)`, title: `The verdict is ${change.verdict} from the data of step ${change.step} on` });
  }
  return marks;
}
