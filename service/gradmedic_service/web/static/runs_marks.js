// The marked runs, and what can be done with them: compare, tag, delete.

import { send } from "./api.js";
import { MAX_COMPARED, comparisonAddress } from "./comparison.js";
import { byId, el, setText } from "./dom.js";
import { integer } from "./format.js";

const TAGGED_AT_ONCE = 500;
const DELETED_AT_ONCE = 50;
const SHOWN_FAILURES = 5;

const runsText = (count) => `${integer(count)} ${count === 1 ? "run" : "runs"}`;

export class Marks {
  constructor(data, { onMark, onChange }) {
    Object.assign(this, { data, onMark, onChange });
    this.runs = new Map(); // name by id
    this.lastRow = null;
    this.isBusy = false;
    byId("mark-all").addEventListener("change", () => this.markAll());
    byId("unmark").addEventListener("click", () => this.clear());
    const form = byId("tagging");
    form?.addEventListener("submit", (event) => {
      event.preventDefault();
      const tag = form.elements.tag.value.trim();
      const isRemoval = event.submitter?.value === "remove";
      if (tag) this.change("/runs/tags", TAGGED_AT_ONCE, { [isRemoval ? "remove" : "add"]: [tag] }, isRemoval ? `lost the tag ${tag}` : `have the tag ${tag}`);
    });
    byId("delete")?.addEventListener("click", () => this.confirmDeletion());
    byId("confirm-delete")?.addEventListener("click", () => {
      byId("deletion").close();
      this.change("/runs/delete", DELETED_AT_ONCE, {}, "were deleted", true);
    });
    byId("cancel-delete")?.addEventListener("click", () => byId("deletion").close());
    this.show();
  }

  has(id) { return this.runs.has(id); }

  /** Mark or unmark the run of a row; with `isRange`, all from the row that was marked last. */
  async toggle(row, isMarked, isRange) {
    const from = isRange && this.lastRow !== null ? Math.min(this.lastRow, row) : row;
    const to = isRange && this.lastRow !== null ? Math.max(this.lastRow, row) : row;
    this.lastRow = row;
    if (from !== to) await this.data.need(from, to);
    for (let at = from; at <= to; at += 1) {
      const run = this.data.rowAt(at)?.run;
      if (run && isMarked) this.runs.set(run.id, run.name);
      else if (run) this.runs.delete(run.id);
    }
    this.show();
    this.onMark();
  }

  clear() {
    this.runs.clear();
    this.lastRow = null;
    this.show();
    this.onMark();
  }

  /** Mark all runs that fit the filters, or none if all are marked. */
  async markAll() {
    if (this.isBusy) return;
    if (this.runs.size >= this.data.counts.total && this.runs.size) { this.clear(); return; }
    this.isBusy = true;
    try {
      const runs = await this.data.readAll((count) => this.report(`Marking: ${integer(count)} of ${runsText(this.data.counts.total)} …`));
      for (const [id, name] of runs ?? []) this.runs.set(id, name);
      this.report("");
    } catch (error) {
      this.report(`Not all runs were marked: ${error.message}`);
    }
    this.isBusy = false;
    this.show();
    this.onMark();
  }

  show() {
    const count = this.runs.size;
    byId("marks").hidden = !count;
    const names = [...this.runs.values()];
    setText(byId("marked"), count ? `${runsText(count)} marked${count <= 3 ? `: ${names.join(", ")}` : ""}` : "");
    const box = byId("mark-all");
    const total = this.data.counts?.total ?? 0;
    box.checked = count > 0 && count >= total;
    box.indeterminate = count > 0 && count < total;
    const link = byId("compare");
    const canCompare = count >= 2 && count <= MAX_COMPARED;
    link.setAttribute("aria-disabled", String(!canCompare));
    link.title = canCompare ? "" : `Mark two to ${MAX_COMPARED} runs to compare them.`;
    if (canCompare) link.href = comparisonAddress([...this.runs.keys()]);
    else link.removeAttribute("href");
  }

  report(text) { setText(byId("outcome"), text); }

  confirmDeletion() {
    const count = this.runs.size;
    const names = [...this.runs.values()];
    setText(byId("deletion-title"), `Delete ${runsText(count)}?`);
    setText(byId("deletion-text"), `${names.slice(0, 3).join(", ")}${count > 3 ? ` and ${integer(count - 3)} more` : ""}: all steps, diagnoses and reruns of ${count === 1 ? "it" : "them"} are deleted too. This cannot be undone.`);
    setText(byId("confirm-delete"), `Delete ${runsText(count)}`);
    byId("deletion").showModal();
  }

  /** Send a change of all marked runs, a part at a time; say what was done and what was not. */
  async change(path, size, body, done, isDeletion = false) {
    if (this.isBusy) return;
    this.isBusy = true;
    const ids = [...this.runs.keys()];
    let count = 0;
    const failed = [];
    try {
      for (let start = 0; start < ids.length; start += size) {
        const part = ids.slice(start, start + size);
        if (ids.length > size) this.report(`${integer(start)} of ${runsText(ids.length)} …`);
        const answer = await send("POST", path, { ids: part, ...body });
        count += answer.changed.length + answer.unchanged.length;
        failed.push(...answer.failed);
        if (isDeletion) for (const id of answer.changed) this.runs.delete(id);
      }
    } catch (error) {
      failed.push({ detail: `${error.message} ${runsText(ids.length - count - failed.length)} were not changed.` });
    }
    this.isBusy = false;
    const reasons = failed.slice(0, SHOWN_FAILURES).map(({ detail }) => detail).join(" ");
    const more = failed.length > SHOWN_FAILURES ? ` And ${integer(failed.length - SHOWN_FAILURES)} more.` : "";
    this.report(`${runsText(count)} ${count === 1 ? done.replace("have", "has").replace("were", "was") : done}.${reasons ? ` ${reasons}${more}` : ""}`);
    this.show();
    this.onChange();
  }
}

/** Return an element that shows how many runs there are of each level; a click on a level filters by it. */
export function countsSentence(counts, levelsShown, onLevel) {
  const parts = levelsShown.filter((level) => counts.levels[level]).map((level) => {
    const button = el("button", { type: "button", class: "link count", "data-level": level }, `${integer(counts.levels[level])} ${level}`);
    button.addEventListener("click", () => onLevel(level));
    return button;
  });
  return [runsText(counts.total), parts.length ? ": " : "", ...parts.flatMap((part, index) => (index ? [", ", part] : [part]))];
}
