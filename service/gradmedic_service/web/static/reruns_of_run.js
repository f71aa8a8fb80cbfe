// The reruns of a run: a list with their progress, and a form that starts one.

import { getAll, send, showError } from "./api.js";
import { byId, el } from "./dom.js";
import { statusWord, time } from "./format.js";
import { remedyText } from "./remedies.js";

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

/** Show a checkbox for each remedy of the advice; marked ones stay marked. */
export function showChoices(advice) {
  const choices = byId("choices");
  if (!choices) return;
  const marked = new Set([...choices.querySelectorAll("input:checked")].map(({ value }) => value));
  const values = advice.map(({ remedy }) => JSON.stringify(remedy));
  if (values.join() === choices.dataset.values) return;
  choices.dataset.values = values.join();
  choices.replaceChildren(...advice.map(({ remedy }, at) => el("label", { class: "check" }, el("input", { type: "checkbox", value: values[at], checked: marked.has(values[at]) }), ` ${remedyText(remedy)}`)));
}

/** Start a rerun when the form is submitted, and go to its page. */
export function listenToForm(runId) {
  byId("start")?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    const numberOf = (name) => (form.elements[name].value === "" ? undefined : Number(form.elements[name].value));
    const marked = [...form.querySelectorAll("#choices input:checked")].map(({ value }) => [JSON.parse(value)]);
    const button = form.querySelector("button[type=submit]");
    button.disabled = true;
    try {
      const rerun = await send("POST", `/runs/${runId}/reruns`, {
        ...(marked.length && { remedies: marked }), seeds: numberOf("seeds"), budget: { steps: numberOf("steps"), seconds: numberOf("seconds") },
      });
      location.assign(`/reruns/${rerun.id}`);
    } catch (error) {
      button.disabled = false;
      showError(error);
      byId("error").scrollIntoView({ block: "center" });
    }
  });
}
