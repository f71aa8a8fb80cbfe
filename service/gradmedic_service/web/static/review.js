// The question below the verdict: is it right? Shows the review of the run, and stores, changes or takes back an answer.

import { send, showError } from "./api.js";
import { byId, el, setText } from "./dom.js";
import { integer, judgedBadges, time } from "./format.js";

let shown = null; // {runId, review, step, verdict, level}: the review and the diagnosis in view

/** Return an element with the sentences about a review. */
function describe({ review, verdict, level }) {
  const judged = judgedBadges(review.judged_verdict, review.judged_level);
  const truth = [review.verdict && `verdict ${review.verdict}`, review.level && `level ${review.level}`].filter(Boolean);
  const isOutdated = review.judged_verdict !== verdict || review.judged_level !== level;
  return el("span", {},
    "Reviewed as ", el("strong", {}, review.answer), ": ", judged, review.step === null ? "" : ` at step ${integer(review.step)}`, ", ", time(review.reviewed_at), ".",
    truth.length ? ` True: ${truth.join(", ")}.` : "",
    isOutdated ? ` The answer of the service is ${verdict} (level ${level}) now.` : "");
}

/** Show the review of a run beside the diagnosis in view. What is typed in the form stays. */
export function showReview(runId, run, diagnosis) {
  const { review } = run;
  shown = { runId, review, step: diagnosis.step, verdict: diagnosis.verdict, level: diagnosis.level };
  byId("review").hidden = review === null && (diagnosis.step === null || !byId("review-right"));
  const key = JSON.stringify([review, review && [diagnosis.verdict, diagnosis.level]]);
  if (byId("review").dataset.shown !== key) { // a status that is replaced is read aloud again
    byId("review").dataset.shown = key;
    byId("review-answer").replaceChildren(...(review === null ? [] : [describe(shown)]));
    setText(byId("review-note"), review?.note ?? "");
    byId("review-note").hidden = !review?.note;
  }
  for (const answer of ["right", "wrong"]) byId(`review-${answer}`)?.setAttribute("aria-pressed", String(review?.answer === answer));
  if (byId("review-clear")) byId("review-clear").hidden = review === null;
}

function openForm() {
  const form = byId("review-form");
  const isWrong = shown.review?.answer === "wrong";
  for (const name of ["verdict", "level", "note"]) form.elements[name].value = (isWrong && shown.review[name]) || "";
  form.hidden = false;
  form.elements.verdict.focus();
}

function closeForm(focused) {
  byId("review-form").hidden = true;
  focused.focus();
}

/** Send a change of the review; `store` returns the new one, or null. */
async function change(store, focused) {
  const buttons = byId("review").querySelectorAll("button");
  for (const button of buttons) button.disabled = true;
  try {
    const review = await store();
    showReview(shown.runId, { review }, shown);
    showError(null);
    for (const button of buttons) button.disabled = false;
    closeForm(focused);
  } catch (error) {
    for (const button of buttons) button.disabled = false;
    showError(error);
    byId("error").scrollIntoView({ block: "center" });
  }
}

const put = (body) => send("PUT", `/runs/${shown.runId}/review`, { ...body, ...(shown.step !== null && { step: shown.step }) });

/** Listen to the buttons and the form, where the reader may review. */
export function listenToReview() {
  const [right, wrong] = [byId("review-right"), byId("review-wrong")];
  if (!right) return;
  right.addEventListener("click", () => change(() => put({ answer: "right" }), right));
  wrong.addEventListener("click", openForm);
  byId("review-clear").addEventListener("click", () => change(() => send("DELETE", `/runs/${shown.runId}/review`), right));
  byId("review-cancel").addEventListener("click", () => closeForm(wrong));
  byId("review-form").addEventListener("keydown", (event) => { if (event.key === "Escape") closeForm(wrong); });
  byId("review-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const { verdict, level, note } = event.target.elements;
    const given = Object.fromEntries([verdict, level, note].filter(({ value }) => value.trim()).map(({ name, value }) => [name, value]));
    change(() => put({ answer: "wrong", ...given }), wrong);
  });
}
