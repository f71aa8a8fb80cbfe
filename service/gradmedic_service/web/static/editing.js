// Changes of a run by its reader: sent one after another, with the reason of a refusal beside the field.

import { send } from "./api.js";
import { byId, setText } from "./dom.js";

let last = Promise.resolve();

/**
 * Send a change of a run after those under way, and return the changed run. `makeBody()` returns the body, or a promise of
 * it, when its turn has come.
 */
export function changeRun(runId, makeBody) {
  const change = last.then(async () => send("PATCH", `/runs/${runId}`, await makeBody()));
  last = change.catch(() => {});
  return change;
}

/** Return why a change of a field was refused, as a sentence about `noun`, such as "name". */
export function reasonOf(error, field, noun) {
  const own = error.errors?.find(({ path }) => path === field || path.startsWith(`${field}[`));
  return own ? `The ${noun} ${own.message}.` : error.message;
}

/** Show an error beside a field; an empty text hides it. */
export function showFieldError(field, place, text) {
  setText(place, text);
  place.hidden = !text;
  if (text) field?.setAttribute("aria-invalid", "true");
  else field?.removeAttribute("aria-invalid");
}

/** Read a sentence aloud to readers who cannot see the change. */
export function announce(text) {
  const region = byId("edited");
  region.textContent = "";
  requestAnimationFrame(() => setText(region, text));
}
