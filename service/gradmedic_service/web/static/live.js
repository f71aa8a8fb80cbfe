// What is new about a run and its reruns: by server-sent events, or by asking now and then where those are not to be had.

import { address, get } from "./api.js";

const POLL_MILLISECONDS = 4000;

/**
 * Call `changed({steps?, verdict?, status?, rerun?})` whenever something happened, and `say(text)` about the connection.
 * `isAsking` is true where there is no stream: how reruns stand is not known then. While nobody looks at the page, nothing
 * is asked, and no connection is held: a browser has six to a server, for all its pages together.
 */
export function follow(runId, changed, say) {
  let source = null;
  let timer = 0;
  let revision = null;
  let status = null;

  function listen() {
    source = new EventSource(address(`/runs/${runId}/events`));
    source.onopen = () => say("live");
    for (const name of ["status", "verdict", "steps", "rerun"]) {
      source.addEventListener(name, (event) => changed({ [name]: JSON.parse(event.data) }));
    }
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) poll(); // refused: too many streams, or a proxy that allows none
      else say("reconnecting …");
    };
  }

  async function poll() {
    clearTimeout(timer);
    try {
      const run = await get(`/runs/${runId}`);
      say(`asking every ${POLL_MILLISECONDS / 1000} s`);
      const isNew = run.revision !== revision || run.status !== status;
      ({ revision, status } = run);
      changed({ isAsking: true, ...(isNew && { steps: run, verdict: run, status: run }) });
    } catch (error) {
      say(error.status ? error.message : "the service cannot be reached");
      if (error.status === 404) return;
    }
    if (!document.hidden) timer = setTimeout(poll, POLL_MILLISECONDS);
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      source?.close();
      clearTimeout(timer);
      source = null;
      say("paused");
    } else if (!source) listen();
  });
  if (!document.hidden) listen();
}
