// The tags of a run: shown, added and removed. A change is seen at once, and taken back if the service refuses it.

import { get } from "./api.js";
import { byId, el } from "./dom.js";
import { announce, changeRun, reasonOf, showFieldError } from "./editing.js";

let shown = null; // the run in view
let waiting = []; // changes {tag, isAdded} that are not confirmed yet
let change = null; // function that sends a change; null where the reader may not edit

const apply = (tags, { tag, isAdded }) => [...tags.filter((each) => each !== tag), ...(isAdded ? [tag] : [])];
const currentTags = () => waiting.reduce(apply, shown.tags);

function chip(tag) {
  const button = change && el("button", { type: "button", "aria-label": `Remove the tag ${tag}`, "data-tag": tag }, "×");
  button?.addEventListener("click", () => remove(tag));
  return el("li", { class: "chip" }, el("a", { href: `/?tag=${encodeURIComponent(tag)}` }, tag), button);
}

/** Show the tags of a run; the focus stays. */
export function showTags(run) {
  shown = run;
  const tags = currentTags();
  const list = byId("tag-list");
  byId("tags").hidden = !tags.length && !change;
  const key = JSON.stringify(tags);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.tag : undefined;
  list.replaceChildren(...tags.map(chip));
  if (focused !== undefined) [...list.querySelectorAll("button")].find(({ dataset }) => dataset.tag === focused)?.focus();
}

async function send(step, applyRun) {
  waiting.push(step);
  showTags(shown);
  const forget = () => { waiting = waiting.filter((each) => each !== step); };
  try {
    const run = await changeRun(shown.id, async () => ({ tags: apply((await get(`/runs/${shown.id}`)).tags, step) }));
    forget();
    applyRun(run);
  } catch (error) {
    forget();
    showTags(shown);
    throw error;
  }
}

function remove(tag) {
  const buttons = [...byId("tag-list").querySelectorAll("button")];
  const at = buttons.findIndex(({ dataset }) => dataset.tag === tag);
  const place = byId("tag-error");
  change({ tag, isAdded: false }).then(
    () => { showFieldError(null, place, ""); announce(`The tag ${tag} is removed.`); },
    (error) => showFieldError(null, place, `The tag ${tag} is still there: ${reasonOf(error, "tags", "tag")}`),
  );
  const left = byId("tag-list").querySelectorAll("button");
  (left[Math.min(at, left.length - 1)] ?? byId("tag-form").elements.tag).focus();
}

async function add(form) {
  const field = form.elements.tag;
  const [typed, tag] = [field.value, field.value.trim()];
  const place = byId("tag-error");
  if (currentTags().includes(tag)) {
    showFieldError(field, place, `The run has the tag ${tag} already.`);
    return;
  }
  showFieldError(field, place, "");
  field.value = "";
  try {
    await change({ tag, isAdded: true });
    announce(`The tag ${tag} is added.`);
  } catch (error) {
    if (!field.value) field.value = typed;
    showFieldError(field, place, reasonOf(error, "tags", "tag"));
    field.focus();
  }
}

/** Let the reader add and remove tags, where the page offers it. */
export function listenToTags(applyRun) {
  const form = byId("tag-form");
  if (!form) return;
  change = (step) => send(step, applyRun);
  form.addEventListener("submit", (event) => { event.preventDefault(); add(form); });
  form.elements.tag.addEventListener("input", () => showFieldError(form.elements.tag, byId("tag-error"), ""));
}
