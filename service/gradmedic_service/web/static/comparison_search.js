// The search for a further run of a comparison.

import { get, showError } from "./api.js";
import { MAX_COMPARED } from "./comparison.js";
import { byId, debounce, el } from "./dom.js";
import { attentionBadge, badge, time } from "./format.js";

const MAX_FOUND = 8;

/**
 * Show runs to add while the search is open. `compared` returns the runs of the comparison; `add` gets the id of a run.
 * Without a search text, the runs are those of the first run's project, the newest first.
 */
export function listenToSearch(compared, add) {
  const [details, list] = [byId("add"), byId("found")];
  const field = details.querySelector("input");
  let searches = 0;

  async function search() {
    const thisSearch = searches += 1;
    const runs = compared();
    const text = field.value.trim();
    const isFull = runs.length >= MAX_COMPARED;
    const query = { q: text, project: text ? null : runs[0]?.project, max_results: MAX_FOUND + runs.length };
    const { items } = isFull ? { items: [] } : await get("/runs", query);
    if (thisSearch !== searches) return;
    const shown = new Set(runs.map(({ id }) => id));
    const found = items.filter(({ id }) => !shown.has(id)).slice(0, MAX_FOUND);
    const none = isFull ? `At most ${MAX_COMPARED} runs are compared; remove one first.` : text ? "No other run fits." : "The project has no other run.";
    list.replaceChildren(...(found.length ? found.map((run) => el("li", {},
      el("button", { type: "button", class: "link", onclick: () => add(run.id) }, run.name), " ", badge(run.verdict), " ", attentionBadge(run.level),
      el("span", { class: "muted small" }, ` ${run.project}, created `, time(run.created_at)))) : [el("li", { class: "muted" }, none)]));
  }
  const searchNow = () => search().catch(showError);
  details.addEventListener("toggle", () => { if (details.open) { field.focus(); searchNow(); } });
  field.addEventListener("input", debounce(200, searchNow));
  return () => { if (details.open) searchNow(); };
}
