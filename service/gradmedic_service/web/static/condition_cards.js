// The conditions that a run has now, each as a card: its name and severity, its numbers, and what to do first.

import { byId, el } from "./dom.js";
import { badge, integer, isUnhealthy, words } from "./format.js";
import { pairsOf } from "./evidence.js";

const SHOWN = 3; // cards that are shown at first
const SHOWN_LAYERS = 3;
const CONDITIONS = new Set(document.body.dataset.conditions.split(" "));

/** Return whether a finding or cause has a page. */
export const isCondition = (name) => CONDITIONS.has(name);

/** Return whether a finding is a condition that the run has now and that asks for an action. */
export const isOpenCondition = (finding) => isCondition(finding.detector) && finding.severity !== "note" && finding.resolved_step === null;

/** Return the badge of a finding's severity, and of its verdict where that is unhealthy. */
export const findingBadges = ({ severity, verdict }) => [el("span", { class: "severity", "data-severity": severity }, severity), " ", isUnhealthy(verdict) ? badge(verdict) : null];

function firstAction(name) {
  const action = byId("first-actions").content.querySelector(`[data-condition="${name}"]`);
  return action ? el("p", { class: "first-action" }, el("strong", {}, "Do first: "), ...[...action.childNodes].map((node) => node.cloneNode(true))) : null;
}

function card(finding, select) {
  const goTo = (text, layer) => {
    const button = el("button", { type: "button", class: layer === null ? "link" : "link code" }, text);
    button.addEventListener("click", () => select(layer ?? finding.layers[0] ?? null, finding.first_step));
    return button;
  };
  const layers = finding.layers.slice(0, SHOWN_LAYERS).map((name) => [goTo(name, name), " "]);
  const more = finding.layers.length - SHOWN_LAYERS;
  return el("li", { class: "card condition", "data-severity": finding.severity, "data-key": finding.detector },
    el("div", { class: "head" }, el("h3", {}, el("a", { href: `/conditions/${finding.detector}` }, words(finding.detector))), el("span", {}, findingBadges(finding))),
    el("p", {}, finding.explanation),
    finding.consequence_of ? el("p", { class: "small" }, `A consequence of: ${words(finding.consequence_of)}`) : null,
    firstAction(finding.detector),
    el("dl", { class: "numbers" }, pairsOf(finding.evidence).map((pair) => el("div", {}, pair))),
    el("p", { class: "small where" }, finding.first_step === finding.last_step ? "At " : "From ", goTo(`step ${integer(finding.first_step)}`, null), finding.first_step === finding.last_step ? "" : ` to step ${integer(finding.last_step)}`, layers.length ? [" in ", layers] : null, more > 0 ? `and ${integer(more)} more` : null));
}

/** Show the open conditions of a diagnosis, consequences last; `select(layer, step)` shows their place. The cards stay where nothing changed. */
export function showConditions(diagnosis, select) {
  const section = byId("conditions");
  const list = byId("condition-cards");
  const open = diagnosis.findings.filter(isOpenCondition).sort((a, b) => Boolean(a.consequence_of) - Boolean(b.consequence_of));
  section.hidden = !open.length;
  const showsAll = list.dataset.showsAll === "yes";
  const key = JSON.stringify([open, showsAll]);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  const focused = list.contains(document.activeElement) ? [...list.querySelectorAll("a, button")].indexOf(document.activeElement) : -1;
  const items = open.slice(0, showsAll ? open.length : SHOWN).map((finding) => card(finding, select));
  if (items.length < open.length) {
    const rest = open.length - items.length;
    const more = el("button", { type: "button" }, `${rest} more ${rest === 1 ? "condition" : "conditions"}`);
    more.addEventListener("click", () => {
      list.dataset.showsAll = "yes";
      showConditions(diagnosis, select);
      list.children[SHOWN]?.querySelector("a")?.focus();
    });
    items.push(el("li", { class: "more" }, more));
  }
  list.replaceChildren(...items);
  if (focused >= 0) list.querySelectorAll("a, button")[focused]?.focus();
}
