// Follows a run and its reruns: by server-sent events, or by polling where the service or a proxy refuses them.

import { address, get } from "./api.js";

const POLL_MILLISECONDS = 4000;

/**
 * Call `onChange({steps?, verdict?, status?, rerun?})` for each change, and `showState(text)` for the connection. While
 * polling, `isPolling` is true and there are no changes of reruns. A hidden page neither polls nor holds a connection: a
 * browser has six connections to a server, for all its pages together.
 */
export function follow(runId, onChange, showState) {
  let source = null;
  let timer = 0;
  let revision = null;
  let status = null;

  function connect() {
    source = new EventSource(address(`/runs/${runId}/events`));
    source.onopen = () => showState("live");
    for (const name of ["status", "verdict", "steps", "rerun"]) {
      source.addEventListener(name, (event) => onChange({ [name]: JSON.parse(event.data) }));
    }
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) poll(); // refused: too many streams, or a proxy without streams
      else showState("reconnecting …");
    };
  }

  async function poll() {
    clearTimeout(timer);
    try {
      const run = await get(`/runs/${runId}`);
      showState(`polling every ${POLL_MILLISECONDS / 1000} s`);
      const isNew = run.revision !== revision || run.status !== status;
      ({ revision, status } = run);
      onChange({ isPolling: true, ...(isNew && { steps: run, verdict: run, status: run }) });
    } catch (error) {
      showState(error.status ? error.message : "the service cannot be reached");
      if (error.status === 404) return;
    }
    if (!document.hidden) timer = setTimeout(poll, POLL_MILLISECONDS);
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      source?.close();
      clearTimeout(timer);
      source = null;
      showState("paused");
    } else if (!source) connect();
  });
  if (!document.hidden) connect();
}
