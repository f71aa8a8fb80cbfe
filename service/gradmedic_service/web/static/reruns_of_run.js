// The reruns of a run: how each stands, and how one is started.

import { all, send, showTrouble } from "./api.js";
import { byId, el } from "./dom.js";
import { statusWord, time } from "./format.js";
import { remedyText } from "./remedies.js";

const known = new Map(); // reruns by id, the newest first
const told = new Map(); // what events said of them
const OVER = ["done", "failed", "stopped", "not_applicable", "cancelled"];

function progressOf(rerun) {
  const trials = told.get(rerun.id)?.trials;
  if (!trials || rerun.ended_at) return rerun.reason ? `: ${rerun.reason}` : "";
  const over = OVER.reduce((sum, status) => sum + (trials[status] ?? 0), 0);
  return `: ${over} trials over, ${trials.running ?? 0} running, ${trials.queued ?? 0} waiting`;
}

function show() {
  byId("reruns").hidden = !known.size;
  byId("races").replaceChildren(...[...known.values()].map((rerun) => el("li", { "data-rerun": rerun.id },
    el("a", { href: `/reruns/${rerun.id}` }, "Rerun"), " of ", time(rerun.created_at), " ", statusWord(told.get(rerun.id)?.status ?? rerun.status), progressOf(rerun))));
}

/** Read the reruns of a run, and show them. */
export async function readReruns(runId) {
  const items = await all("/reruns", { run_id: runId });
  known.clear();
  for (const rerun of items) known.set(rerun.id, rerun);
  show();
}

/** Take in what an event said; a rerun that is new or has ended is read. */
export function hearOfRerun(runId, pulse) {
  const before = known.get(pulse.rerun_id);
  told.set(pulse.rerun_id, pulse);
  if (before && (before.status === pulse.status || pulse.status === "running")) show();
  else readReruns(runId).catch(showTrouble);
}

/** Let the remedies be chosen that are advised; what is marked stays marked. */
export function showChoices(advice) {
  const choices = byId("choices");
  if (!choices) return;
  const marked = new Set([...choices.querySelectorAll("input:checked")].map(({ value }) => value));
  const values = advice.map(({ remedy }) => JSON.stringify(remedy));
  if (values.join() === choices.dataset.values) return;
  choices.dataset.values = values.join();
  choices.replaceChildren(...advice.map(({ remedy }, at) => el("label", { class: "check" }, el("input", { type: "checkbox", value: values[at], checked: marked.has(values[at]) }), ` ${remedyText(remedy)}`)));
}

/** Start a rerun when the form says so, and go to its page. */
export function startReruns(runId) {
  byId("start")?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    const whole = (name) => (form.elements[name].value === "" ? undefined : Number(form.elements[name].value));
    const marked = [...form.querySelectorAll("#choices input:checked")].map(({ value }) => [JSON.parse(value)]);
    const button = form.querySelector("button[type=submit]");
    button.disabled = true;
    try {
      const rerun = await send("POST", `/runs/${runId}/reruns`, {
        ...(marked.length && { remedies: marked }), seeds: whole("seeds"), budget: { steps: whole("steps"), seconds: whole("seconds") },
      });
      location.assign(`/reruns/${rerun.id}`);
    } catch (error) {
      button.disabled = false;
      showTrouble(error);
      byId("trouble").scrollIntoView({ block: "center" });
    }
  });
}
