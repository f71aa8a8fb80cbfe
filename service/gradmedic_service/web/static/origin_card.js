// The origin of the first non-finite number: the operation, its line, and what to change; or how to find it.

import { byId, copyButton, el } from "./dom.js";
import { integer, number, words } from "./format.js";

/** Return the parts of a text; those between backticks become code. */
const withCode = (text) => text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));

const snippet = (label, code) => el("div", { class: "snippet" }, el("pre", { tabindex: "0", role: "region", "aria-label": label }, el("code", {}, code)), copyButton(code));

/** Return what to change, with code to copy and the page about the operation. */
function fixParts({ advice, page, snippet: code }) {
  return [
    el("p", { class: "first-action" }, el("strong", {}, "Do first: "), withCode(advice)),
    snippet("Code of the fix", code),
    el("p", { class: "small" }, el("a", { href: `/operations/${page}` }, `More about this: ${words(page)}`)),
  ];
}

/** Return where the number was born: a button that shows the step, and the line of code. */
function placeParts({ step, source }, select) {
  if (step === null && !source?.text) return null;
  const button = step === null ? null : el("button", { type: "button", class: "link" }, `step ${integer(step)}`);
  button?.addEventListener("click", () => select(null, step));
  return el("p", { class: "small" }, button ? ["Show ", button, source?.text ? ". " : "."] : null, source?.text ? [`Line ${integer(source.line)} of ${source.file}: `, el("code", {}, source.text)] : null);
}

/** Return a list of the tensors of the step: how they look, and the digest that finds the batch again. */
function batchParts({ batch_tensors: tensors }) {
  if (!tensors.length) return null;
  const items = tensors.map((tensor) => el("li", {},
    `${tensor.dtype ?? "tensor"} [${(tensor.shape ?? []).join(", ")}]`,
    tensor.min === null ? "" : `, from ${number(tensor.min)} to ${number(tensor.max)}`,
    tensor.nonfinite_count ? `, ${integer(tensor.nonfinite_count)} elements are NaN or infinite` : "",
    tensor.examples.length ? ` (examples ${tensor.examples.join(", ")})` : "",
    tensor.digest === null ? "" : [", digest ", el("code", {}, tensor.digest)]));
  return el("details", {}, el("summary", {}, "The batch of that step"), el("ul", { class: "small" }, items));
}

/** Show the origin of a diagnosis, or how to find it; `select(layer, step)` shows a step. */
export function showOrigin(diagnosis, select) {
  const { origin } = diagnosis;
  const isMissing = !origin && diagnosis.findings.some(({ detector }) => detector === "nonfinite");
  byId("origin").hidden = !origin;
  byId("origin-search").hidden = !isMissing;
  const key = JSON.stringify(origin);
  if (byId("origin-found").dataset.key === key) return; // so that the focus stays
  byId("origin-found").dataset.key = key;
  byId("origin-found").replaceChildren(...(origin ? [el("p", { class: "sentence" }, withCode(origin.text)), placeParts(origin, select), origin.fix ? fixParts(origin.fix) : null, batchParts(origin)] : []).flat().filter(Boolean));
}

const code = byId("origin-search-code");
code.append(copyButton(code.textContent.trim()));
