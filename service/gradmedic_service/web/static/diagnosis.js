// Shows a diagnosis: findings, causes, and advice with its outcomes.

import { copyButton, el } from "./dom.js";
import { attentionBadge, badge, integer, isUnhealthy, number, words } from "./format.js";
import { outcomeLine, outcomeText, parametersOf, remediesText, remedyText, snippetOf } from "./remedies.js";

const SHOWN_ADVICE = 3; // number of remedies that are shown at first

const evidenceList = (numbers) => {
  const entries = Object.entries(numbers);
  return entries.length
    ? el("details", { class: "numbers" }, el("summary", {}, "Numbers"), el("dl", { class: "pairs" }, entries.map(([name, value]) => [el("dt", {}, words(name)), el("dd", {}, number(value))])))
    : null;
};

const CONDITIONS = new Set(document.body.dataset.conditions.split(" "));

/** Return the words of a finding or cause; they lead to its page, if it has one. */
const named = (name) => (CONDITIONS.has(name) ? el("a", { href: `/conditions/${name}` }, words(name)) : words(name));

const emptyItem = (text) => el("li", { class: "muted none" }, text);

/** Replace the items of a list; details that are open stay open. */
function replaceItems(list, items) {
  const open = new Set([...list.querySelectorAll("li")].filter((item) => item.querySelector("details[open]")).map((item) => item.dataset.key));
  list.replaceChildren(...items);
  for (const item of items) if (open.has(item.dataset?.key)) for (const details of item.querySelectorAll("details")) details.open = true;
}

/** Show the first remedies and those with an outcome, and a button for the others. */
export function showAdvice(list, diagnosis) {
  const showsAll = list.dataset.showsAll === "yes";
  const shown = diagnosis.advice.filter((advice, index) => showsAll || index < SHOWN_ADVICE || advice.outcome);
  const items = shown.map((advice) => el("li", { class: "card advice", "data-key": advice.remedy.id + parametersOf(advice.remedy) },
    el("h3", {}, `${advice.rank}. ${remedyText(advice.remedy)}`),
    advice.outcome ? outcomeLine(advice.outcome) : null,
    el("p", {}, advice.reason),
    el("div", { class: "snippet" }, el("pre", { tabindex: "0", "aria-label": `Code for ${words(advice.remedy.id)}` }, el("code", {}, advice.snippet)), copyButton(advice.snippet)),
    el("p", { class: "muted small" }, `Drawback: ${advice.cost}`),
    advice.sources.length ? el("p", { class: "muted small" }, `Source: ${advice.sources.join("; ")}`) : null));
  if (shown.length < diagnosis.advice.length) {
    const more = el("button", { type: "button" }, `${diagnosis.advice.length - shown.length} more remedies`);
    more.addEventListener("click", () => {
      list.dataset.showsAll = "yes";
      showAdvice(list, diagnosis);
      list.children[shown.length]?.querySelector("pre, button")?.focus();
    });
    items.push(el("li", {}, more));
  }
  replaceItems(list, items.length ? items : [emptyItem(diagnosis.level === "ok" ? "No action is needed." : "There is no advice yet.")]);
}

const isVerified = ({ outcome }) => outcome.state === "verified";
const lossOf = ({ outcome }) => (typeof outcome.loss === "number" ? outcome.loss : Infinity);

/** Return the remedies that a rerun of the job has verified, the best first. */
export const verifiedRemedies = (diagnosis) => diagnosis.tried.filter(isVerified).sort((a, b) => lossOf(a) - lossOf(b));

/** Show the outcomes of reruns that no advice shows: of combinations, and of remedies that are not advised. */
export function showTried(list, diagnosis) {
  const isShown = ({ remedies, outcome }) => remedies.length === 1 && diagnosis.advice.some((advice) => advice.outcome?.rerun_id === outcome.rerun_id && remediesText([advice.remedy]) === remediesText(remedies));
  const others = diagnosis.tried.filter((tried) => !isShown(tried)).sort((a, b) => isVerified(b) - isVerified(a) || lossOf(a) - lossOf(b));
  replaceItems(list, others.map(({ remedies, outcome }) => {
    const snippet = snippetOf(remedies, diagnosis.advice);
    return el("li", { class: "outcome", "data-state": outcome.state },
      el("p", {}, el("strong", {}, remediesText(remedies)), ": ", outcomeText(outcome), ". ", el("a", { href: `/reruns/${outcome.rerun_id}` }, "Show the race")),
      snippet && isVerified({ outcome }) ? el("div", { class: "snippet" }, el("pre", { tabindex: "0", role: "region", "aria-label": `Code for ${remediesText(remedies)}` }, el("code", {}, snippet)), copyButton(snippet)) : null);
  }));
}

export function showCauses(list, diagnosis) {
  replaceItems(list, diagnosis.causes.length ? diagnosis.causes.map((cause) => {
    const meter = el("meter", { min: 0, max: 1, value: cause.score, "aria-label": `Evidence for ${words(cause.cause)}` });
    return el("li", { class: "card", "data-key": cause.cause },
      el("h3", {}, named(cause.cause), " ", el("span", { class: "score" }, meter, ` ${cause.score.toFixed(2)}`)),
      el("p", {}, cause.explanation), evidenceList(cause.evidence));
  }) : [emptyItem("No cause is known.")]);
}

export function showFindings(list, diagnosis, select) {
  replaceItems(list, diagnosis.findings.length ? diagnosis.findings.map((finding) => {
    const stepButton = el("button", { type: "button", class: "link" }, `step ${integer(finding.first_step)}`);
    stepButton.addEventListener("click", () => select(finding.layers[0] ?? null, finding.first_step));
    const layers = finding.layers.slice(0, 4).map((name) => {
      const button = el("button", { type: "button", class: "link code" }, name);
      button.addEventListener("click", () => select(name, finding.first_step));
      return [button, " "];
    });
    return el("li", { class: "card", "data-key": finding.detector },
      el("h3", {}, named(finding.detector), " ", badge(finding.verdict), " ", el("span", { class: "severity", "data-severity": finding.severity }, finding.severity)),
      el("p", {}, finding.explanation),
      finding.consequence_of ? el("p", { class: "small" }, `A consequence of: ${words(finding.consequence_of)}`) : "",
      el("p", { class: "small" }, "From ", stepButton, finding.resolved_step === null ? `, still present at step ${integer(finding.last_step)}` : `, resolved at step ${integer(finding.resolved_step)}`,
        finding.layers.length ? ": " : ".", layers, finding.layers.length > 4 ? `and ${finding.layers.length - 4} more` : ""),
      evidenceList(finding.evidence));
  }) : [emptyItem("There are no findings.")]);
}

export function showHistory(list, items, select) {
  replaceItems(list, items.length ? items.map((change) => {
    const stepButton = el("button", { type: "button", class: "link" }, `step ${integer(change.step)}`);
    stepButton.addEventListener("click", () => select(null, change.step));
    return el("li", {}, stepButton, " ", badge(change.verdict), " ", attentionBadge(change.level), ` ${change.learning === "unknown" ? "" : change.learning}`, change.finding ? ` ${words(change.finding)}` : "");
  }) : [emptyItem("There is no verdict yet.")]);
}

/** Return the marks of the step axis: first steps of findings, and changes to an unhealthy verdict. */
export function marksOf(diagnosis, history) {
  const marks = diagnosis.findings.map((finding) => ({
    step: finding.first_step, verdict: finding.verdict, layer: finding.layers[0] ?? null, label: words(finding.detector),
    title: `${words(finding.detector)} from step ${finding.first_step}: ${finding.explanation}`,
  }));
  for (const change of history) {
    if (!isUnhealthy(change.verdict)) continue;
    marks.push({ step: change.step, verdict: change.verdict, layer: null, label: `${change.verdict} (verdict)`, title: `The verdict is ${change.verdict} from step ${change.step} on` });
  }
  return marks;
}
