// What the guards of a run did: a summary, the actions, and their marks on the time axis.

import { showFolded } from "./diagnosis.js";
import { byId, el, setText } from "./dom.js";
import { foldedEvidence } from "./evidence.js";
import { badge, integer, words } from "./format.js";

const SHOWN_ACTIONS = 5;
export const MOST_ACTIONS = 200; // that the page reads, the newest ones

const NAMES = { skip: "step skipped", clip: "gradient clipped", rewind: "rewound", lower_rate: "learning rate lowered", stop: "training stopped", give_up: "guard gave up" };
const REASONS = {
  nonfinite_gradient: "the gradient was not finite", nonfinite_loss: "the loss was not finite", nonfinite_weights: "the weights were not finite",
  gradient_spike: "the gradient was a spike", verdict: "the verdict was unhealthy",
};
const nameOf = ({ action }) => NAMES[action] ?? words(action);

/** Return what a rewind went back to, and the verdict that it took back. */
function rewindParts({ to_step: toStep, verdict, since_step: sinceStep }) {
  if (toStep === null) return null;
  const since = sinceStep === null ? "" : ` since step ${integer(sinceStep)}`;
  return el("p", { class: "small" }, toStep < 0 ? "Back to before the first step" : `Back to step ${integer(toStep)}`, verdict ? [". The verdict was ", badge(verdict), `${since}.`] : ".");
}

function actionItem(action, select) {
  const button = el("button", { type: "button", class: "link" }, `step ${integer(action.step)}`);
  button.addEventListener("click", () => select(null, action.step));
  const facts = [REASONS[action.reason] ?? words(action.reason), action.is_dropped && "a rewind dropped this step", action.generation > 0 && `after ${integer(action.generation)} ${action.generation === 1 ? "rewind" : "rewinds"}`];
  return el("li", { "data-key": String(action.sequence), "data-action": action.action },
    el("p", {}, action.is_dropped || action.action === "rewind" ? `step ${integer(action.step)}` : button, " ", el("strong", {}, nameOf(action)), " ", el("span", { class: "muted" }, facts.filter(Boolean).join(" · "))),
    el("p", {}, action.explanation),
    rewindParts(action),
    Object.keys(action.numbers).length ? foldedEvidence(action.numbers) : null);
}

/** Show the report of a diagnosis on the guards, and their actions; `select(layer, step)` shows a step. */
export function showGuards({ guards }, actions, select) {
  byId("guards").hidden = !guards;
  if (!guards) return;
  setText(byId("guards-summary"), guards.summary);
  byId("guards").dataset.repeated = guards.is_repeated ? "yes" : "no";
  const list = byId("guard-actions");
  const key = JSON.stringify(actions);
  if (list.dataset.key === key) return; // so that the focus stays
  list.dataset.key = key;
  const show = () => showFolded(list, actions, SHOWN_ACTIONS, "action", (action) => actionItem(action, select), show);
  show();
  const total = Object.values(guards.counts).reduce((sum, count) => sum + count, 0);
  byId("guards-older").hidden = total <= actions.length;
  setText(byId("guards-older"), `The newest ${integer(actions.length)} of ${integer(total)} actions are listed.`);
}

/** Return the marks of the step axis: the steps in which a guard acted, without those that a rewind dropped. */
export function guardMarksOf(actions) {
  const kept = actions.filter((action) => !action.is_dropped);
  return kept.map((action) => ({ step: action.to_step === null ? action.step : Math.max(0, action.to_step), isTick: true, title: `${nameOf(action)}, step ${integer(action.step)}: ${action.explanation}` }));
}
