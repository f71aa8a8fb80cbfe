// The reruns of a run: a list with their progress, and the forms that start one.

import { getAll, send, showError } from "./api.js";
import { byId, debounce, el, setText } from "./dom.js";
import { duration, integer, statusWord, time } from "./format.js";
import { remediesOf, remediesText } from "./remedies.js";

const rerunsById = new Map(); // the newest first
const revisions = new Map(); // last event of each rerun, by id
const FINAL_STATUSES = ["done", "failed", "stopped", "not_applicable", "cancelled"];

function progressOf(rerun) {
  const trials = revisions.get(rerun.id)?.trials;
  if (!trials || rerun.ended_at) return rerun.reason ? `: ${rerun.reason}` : "";
  const ended = FINAL_STATUSES.reduce((sum, status) => sum + (trials[status] ?? 0), 0);
  return `: ${ended} trials ended, ${trials.running ?? 0} running, ${trials.queued ?? 0} waiting`;
}

function showReruns() {
  byId("reruns").hidden = !rerunsById.size;
  byId("races").replaceChildren(...[...rerunsById.values()].map((rerun) => el("li", { "data-rerun": rerun.id },
    el("a", { href: `/reruns/${rerun.id}` }, "Rerun"), " of ", time(rerun.created_at), " ", statusWord(revisions.get(rerun.id)?.status ?? rerun.status), progressOf(rerun))));
}

/** Read the reruns of a run, and show them. */
export async function readReruns(runId) {
  const items = await getAll("/reruns", { run_id: runId });
  rerunsById.clear();
  for (const rerun of items) rerunsById.set(rerun.id, rerun);
  showReruns();
}

/** Apply an event of a rerun; if the rerun is new or has ended, read the reruns again. */
export function applyRerunEvent(runId, revision) {
  const before = rerunsById.get(revision.rerun_id);
  revisions.set(revision.rerun_id, revision);
  if (before && (before.status === revision.status || revision.status === "running")) showReruns();
  else readReruns(runId).catch(showError);
}

/** Show a checkbox for each advice; marked ones stay marked. */
export function showChoices(advice) {
  const choices = byId("choices");
  if (!choices) return;
  const marked = new Set([...choices.querySelectorAll("input:checked")].map(({ value }) => value));
  const values = advice.map((item) => JSON.stringify(remediesOf(item)));
  if (values.join() === choices.dataset.values) return;
  choices.dataset.values = values.join();
  choices.replaceChildren(...advice.map((item, at) => el("label", { class: "check" }, el("input", { type: "checkbox", value: values[at], checked: marked.has(values[at]) }), ` ${remediesText(remediesOf(item))}`)));
}

/** Return the body of the request that the form describes. */
function requestOf(form) {
  const numberOf = (name) => (form.elements[name].value === "" ? undefined : Number(form.elements[name].value));
  const marked = [...form.querySelectorAll("#choices input:checked")].map(({ value }) => JSON.parse(value));
  const budget = { steps: numberOf("steps"), seconds: numberOf("seconds"), rounds: numberOf("rounds") };
  return { ...(marked.length && { remedies: marked }), seeds: numberOf("seeds"), budget };
}

function planText({ trials, steps, seconds_left: seconds, budget }) {
  const expected = `The first round takes about ${integer(trials)} trials of ${integer(steps)} steps${seconds === null ? "" : `, ${duration(seconds)} of computing`}.`;
  return `${expected} At most ${integer(budget.trials)} trials, ${duration(budget.seconds)} and ${budget.rounds === 1 ? "one round" : `${budget.rounds} rounds`}.`;
}

/** Start a rerun when a form is submitted, and go to its page. `requestOf(form)` returns the body of the request. */
function startOnSubmit(form, runId, requestOf) {
  form?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button[type=submit]");
    button.disabled = true;
    try {
      const rerun = await send("POST", `/runs/${runId}/reruns`, requestOf(form));
      location.assign(`/reruns/${rerun.id}`);
    } catch (error) {
      button.disabled = false;
      showError(error);
      byId("error").scrollIntoView({ block: "center" });
    }
  });
}

/** Listen to the forms that start reruns. Show the expected cost of a race once its choices are open. */
export function listenToForms(runId) {
  const start = byId("start");
  const choices = start?.querySelector("details");
  const showPlan = debounce(200, async () => {
    if (!choices.open) return;
    const text = await send("POST", `/runs/${runId}/reruns/plan`, requestOf(start)).then(planText, (error) => error.message);
    setText(byId("plan"), text);
  });
  choices?.addEventListener("toggle", showPlan);
  start?.addEventListener("input", showPlan);
  startOnSubmit(start, runId, requestOf);
  startOnSubmit(byId("locate"), runId, () => ({ kind: "locate" }));
}
