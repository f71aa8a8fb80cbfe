// The table of runs: only the rows in view are in the document. Rows keep their elements while they are in view.

import { byId, el, setText } from "./dom.js";
import { ago, integer } from "./format.js";

const MARGIN_ROWS = 12; // rows that are drawn above and below those in view
const ROW_HEIGHT = 38; // pixels
const CARD_HEIGHT = 84;
const CARD_LINE = 26;
const GROUP_CARD_HEIGHT = 54;
const NARROW = matchMedia("(max-width: 700px)");
const LEVELS = ["critical", "attention", "ok", "unknown"];

/** Return counts of levels as words: `6 critical, 3 attention`. */
export function levelsText(levels) {
  return LEVELS.slice(0, 2).filter((level) => levels[level]).map((level) => `${integer(levels[level])} ${level}`).join(", ");
}

export class RunTable {
  constructor(data, columns, marks, { onSort, onFold, onView }) {
    Object.assign(this, { data, columns, marks, onSort, onFold, onView });
    this.table = byId("runs");
    this.scroller = byId("list");
    this.body = this.table.tBodies[0];
    this.rows = new Map(); // {element, run, marked} by key
    this.first = 0;
    this.last = -1;
    this.above = el("tr", { class: "space", "aria-hidden": "true" }, el("td", {}));
    this.below = el("tr", { class: "space", "aria-hidden": "true" }, el("td", {}));
    let isWaiting = false;
    const draw = () => {
      if (isWaiting) return;
      isWaiting = true;
      requestAnimationFrame(() => { isWaiting = false; this.draw(); });
    };
    this.scroller.addEventListener("scroll", draw, { passive: true });
    window.addEventListener("scroll", draw, { passive: true });
    window.addEventListener("resize", draw);
    NARROW.addEventListener("change", () => { this.fitRows(); draw(); });
    this.body.addEventListener("keydown", (event) => this.moveFocus(event));
  }

  drawHead(sort) {
    const key = sort.replace(/^-/, "") || "created_at";
    const isDescending = !sort || sort.startsWith("-");
    const cells = this.columns.shown.map((column) => {
      const isSorted = column.name === key;
      const attributes = { scope: "col", class: column.isNumber ? "number" : null, "data-column": column.name, "aria-sort": isSorted ? (isDescending ? "descending" : "ascending") : null };
      if (column.isUnsorted) return el("th", attributes, column.label);
      const next = isSorted ? (isDescending ? key : `-${key}`) : column.first ?? column.name;
      const button = el("button", { type: "button", class: "sort", title: `Sort by ${column.label.toLowerCase()}` }, column.label);
      button.addEventListener("click", () => this.onSort(next, column.name));
      return el("th", attributes, button);
    });
    this.headCells = cells.length + 1;
    this.fitRows();
    this.table.tHead.rows[0].replaceChildren(this.table.tHead.rows[0].cells[0], ...cells);
    this.rows.clear();
    this.draw();
  }

  /** Set the height of all rows: on a narrow screen a row is a card with two columns of values. */
  fitRows() {
    const pairs = Math.ceil((this.columns.shown.length - 2) / 2);
    this.rowHeight = NARROW.matches ? CARD_HEIGHT + CARD_LINE * pairs : ROW_HEIGHT;
    this.groupHeight = NARROW.matches ? GROUP_CARD_HEIGHT : ROW_HEIGHT;
    this.table.style.setProperty("--row", `${this.rowHeight}px`);
    this.table.style.setProperty("--group-row", `${this.groupHeight}px`);
  }

  /** Return the distance of a row from the first one, in pixels. */
  topOf(row) {
    let [rest, top] = [row, 0];
    for (const part of this.data.parts) {
      for (const [count, height] of this.extentsOf(part)) {
        if (rest <= count) return top + rest * height;
        rest -= count;
        top += count * height;
      }
    }
    return top;
  }

  /** Return the row at a distance from the first one. */
  rowAtTop(distance) {
    let [row, rest] = [0, distance];
    for (const part of this.data.parts) {
      for (const [count, height] of this.extentsOf(part)) {
        if (rest < count * height) return row + Math.floor(rest / height);
        row += count;
        rest -= count * height;
      }
    }
    return Math.max(0, row - 1);
  }

  extentsOf(part) { return [[part.group ? 1 : 0, this.groupHeight], [part.isOpen ? part.total : 0, this.rowHeight]]; }

  /** Draw the rows in view. */
  draw() {
    const count = this.data.rowCount;
    const top = this.scroller.getBoundingClientRect().top;
    const origin = this.body.getBoundingClientRect().top;
    const visibleTop = Math.max(0, Math.max(top, 0) - origin);
    const visibleHeight = Math.min(this.scroller.clientHeight, window.innerHeight);
    this.seenFirst = this.rowAtTop(visibleTop);
    this.seenLast = this.rowAtTop(visibleTop + visibleHeight);
    this.first = Math.max(0, this.seenFirst - MARGIN_ROWS);
    this.last = Math.min(count - 1, this.seenLast + MARGIN_ROWS);
    const elements = [];
    const used = new Set();
    for (let row = this.first; row <= this.last; row += 1) {
      const found = this.data.rowAt(row);
      if (!found) break;
      let key = found.index < 0 ? `group ${JSON.stringify(found.part.group.value)}` : found.run ? `${found.run.id} ${found.part.group?.value ?? ""}` : `row ${row}`;
      if (used.has(key)) key += ` ${row}`; // a run that has moved from one page to another
      used.add(key);
      elements.push(this.rowElement(key, found, row));
    }
    for (const key of this.rows.keys()) if (!used.has(key)) this.rows.delete(key);
    this.above.style.height = `${this.topOf(this.first)}px`;
    this.below.style.height = `${this.topOf(count) - this.topOf(this.last + 1)}px`;
    const wanted = [this.above, ...elements, this.below];
    const isSame = wanted.length === this.body.childElementCount && wanted.every((each, index) => each === this.body.children[index]);
    if (!isSame) this.place(wanted);
    this.table.setAttribute("aria-rowcount", count + 1);
    this.onView(this.first, this.last);
  }

  /** Put the rows into the table; those that stay are not moved, so that focus and pointer stay where they are. */
  place(wanted) {
    const kept = new Set(wanted);
    for (const child of [...this.body.children]) if (!kept.has(child)) child.remove();
    wanted.forEach((element, index) => {
      if (this.body.children[index] !== element) this.body.insertBefore(element, this.body.children[index] ?? null);
    });
  }

  rowElement(key, found, row) {
    const before = this.rows.get(key);
    const isMarked = found.run ? this.marks.has(found.run.id) : false;
    let element = before?.element;
    if (found.index < 0) element = this.groupRow(found.part, element);
    else if (!found.run) element ??= el("tr", { class: "waiting" }, el("td", { colspan: this.headCells }, "…"));
    else if (!element || JSON.stringify(before.run) !== JSON.stringify(found.run)) element = this.runRow(found.run, element);
    if (found.run) {
      const box = element.querySelector("input");
      box.checked = isMarked;
      element.toggleAttribute("data-marked", isMarked);
      for (const time of element.querySelectorAll("time")) setText(time, ago(time.dateTime));
    }
    element.setAttribute("aria-rowindex", row + 2);
    element.dataset.row = row;
    this.rows.set(key, { element, run: found.run });
    return element;
  }

  /** Return the row of a run; an element that it has is filled anew, so that its focus stays. */
  runRow(run, element) {
    const cells = this.columns.shown.slice(1).map((column) => el("td", { class: column.isNumber ? "number" : null, "data-label": column.label, "data-column": column.name }, column.cell(run)));
    if (element) {
      while (element.cells.length > 2) element.cells[2].remove();
      setText(element.querySelector("a.name"), run.name);
    } else {
      const box = el("input", { type: "checkbox", "aria-label": `Mark ${run.name}`, value: run.id });
      element = el("tr", { "data-run": run.id }, el("td", { class: "box" }, box), el("th", { scope: "row" }, el("a", { class: "name", href: `/runs/${run.id}`, title: run.name }, run.name), run.group ? el("span", { class: "muted small group-name" }, run.group) : null));
      box.addEventListener("click", (event) => this.marks.toggle(Number(element.dataset.row), box.checked, event.shiftKey));
    }
    Object.assign(element.dataset, { verdict: run.verdict, level: run.level });
    element.append(...cells);
    return element;
  }

  groupRow(part, element) {
    const { value, total, levels } = part.group;
    const name = value === null ? "without" : String(value);
    if (!element) {
      const button = el("button", { type: "button", class: "fold" }, el("span", { class: "value" }, name), el("span", { class: "muted small" }));
      button.addEventListener("click", () => this.onFold(part));
      element = el("tr", { class: "group" }, el("th", { colspan: this.headCells, scope: "rowgroup" }, button));
    }
    const button = element.querySelector("button");
    button.setAttribute("aria-expanded", String(part.isOpen));
    const text = levelsText(levels);
    setText(button.lastElementChild, ` ${integer(total)} ${total === 1 ? "run" : "runs"}${text ? `: ${text}` : ""}`);
    return element;
  }

  moveFocus(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const row = event.target.closest("tr");
    if (!step || !row) return;
    event.preventDefault();
    const next = this.body.querySelector(`tr[data-row="${Number(row.dataset.row) + step}"]`);
    next?.querySelector(event.target.matches("input") ? "input" : "a, button")?.focus();
  }
}
