// The notes of a run: the service renders their Markdown, this module shows and edits them.

import { get, getPart } from "./api.js";
import { byId, setText } from "./dom.js";
import { announce, changeRun, reasonOf, showFieldError } from "./editing.js";

let shown = null; // the run in view
let rendered = null; // text of the notes that the page shows
let base = ""; // text of the notes from which the reader's text began
let isSaving = false;

const form = byId("notes-form"); // null where the reader may not edit
const field = form?.elements.notes;
const notesOf = (run) => run.notes ?? "";
const isOpen = () => form !== null && !form.hidden;

// What is typed outlives a login that comes between.
const draft = {
  key: () => `gradmedic notes ${shown.id}`,
  save: () => sessionStorage.setItem(draft.key(), JSON.stringify({ text: field.value, base })),
  read: () => JSON.parse(sessionStorage.getItem(draft.key()) ?? "null"),
  remove: () => sessionStorage.removeItem(draft.key()),
};

function showSection() {
  byId("notes").hidden = !rendered && !isOpen();
  byId("notes-text").hidden = !rendered || isOpen();
  if (!form) return;
  byId("add-notes").hidden = !byId("notes").hidden;
  byId("edit-notes").hidden = isOpen();
}

/** Show a text as it is, until the service has rendered it. */
function showPlain(text) {
  rendered = text;
  byId("notes-text").classList.add("plain");
  setText(byId("notes-text"), text);
  showSection();
}

/** Show the notes that the service has rendered. */
async function showRendered(run) {
  const text = notesOf(run);
  if (text === rendered && !byId("notes-text").classList.contains("plain")) return;
  const html = text ? await getPart(`/runs/${run.id}/notes`) : "";
  if (isSaving || text !== notesOf(shown)) return; // there is a newer text
  rendered = text;
  byId("notes-text").classList.remove("plain");
  byId("notes-text").replaceChildren(...new DOMParser().parseFromString(html, "text/html").body.childNodes);
  showSection();
}

/** Show the notes of a run; the page holds those with which it was sent. A form that is open keeps what was typed. */
export async function showNotes(run) {
  const isFirst = shown === null;
  shown = run;
  if (isFirst) {
    rendered = notesOf(run);
    if (form) restoreDraft();
  } else if (!isSaving) await showRendered(run);
}

function restoreDraft() {
  const saved = draft.read();
  if (saved === null) return;
  open(saved.text, "This is what you typed before. It is not saved yet.");
  base = saved.base;
}

function open(text, reason = "") {
  field.value = text;
  base = notesOf(shown);
  form.hidden = false;
  showFieldError(null, byId("notes-error"), reason);
  showSection();
}

function close() {
  form.hidden = true;
  showFieldError(field, byId("notes-error"), "");
  showSection();
}

const focusButton = () => (byId("notes").hidden ? byId("add-notes") : byId("edit-notes")).focus();

function cancel() {
  draft.remove();
  close();
  showRendered(shown).catch(() => {});
  focusButton();
}

class ChangedElsewhere extends Error {}

/** Return the body of the change. Throws ChangedElsewhere if the stored notes are not those that the reader began from. */
async function makeBody(text) {
  const stored = notesOf(await get(`/runs/${shown.id}`));
  if (stored !== base && stored !== text) {
    base = stored;
    throw new ChangedElsewhere(`The notes were changed elsewhere meanwhile, to: “${stored.slice(0, 300)}${stored.length > 300 ? " …" : ""}” Save again to replace them by yours.`);
  }
  return { notes: text };
}

async function save(applyRun) {
  const [text, before] = [field.value.trimEnd(), rendered];
  isSaving = true;
  close();
  showPlain(text);
  focusButton();
  try {
    const run = await changeRun(shown.id, () => makeBody(text));
    isSaving = false;
    draft.remove();
    applyRun(run);
    announce("The notes are saved.");
  } catch (error) {
    isSaving = false;
    showPlain(before);
    const [typed, stored] = [isOpen() ? field.value : text, base];
    open(typed, reasonOf(error, "notes", "text"));
    base = stored;
    field.setAttribute("aria-invalid", "true");
    field.focus();
    await showRendered(shown).catch(() => {});
  }
  showSection();
}

/** Let the reader edit the notes, where the page offers it. */
export function listenToNotes(applyRun) {
  if (!form) return;
  for (const id of ["add-notes", "edit-notes"]) byId(id).addEventListener("click", () => { open(notesOf(shown)); field.focus(); });
  byId("notes-cancel").addEventListener("click", cancel);
  field.addEventListener("input", () => { draft.save(); field.removeAttribute("aria-invalid"); });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && field.value === base) cancel();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.addEventListener("submit", (event) => { event.preventDefault(); save(applyRun); });
}
