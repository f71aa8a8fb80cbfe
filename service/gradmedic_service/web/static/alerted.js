// The line of a run's page that shows its last alert, and where it was delivered.

import { get } from "./api.js";
import { deliveryText } from "./deliveries.js";
import { byId, el } from "./dom.js";
import { time } from "./format.js";

const REFRESH_MILLISECONDS = 10_000;
let timer = 0;

async function refresh() {
  clearTimeout(timer);
  try {
    const { items: [alert] } = await get("/alerts/history", { run_id: document.body.dataset.run, max_results: 1 });
    const line = byId("alerted");
    line.hidden = !alert;
    if (alert) {
      const deliveries = alert.deliveries.flatMap((delivery, at) => [at ? "; " : ": ", deliveryText(delivery)]);
      line.replaceChildren(...el("p", {}, "Alerted ", time(alert.created_at), deliveries, ". ", el("a", { href: `/alerts?project=${encodeURIComponent(alert.project)}` }, "All alerts")).childNodes);
    }
  } catch {
    // The page shows by itself that the service does not answer.
  }
  if (!document.hidden) timer = setTimeout(refresh, REFRESH_MILLISECONDS);
}

function begin() {
  refresh();
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
}

// The pictures of the page do not wait for this line: it is read when they are shown.
if (document.body.dataset.ready === undefined) {
  const observer = new MutationObserver(() => { observer.disconnect(); begin(); });
  observer.observe(document.body, { attributeFilter: ["data-ready"] });
} else {
  begin();
}
