// The page of alerts: a project's destinations, its mute, and the history with the states of the deliveries.

import { get, getAll, send, showError } from "./api.js";
import { deliveryText } from "./deliveries.js";
import { byId, copyButton, el, setText } from "./dom.js";
import { time } from "./format.js";

const REFRESH_MILLISECONDS = 4000;
const PAGE = 50;
const MUTES = [[1, "an hour"], [8, "8 hours"], [72, "3 days"]]; // hours, and their name

const isAdmin = document.body.dataset.admin === "yes";
const { project } = byId("filters").elements;
const shownTexts = new Map(); // what a table shows, as JSON, by its id
let pages = 1;
let timer = 0;
let requests = 0;
let hasFailed = false; // whether the last refresh has failed

const inHours = (hours) => new Date(Date.now() + hours * 3_600_000).toISOString();
const isAhead = (moment) => moment !== null && Date.parse(moment) > Date.now();
const clockTime = (moment) => el("time", { datetime: moment }, new Date(moment).toLocaleString());

/** Return a button that does something, shows the text that `action()` returns, and reads the page again. */
function actionButton(label, name, action) {
  const button = el("button", { type: "button", "aria-label": `${label}: ${name}` }, label);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      setText(byId("done"), await action() ?? "");
      showError(null);
      button.blur();
      await refresh();
    } catch (error) {
      showError(error);
    }
    button.disabled = false;
  });
  return button;
}

function stateOf({ muted_until: mutedUntil, last_error: error, last_delivered_at: deliveredAt }) {
  if (isAhead(mutedUntil)) return ["muted until ", clockTime(mutedUntil)];
  if (error) return ["failed: ", error];
  return deliveredAt ? ["delivered ", time(deliveredAt)] : ["not used yet"];
}

function actionsOf(destination) {
  const { id, name } = destination;
  const path = `/alerts/destinations/${id}`;
  const remove = actionButton("Remove", name, async () => {
    if (remove.dataset.isConfirmed === "yes") { await send("DELETE", path); return `${name} was removed.`; }
    remove.dataset.isConfirmed = "yes";
    remove.textContent = "Really remove";
    remove.setAttribute("aria-label", `Really remove: ${name}`);
    return null;
  });
  const muteUntil = (moment, done) => async () => { await send("PATCH", path, { muted_until: moment() }); return done; };
  const mute = isAhead(destination.muted_until)
    ? actionButton("End the mute", name, muteUntil(() => inHours(0), `${name} is not muted any more.`))
    : actionButton("Mute for 8 hours", name, muteUntil(() => inHours(8), `${name} is muted for 8 hours.`));
  const test = actionButton("Test", name, async () => {
    const { is_delivered: isDelivered, error } = await send("POST", `${path}/test`);
    return isDelivered ? `A test message was delivered to ${name}.` : `The test message was not delivered to ${name}: ${error}`;
  });
  return [test, " ", mute, " ", remove];
}

const destinationRow = (destination) => el("tr", { "data-destination": destination.id },
  el("th", { scope: "row" }, destination.name),
  el("td", { "data-label": "Project" }, destination.project),
  el("td", { "data-label": "Address" }, el("code", {}, destination.address)),
  el("td", { "data-label": "Troubles" }, destination.troubles?.join(", ") ?? "all"),
  el("td", { "data-label": "State" }, stateOf(destination)),
  isAdmin ? el("td", {}, actionsOf(destination)) : null);

const alertRow = (alert) => el("tr", { "data-alert": alert.id, "data-trouble": alert.trouble },
  el("th", { scope: "row" }, el("a", { href: alert.path }, alert.title), el("p", { class: "muted small" }, alert.sentence), alert.advice ? el("p", { class: "muted small" }, "First advice: ", alert.advice) : null),
  el("td", { "data-label": "Project" }, alert.project),
  el("td", { "data-label": "Made" }, time(alert.created_at)),
  el("td", { "data-label": "Deliveries" }, el("ul", { class: "deliveries" }, alert.deliveries.map((delivery) => el("li", { "data-state": delivery.state }, deliveryText(delivery))))));

/** Replace the rows of a table where they have changed and the reader is not in them. */
function showRows(table, items, rowOf, emptyId) {
  const text = JSON.stringify(items);
  table.hidden = !items.length;
  byId(emptyId).hidden = items.length > 0;
  if (shownTexts.get(table.id) === text || table.contains(document.activeElement)) return;
  shownTexts.set(table.id, text);
  table.tBodies[0].replaceChildren(...items.map(rowOf));
}

function showMute(found) {
  byId("mute").hidden = !found;
  if (byId("add")) byId("add").hidden = !found;
  if (!found) return;
  const isMuted = isAhead(found.alerts_muted_until);
  byId("mute-state").replaceChildren(...(isMuted ? ["No alert is made until ", clockTime(found.alerts_muted_until), "."] : ["The project is not muted."]));
  const actions = byId("mute-actions");
  if (!actions || actions.contains(document.activeElement)) return;
  const path = `/projects/${encodeURIComponent(found.name)}`;
  const muteUntil = (hours, done) => async () => { await send("PATCH", path, { alerts_muted_until: inHours(hours) }); return done; };
  const buttons = isMuted
    ? [actionButton("End the mute", found.name, muteUntil(0, "The mute has ended."))]
    : MUTES.flatMap(([hours, name]) => [actionButton(`Mute for ${name}`, found.name, muteUntil(hours, `The project is muted for ${name}.`)), " "]);
  actions.replaceChildren(...buttons);
}

async function readHistory() {
  const items = [];
  let token = null;
  for (let page = 0; page < pages && (page === 0 || token); page += 1) {
    const answer = await get("/alerts/history", { project: project.value, max_results: PAGE, page_token: token });
    items.push(...answer.items);
    token = answer.next_page_token;
  }
  return [items, token];
}

async function refresh() {
  clearTimeout(timer);
  const thisRequest = requests += 1;
  try {
    const name = project.value;
    const [destinations, [alerts, token], found] = await Promise.all([
      getAll("/alerts/destinations", { project: name }), readHistory(), name ? get(`/projects/${encodeURIComponent(name)}`) : null,
    ]);
    if (thisRequest !== requests) return;
    showMute(found);
    showRows(byId("destinations"), destinations, destinationRow, "no-destination");
    showRows(byId("history"), alerts, alertRow, "no-alert");
    byId("more").hidden = !token;
    setText(byId("live"), "live");
    if (hasFailed) showError(null); // an error of a form or a button stays
    hasFailed = false;
    document.body.dataset.ready = "yes";
  } catch (error) {
    if (thisRequest !== requests) return;
    hasFailed = true;
    showError(error);
    setText(byId("live"), "retrying …");
  }
  if (!document.hidden) timer = setTimeout(refresh, REFRESH_MILLISECONDS);
}

byId("add")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { address, name } = event.target.elements;
  try {
    const made = await send("POST", "/alerts/destinations", { project: project.value, address: address.value.trim(), name: name.value.trim() || null });
    event.target.reset();
    byId("added").replaceChildren(el("p", {}, `${made.name} was added. Test it below.`), ...(made.signing_secret ? [
      el("p", {}, "Copy the secret that signs its messages now; it is not shown again:"),
      el("p", { class: "secret" }, el("code", {}, made.signing_secret), " ", copyButton(made.signing_secret)),
    ] : []));
    showError(null);
    await refresh();
  } catch (error) {
    showError(error);
  }
});
byId("more").addEventListener("click", () => { pages += 1; refresh(); });
project.addEventListener("change", () => {
  pages = 1;
  shownTexts.clear();
  byId("added")?.replaceChildren();
  window.history.replaceState(null, "", project.value ? `?project=${encodeURIComponent(project.value)}` : location.pathname);
  refresh();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });

async function start() {
  try {
    const names = (await getAll("/projects")).map(({ name }) => name);
    project.append(...names.map((name) => el("option", { value: name }, name)));
    const wanted = new URLSearchParams(location.search).get("project");
    project.value = names.includes(wanted) ? wanted : names.length === 1 ? names[0] : "";
  } catch (error) {
    showError(error);
  }
  await refresh();
}

start();
