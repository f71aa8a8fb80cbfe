// The head of a run's page: its name, its address and id to copy, and its deletion.

import { send } from "./api.js";
import { byId, copyText, setText } from "./dom.js";
import { announce, changeRun, reasonOf, showFieldError } from "./editing.js";

const COPIED_MILLISECONDS = 2000;

const heading = document.querySelector("#title h1");
let shown = null; // the run in view
let sentName = null; // name that was sent and is not confirmed yet

/** Show name and status of a run, and its verdict in the title of the page. */
export function showHeader(run) {
  shown = run;
  const name = sentName ?? run.name;
  setText(heading, name);
  document.title = `${name} · ${run.verdict}${run.level === "attention" ? ", attention" : ""} · gradmedic`;
  const status = byId("status");
  status.dataset.status = run.status;
  setText(status, run.status);
}

function openRename(name, reason = "") {
  const form = byId("rename-form");
  form.elements.name.value = name;
  heading.classList.add("hidden"); // the heading stays for screen readers
  byId("rename").hidden = true;
  form.hidden = false;
  showFieldError(form.elements.name, byId("rename-error"), reason);
  form.elements.name.focus();
  form.elements.name.select();
}

function closeRename() {
  const form = byId("rename-form");
  form.hidden = true;
  heading.classList.remove("hidden");
  byId("rename").hidden = false;
  showFieldError(form.elements.name, byId("rename-error"), "");
  byId("rename").focus();
}

async function rename(runId, applyRun) {
  const name = byId("rename-form").elements.name.value.trim();
  closeRename();
  if (name === shown.name) return;
  sentName = name;
  showHeader(shown);
  byId("rename").disabled = true;
  try {
    const run = await changeRun(runId, () => ({ name }));
    sentName = null;
    applyRun(run);
    announce(`The run is now called ${name}.`);
  } catch (error) {
    sentName = null;
    showHeader(shown);
    openRename(name, reasonOf(error, "name", "name"));
  } finally {
    byId("rename").disabled = false;
  }
}

function listenToRename(runId, applyRun) {
  const form = byId("rename-form");
  if (!form) return;
  byId("rename").addEventListener("click", () => openRename(shown.name));
  byId("rename-cancel").addEventListener("click", closeRename);
  form.addEventListener("keydown", (event) => { if (event.key === "Escape") closeRename(); });
  form.addEventListener("submit", (event) => { event.preventDefault(); rename(runId, applyRun); });
}

/** Copy a text when a button is clicked; the button shows for a moment whether it was copied. */
function listenToCopy(button, textOf, noun) {
  const label = button.textContent;
  button.addEventListener("click", async () => {
    button.style.minWidth = `${button.offsetWidth}px`; // the buttons beside it do not move
    const isCopied = await copyText(textOf());
    setText(button, isCopied ? "Copied" : "Not copied");
    announce(isCopied ? `The ${noun} is in the clipboard.` : `The browser does not let this page copy the ${noun}.`);
    setTimeout(() => setText(button, label), COPIED_MILLISECONDS);
  });
}

function listenToDelete(runId) {
  const dialog = byId("delete-dialog");
  if (!dialog) return;
  byId("delete").addEventListener("click", () => {
    setText(byId("delete-name"), shown.name);
    byId("delete-running").hidden = shown.status !== "running";
    showFieldError(null, byId("delete-error"), "");
    dialog.showModal();
    byId("delete-cancel").focus();
  });
  byId("delete-cancel").addEventListener("click", () => dialog.close());
  byId("delete-confirm").addEventListener("click", async (event) => {
    event.preventDefault();
    event.target.disabled = true;
    try {
      await send("DELETE", `/runs/${runId}`);
      location.assign(`/?project=${encodeURIComponent(shown.project)}`);
    } catch (error) {
      event.target.disabled = false;
      showFieldError(null, byId("delete-error"), error.message);
    }
  });
}

/** Listen to the buttons of the head; `applyRun(run)` gets the run after a change. */
export function listenToHeader(runId, applyRun) {
  listenToRename(runId, applyRun);
  listenToCopy(byId("copy-link"), () => location.href, "address of this view");
  listenToCopy(byId("copy-id"), () => runId, "id of the run");
  listenToDelete(runId);
}
