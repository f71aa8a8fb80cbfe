// Shows a diagnosis: findings, causes, and advice with its outcomes.

import { findingBadges, isCondition, isOpenCondition } from "./condition_cards.js";
import { copyButton, el } from "./dom.js";
import { foldedEvidence } from "./evidence.js";
import { integer, isUnhealthy, judgedBadges, words } from "./format.js";
import { adviceFor, outcomeLine, outcomeText, remediesOf, remediesText, snippetOf } from "./remedies.js";

const SHOWN_ADVICE = 3; // number of remedies that are shown at first, ...
const SHOWN_CAUSES = 3; // ... of causes, ...
const SHOWN_FINDINGS = 4; // ... of findings, ...
const SHOWN_CHANGES = 6; // ... and of changes of the verdict, the latest ones

/** Return the words of a finding or cause; they lead to its page, if it has one. */
const named = (name) => (isCondition(name) ? el("a", { href: `/conditions/${name}` }, words(name)) : words(name));

const emptyItem = (text) => el("li", { class: "muted none" }, text);

/** Replace the items of a list; details that are open stay open. */
function replaceItems(list, items) {
  const open = new Set([...list.querySelectorAll("li")].filter((item) => item.querySelector("details[open]")).map((item) => item.dataset.key));
  list.replaceChildren(...items);
  for (const item of items) if (open.has(item.dataset?.key)) for (const details of item.querySelectorAll("details")) details.open = true;
}

/**
 * Show the first `size` items of a list, and a button for the others. `show()` shows the list again; the first item that
 * was hidden then has the focus. `makeItem` makes an element of an item.
 */
export function showFolded(list, items, size, noun, makeItem, show) {
  const shown = list.dataset.showsAll === "yes" ? items : items.slice(0, size);
  const elements = shown.map(makeItem);
  const rest = items.length - shown.length;
  if (rest) {
    const more = el("button", { type: "button" }, `${integer(rest)} more ${rest === 1 ? noun : `${noun}s`}`);
    more.addEventListener("click", () => {
      list.dataset.showsAll = "yes";
      show();
      list.children[size]?.querySelector("a, button, summary")?.focus();
    });
    elements.push(el("li", { class: "more" }, more));
  }
  replaceItems(list, elements);
}

/** Return the sentence about an advice that only a change of the script can follow; null for others. */
function scriptHint(advice, tried) {
  const outcome = advice.outcome?.state;
  const isNeeded = outcome === "not_applicable" || (!outcome && advice.needs_script);
  if (!isNeeded) return null;
  const reason = outcome && tried.find(({ remedies }) => remediesText(remedies) === remediesText(remediesOf(advice)))?.reason;
  return el("p", { class: "small" }, reason ? `A rerun could not apply it (${reason}). ` : "No rerun can try it. ", "Change the script as shown here:");
}

/** Show the first remedies and those with an outcome, and a button for the others. */
export function showAdvice(list, diagnosis) {
  const showsAll = list.dataset.showsAll === "yes";
  const shown = diagnosis.advice.filter((advice, index) => showsAll || index < SHOWN_ADVICE || advice.outcome);
  const items = shown.map((advice) => el("li", { class: "card advice", "data-key": remediesText(remediesOf(advice)) },
    el("h3", {}, `${advice.rank}. ${remediesText(remediesOf(advice))}`),
    advice.outcome ? outcomeLine(advice.outcome) : null,
    el("p", {}, advice.reason),
    scriptHint(advice, diagnosis.tried),
    el("div", { class: "snippet" }, el("pre", { tabindex: "0", "aria-label": `Code for ${remediesOf(advice).map(({ id }) => words(id)).join(" + ")}` }, el("code", {}, advice.snippet)), copyButton(advice.snippet)),
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

const isVerified = ({ outcome }) => outcome?.state === "verified";
const lossOf = ({ outcome }) => (typeof outcome.loss === "number" ? outcome.loss : Infinity);

/** Return the advice that a rerun of the job has verified, the best first. */
export const verifiedAdvice = (diagnosis) => diagnosis.advice.filter(isVerified);

/** Show the outcomes of reruns that no advice shows: of remedies and combinations that are not advised. */
export function showTried(list, diagnosis) {
  const isShown = ({ remedies, outcome }) => adviceFor(remedies, diagnosis.advice)?.outcome?.rerun_id === outcome.rerun_id;
  const others = diagnosis.tried.filter((tried) => !isShown(tried)).sort((a, b) => isVerified(b) - isVerified(a) || lossOf(a) - lossOf(b));
  list.parentElement.hidden = !others.length;
  replaceItems(list, others.map(({ remedies, outcome }) => {
    const snippet = snippetOf(remedies, diagnosis.advice);
    return el("li", { class: "outcome", "data-state": outcome.state },
      el("p", {}, el("strong", {}, remediesText(remedies)), ": ", outcomeText(outcome), ". ", el("a", { href: `/reruns/${outcome.rerun_id}` }, "Show the race")),
      snippet && isVerified({ outcome }) ? el("div", { class: "snippet" }, el("pre", { tabindex: "0", role: "region", "aria-label": `Code for ${remediesText(remedies)}` }, el("code", {}, snippet)), copyButton(snippet)) : null);
  }));
}

function causeItem(cause) {
  const meter = el("meter", { min: 0, max: 1, value: cause.score, "aria-label": `Evidence for ${words(cause.cause)}` });
  return el("li", { class: "card", "data-key": cause.cause },
    el("h3", {}, named(cause.cause), " ", el("span", { class: "score" }, meter, ` ${cause.score.toFixed(2)}`)),
    el("p", {}, cause.explanation), foldedEvidence(cause.evidence));
}

export function showCauses(list, diagnosis) {
  if (diagnosis.causes.length) showFolded(list, diagnosis.causes, SHOWN_CAUSES, "cause", causeItem, () => showCauses(list, diagnosis));
  else replaceItems(list, [emptyItem("No cause is known.")]);
}

function findingItem(finding, select) {
  const stepButton = el("button", { type: "button", class: "link" }, `step ${integer(finding.first_step)}`);
  stepButton.addEventListener("click", () => select(finding.layers[0] ?? null, finding.first_step));
  const layers = finding.layers.slice(0, 4).map((name) => {
    const button = el("button", { type: "button", class: "link code" }, name);
    button.addEventListener("click", () => select(name, finding.first_step));
    return [button, " "];
  });
  return el("li", { class: "card", "data-key": finding.detector },
    el("h3", {}, named(finding.detector), " ", findingBadges(finding)),
    el("p", {}, finding.explanation),
    finding.consequence_of ? el("p", { class: "small" }, `A consequence of: ${words(finding.consequence_of)}`) : "",
    el("p", { class: "small" }, "From ", stepButton, finding.resolved_step === null ? `, still present at step ${integer(finding.last_step)}` : `, resolved at step ${integer(finding.resolved_step)}`,
      finding.layers.length ? ": " : ".", layers, finding.layers.length > 4 ? `and ${finding.layers.length - 4} more` : ""),
    foldedEvidence(finding.evidence));
}

/** Show the findings that are not shown as the conditions of the run. */
export function showFindings(list, diagnosis, select) {
  const findings = diagnosis.findings.filter((finding) => !isOpenCondition(finding));
  if (findings.length) showFolded(list, findings, SHOWN_FINDINGS, "finding", (finding) => findingItem(finding, select), () => showFindings(list, diagnosis, select));
  else replaceItems(list, [emptyItem(diagnosis.findings.length ? "There are no others." : "There are no findings.")]);
}

function changeItem(change, select) {
  const stepButton = el("button", { type: "button", class: "link" }, `step ${integer(change.step)}`);
  stepButton.addEventListener("click", () => select(null, change.step));
  const learning = change.learning === "unknown" ? null : el("span", { class: "muted" }, change.learning);
  return el("li", {}, stepButton, " ", judgedBadges(change.verdict, change.level), " ", learning, change.finding ? ` ${words(change.finding)}` : "");
}

/** Show the changes of the verdict, the latest first. */
export function showHistory(list, items, select) {
  const changes = [...items].reverse();
  if (changes.length) showFolded(list, changes, SHOWN_CHANGES, "change", (change) => changeItem(change, select), () => showHistory(list, items, select));
  else replaceItems(list, [emptyItem("There is no verdict yet.")]);
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
