// The page of a rerun: the race, the candidates against the control, the trials and their output.

import { get, readSeries, send, showError } from "./api.js";
import { Chart, CONTROL, lineStyle, pointsOf } from "./chart.js";
import { MAX_COMPARED, comparisonAddress } from "./comparison.js";
import { byId, copyButton, debounce, el, setText, svg } from "./dom.js";
import { badge, duration, integer, number, statusWord, time, words } from "./format.js";
import { follow } from "./live.js";
import { outcomeText, remediesText, snippetOf } from "./remedies.js";
import * as scales from "./scales.js";

const { rerun: rerunId, run: runId } = document.body.dataset;
const FINAL_STATUSES = ["done", "not_reproduced", "failed", "cancelled"];
const POINTS = 250;
const DOTS = { width: 240, height: 24, left: 12, right: 34 };

const parameters = new URLSearchParams(location.search);
const race = new Chart(byId("race-chart"), {
  title: "Race: loss of every trial", heading: "h2", height: 300, cutsOutliers: true, zoomsItself: true, scale: parameters.get("loss") === "linear" ? "linear" : "log",
  onScale: (scale) => { parameters.set("loss", scale); history.replaceState(null, "", `?${parameters}`); },
});
const curves = new Map(); // {version, points} by trial
let rerun = null;
let advice = [];
let shownOutput = null; // {id, title} of the trial whose output is shown

const isOver = () => FINAL_STATUSES.includes(rerun.status);
const stepsOf = (candidate) => rerun.candidates[candidate].steps ?? rerun.budget.steps;
const isControl = (candidate) => !rerun.candidates[candidate].remedies.length;
const nameOf = (candidate) => `${remediesText(rerun.candidates[candidate].remedies)}${stepsOf(candidate) === rerun.budget.steps ? "" : `, ${integer(stepsOf(candidate))} steps`}`;
const trialsOf = (candidate) => rerun.trials.filter((trial) => trial.candidate === candidate);
const sortableLoss = ({ loss }) => (typeof loss === "number" ? loss : Infinity);
const valueOf = (point) => (point === undefined ? null : point.nan ? NaN : point.infinite ? Infinity : point.y);
const median = (numbers) => { const sorted = [...numbers].sort((a, b) => a - b); return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2; };
const styleOf = (candidate) => lineStyle(isControl(candidate) ? CONTROL : candidate - 1);
const swatch = (candidate) => svg("svg", { width: 30, height: 12, "aria-hidden": "true", class: styleOf(candidate).class }, svg("path", { d: "M0,6H30", "stroke-dasharray": styleOf(candidate).dash }));

// --- results -----------------------------------------------------------------------------------------------------

/** Return `{seed, loss, text}` of the trials with a final loss; `loss` is null where it is not finite. */
const finalLosses = (trials) => trials.filter(({ loss, step }) => step !== null && loss !== undefined && loss !== null).map(({ seed, loss }) => ({ seed, loss: typeof loss === "number" ? loss : null, text: number(loss) }));

function lossScale(values) {
  const positive = values.every((value) => value > 0);
  const [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  const range = [DOTS.left, DOTS.width - DOTS.right];
  if (!positive) return scales.linear(low, high === low ? low + 1 : high, ...range);
  return high > low * 1.01 ? scales.log(low, high, ...range) : scales.log(low / 1.1, high * 1.1, ...range);
}

function lossDots(losses, candidate, x) {
  const [middle, edge] = [DOTS.height / 2, DOTS.width - 14];
  const label = losses.length ? `Final losses: ${losses.map(({ seed, text }) => `seed ${seed} ${text}`).join(", ")}` : "No final loss yet";
  return svg("svg", { width: DOTS.width, height: DOTS.height, role: "img", "aria-label": label, class: `dots ${styleOf(candidate).class}` },
    svg("line", { x1: DOTS.left, x2: DOTS.width - DOTS.right, y1: middle, y2: middle, class: "rule" }),
    losses.map(({ seed, loss, text }) => (loss === null
      ? svg("path", { d: `M${edge - 4},${middle - 4}l8,8m0,-8l-8,8`, class: "not-finite" }, svg("title", {}, `seed ${seed}: ${text}`))
      : svg("circle", { cx: x(loss), cy: middle, r: 4.5 }, svg("title", {}, `seed ${seed}: ${text}`)))));
}

function outcomeCell(candidate, trials) {
  if (candidate.outcome) return el("span", { class: "state", "data-state": candidate.outcome.state }, words(candidate.outcome.state));
  if (!candidate.remedies.length) return el("span", { class: "muted" }, "control");
  return el("span", { class: "muted" }, isOver() ? "not tried" : trials.some(({ status }) => status === "running") ? "running" : trials.some(({ status }) => status === "queued") || !trials.length ? "waiting" : "first seed has ended");
}

function showCandidates() {
  const finite = rerun.trials.flatMap((trial) => finalLosses([trial])).map(({ loss }) => loss).filter((loss) => loss !== null);
  const x = lossScale(finite);
  byId("scale").replaceChildren(...(finite.length
    ? ["Loss of each seed, from ", number(Math.min(...finite)), " to ", number(Math.max(...finite)), "; ✕ is not finite"]
    : ["Loss of each seed"]));
  byId("candidates").tBodies[0].replaceChildren(...rerun.candidates.map((candidate, index) => {
    const trials = trialsOf(index);
    const losses = finalLosses(trials);
    const values = losses.map(({ loss }) => loss).filter((loss) => loss !== null);
    const bad = losses.length - values.length;
    const judged = trials.filter(({ verdict }) => verdict !== "undetermined");
    const snippet = snippetOf(candidate.remedies, advice);
    return el("tr", { "data-candidate": index },
      el("th", { scope: "row" }, swatch(index), " ", nameOf(index),
        candidate.round > 1 ? el("span", { class: "muted small" }, ` round ${candidate.round}`) : null,
        snippet ? el("details", { class: "code" }, el("summary", {}, "Code"), el("div", { class: "snippet" }, el("pre", { tabindex: "0", role: "region", "aria-label": `Code for ${nameOf(index)}` }, el("code", {}, snippet)), copyButton(snippet))) : null),
      el("td", { "data-label": "Outcome" }, outcomeCell(candidate, trials)),
      el("td", { "data-label": "Healthy" }, judged.length ? `${judged.filter(({ verdict }) => verdict === "healthy").length} of ${judged.length}` : "–"),
      el("td", { class: "number", "data-label": "Final loss" }, values.length ? number(median(values)) : bad ? losses[0].text : "–", values.length && bad ? ` (${bad} not finite)` : ""),
      el("td", {}, lossDots(losses, index, x)),
      el("td", { class: "text" }, candidate.reason ?? trials.find(({ reason }) => reason)?.reason ?? ""));
  }));
}

function showResult() {
  const best = rerun.candidates.filter(({ outcome }) => outcome?.state === "verified").sort((a, b) => a.outcome.loss - b.outcome.loss)[0];
  const banner = byId("banner");
  banner.dataset.verdict = best ? "healthy" : "";
  byId("result").replaceChildren(...(best
    ? [el("strong", {}, remediesText(best.remedies)), ` is ${outcomeText(best.outcome)}.`, rerun.reason ? ` Result of the rerun: ${rerun.reason}.` : ""]
    : [isOver() ? `${words(rerun.status)[0].toUpperCase()}${words(rerun.status).slice(1)}: ${rerun.reason ?? "no reason was given"}.` : rerun.kind === "locate" ? "The unchanged script runs to the step before it was not finite. From there on, each operation is checked." : "The race is running. The first result comes after the unchanged control has failed again and the first candidates have run."]));
  const count = (statuses) => rerun.trials.filter(({ status }) => statuses.includes(status)).length;
  const [running, queued] = [count(["running"]), count(["queued"])];
  byId("no-worker").hidden = isOver() || running > 0 || queued < rerun.trials.length;
  setText(byId("progress"), [`${rerun.trials.length - running - queued}${rerun.plan ? ` of about ${rerun.plan.trials}` : ""} trials ended`, running && `${running} running`, queued && `${queued} waiting for a worker`, `${number(Math.round(rerun.cost_seconds))} s of computing`, rerun.budget.seconds && `${number(Math.round(rerun.budget.seconds))} s allowed`, rerun.plan?.seconds_left && `about ${duration(rerun.plan.seconds_left)} left`].filter(Boolean).join(" · "));
}

// --- the race and its trials ---------------------------------------------------------------------------------------------

async function readCurve(trial) {
  const attempt = trial.attempts.at(-1);
  if (!attempt || trial.step === null) return []; // the script has not reported yet
  const version = `${attempt.run_id} ${trial.step} ${trial.status}`;
  if (curves.get(trial.id)?.version !== version) {
    const table = await readSeries(attempt.run_id, { statistic: "loss", max_points: POINTS });
    curves.set(trial.id, { version, points: pointsOf(table, table.series[0]) });
  }
  return curves.get(trial.id).points;
}

async function showRace() {
  const points = await Promise.all(rerun.trials.map(readCurve));
  const lines = rerun.trials.map((trial, at) => ({ name: nameOf(trial.candidate), fullName: `${nameOf(trial.candidate)}, seed ${trial.seed}`, index: isControl(trial.candidate) ? CONTROL : trial.candidate - 1, points: points[at] })).filter((line) => line.points.length);
  byId("race-chart").hidden = !lines.length;
  byId("trials-section").hidden = !rerun.trials.length;
  if (!lines.length) return;
  const longest = Math.max(...rerun.candidates.map((_, index) => stepsOf(index)));
  const last = Math.max(1, ...lines.map((line) => line.points.at(-1).last));
  race.setData({ lines, from: 0, to: isOver() ? last : Math.max(last, (longest ?? 1) - 1), note: `Each line is a trial; the seeds of a candidate share a colour. A trial has at most ${integer(longest)} steps.` });
}

function showTrials() {
  const body = byId("trials").tBodies[0];
  const focused = body.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  body.replaceChildren(...rerun.trials.map((trial) => {
    const title = `${nameOf(trial.candidate)}, seed ${trial.seed}`;
    const points = curves.get(trial.id)?.points ?? [];
    const [start, last] = [trial.start_loss ?? valueOf(points[0]), trial.loss ?? valueOf(points.at(-1))];
    const log = el("button", { type: "button", "data-key": `output ${trial.id}`, "aria-label": `Output of ${title}` }, "Output");
    log.addEventListener("click", () => { shownOutput = { id: trial.id, title }; showOutput().then(() => byId("output-title").focus()).catch(showError); });
    const runs = trial.attempts.map(({ number: attempt, run_id: run, worker }, at) => [at ? ", " : "", el("a", { href: `/runs/${run}`, title: `by ${worker}`, "data-key": run, "aria-label": `Run of ${title}, attempt ${attempt}` }, trial.attempts.length > 1 ? `attempt ${attempt}` : "open")]);
    return el("tr", { "data-trial": trial.id },
      el("th", { scope: "row" }, swatch(trial.candidate), " ", nameOf(trial.candidate)),
      el("td", { class: "number", "data-label": "Seed" }, trial.seed),
      el("td", { "data-label": "Status" }, statusWord(trial.status), trial.reason ? el("p", { class: "muted small reason" }, trial.reason) : null),
      el("td", { "data-label": "Verdict" }, trial.step === null ? "–" : badge(trial.verdict)),
      el("td", { class: "number", "data-label": "Steps" }, trial.step === null ? "–" : `${integer(trial.step + 1)} of ${integer(stepsOf(trial.candidate))}`),
      el("td", { class: "number", "data-label": "Loss" }, trial.step === null ? "–" : `${number(start)} → ${number(last)}`),
      el("td", { class: "number", "data-label": "Seconds" }, trial.seconds ? number(Math.round(trial.seconds * 10) / 10) : "–"),
      el("td", { "data-label": "Run" }, runs.length ? runs : "–"),
      el("td", { "data-label": "Output" }, trial.attempts.length ? log : "–"));
  }));
  if (focused) body.querySelector(`[data-key="${focused}"]`)?.focus();
  const first = (index) => trialsOf(index).find(({ attempts, step }) => attempts.length && step !== null)?.attempts.at(-1).run_id;
  const ranked = rerun.candidates.map((candidate, index) => ({ index, loss: candidate.outcome?.loss })).slice(1).sort((a, b) => sortableLoss(a) - sortableLoss(b));
  const compared = [runId, first(0), ...ranked.map(({ index }) => first(index))].filter(Boolean).slice(0, MAX_COMPARED);
  const link = byId("compare");
  link.hidden = compared.length < 2;
  link.href = comparisonAddress(compared);
}

async function showOutput() {
  if (!shownOutput) return;
  const { output, attempt } = await get(`/trials/${shownOutput.id}/output`);
  setText(byId("output-title"), `Output of ${shownOutput.title}${attempt > 1 ? `, attempt ${attempt}` : ""}`);
  const log = byId("output").querySelector("pre");
  const wasAtEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
  setText(log, output || "The trial has printed nothing yet.");
  byId("output").hidden = false;
  if (wasAtEnd) log.scrollTop = log.scrollHeight;
}

// --- updates ----------------------------------------------------------------------------------------------------------

async function refresh() {
  rerun = await get(`/reruns/${rerunId}`);
  const status = byId("status");
  status.dataset.status = rerun.status;
  setText(status, words(rerun.status));
  document.title = document.title.replace(/ · [^·]* · gradmedic$/, ` · ${words(rerun.status)} · gradmedic`);
  byId("facts").replaceChildren([`trainable ${rerun.trainable}`, rerun.kind === "locate" ? "locates the first number that is not finite" : `${rerun.candidates.filter(({ remedies }) => remedies.length).length} candidates`, rerun.candidates.at(-1).round > 1 && `${rerun.candidates.at(-1).round} rounds`, `${rerun.seeds.length} ${rerun.seeds.length === 1 ? "seed" : "seeds"}`, `${integer(rerun.budget.steps)} steps per trial`, rerun.is_automatic && "started automatically"].filter(Boolean).join(" · "), " · created ", time(rerun.created_at));
  byId("parameters").replaceChildren(...Object.entries(rerun.parameters).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
  const cancel = byId("cancel");
  if (cancel) cancel.hidden = isOver();
  await Promise.all([showRace(), showOutput()]);
  showResult();
  const table = byId("candidates");
  if (!table.contains(document.activeElement) && !table.querySelector("details[open]")) showCandidates();
  showTrials();
  document.body.dataset.ready = rerun.status;
  showError(null);
}

/** Read everything again, one request at a time, and once more if a change comes meanwhile. */
let isReading = false;
let isOutdated = false;
async function update() {
  isOutdated = true;
  if (isReading) return;
  isReading = true;
  while (isOutdated) {
    isOutdated = false;
    await refresh().catch(showError);
  }
  isReading = false;
}

byId("close-output").addEventListener("click", () => { shownOutput = null; byId("output").hidden = true; byId("trials-title").focus(); });
byId("cancel")?.addEventListener("click", async (event) => {
  const button = event.target;
  if (button.dataset.isConfirmed !== "yes") { button.dataset.isConfirmed = "yes"; button.textContent = "Really cancel the rerun and its trials"; return; }
  try { await send("POST", `/reruns/${rerunId}/cancel`); await update(); } catch (error) { showError(error); }
});

async function start() {
  advice = await get(`/runs/${runId}/diagnosis`).then((diagnosis) => diagnosis.advice, (error) => { showError(error); return []; });
  await update();
  const updateSoon = debounce(100, update);
  follow(runId, ({ rerun: revision, isPolling }) => { if (revision?.rerun_id === rerunId || (isPolling && !isOver())) updateSoon(); }, (text) => setText(byId("live"), text));
}

start();
