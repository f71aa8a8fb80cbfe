// The columns of the list of runs: what each shows, how it is sorted, and which of them the reader has chosen.

import { get } from "./api.js";
import { byId, debounce, el, svg } from "./dom.js";
import { ago, attentionBadge, badge, integer, isUnhealthy, number, statusWord } from "./format.js";

const STORED = "columns of runs";
const SPARK_WIDTH = 96;
const SPARK_HEIGHT = 22;
const LOG_RATIO = 50; // a loss that spans more than this is drawn on a logarithmic axis
const SEARCHED_COLUMNS = 12; // above this number the chooser has a field to search

/** Return seconds as a person says them, in at most two units. */
export function durationText(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Return a picture of the course of a loss; steps without a finite loss are dots at the top. */
export function sparkline(values) {
  const finite = values.filter((value) => typeof value === "number");
  if (values.length < 2) return null;
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  const isLog = low > 0 && high / low > LOG_RATIO;
  const scaled = (value) => (isLog ? Math.log(value) : value);
  const span = scaled(high) - scaled(low);
  const x = (index) => 2 + (index / (values.length - 1)) * (SPARK_WIDTH - 4);
  const y = (value) => (span > 0 ? SPARK_HEIGHT - 2 - ((scaled(value) - scaled(low)) / span) * (SPARK_HEIGHT - 4) : SPARK_HEIGHT / 2);
  let path = "";
  let isDrawing = false;
  const lost = [];
  values.forEach((value, index) => {
    if (typeof value === "number") path += `${isDrawing ? "L" : "M"}${x(index).toFixed(1)},${y(value).toFixed(1)}`;
    else if (value !== null) lost.push(svg("circle", { cx: x(index).toFixed(1), cy: 3, r: 1.6 }));
    if (value !== null) isDrawing = typeof value === "number";
  });
  return svg("svg", { class: "spark", viewBox: `0 0 ${SPARK_WIDTH} ${SPARK_HEIGHT}`, width: SPARK_WIDTH, height: SPARK_HEIGHT, "aria-hidden": "true" }, svg("path", { d: path }), lost);
}

const valueText = (value) => (value === null || value === undefined ? "–" : typeof value === "number" ? number(value) : typeof value === "string" ? value : JSON.stringify(value));

function lossCell(run) {
  if (!run.loss) return "–";
  const title = `Loss ${number(run.loss.last)} at step ${integer(run.loss.step)}`;
  return el("span", { class: "loss", title }, sparkline(run.loss.sparkline), el("span", { class: typeof run.loss.last === "number" ? "last" : "last lost" }, number(run.loss.last)));
}

function verdictCell(run) {
  const isSick = isUnhealthy(run.verdict);
  const where = isSick && run.first_bad_layer ? run.first_bad_layer : run.learning !== "unknown" && !isSick ? run.learning : "";
  const title = isSick ? `since step ${integer(run.since_step)}${run.first_bad_layer ? `, first in ${run.first_bad_layer}` : ""}` : null;
  return el("span", { class: "verdict", title }, run.level === "attention" ? attentionBadge(run.level) : badge(run.verdict), where ? el("span", { class: "where" }, el("bdi", {}, where)) : null);
}

/** The status, and whether guards acted: such a run may be healthy because they did. */
function statusCell(run) {
  if (!run.guard_actions) return statusWord(run.status);
  const title = `Guards acted ${run.guard_actions === 1 ? "once" : `${integer(run.guard_actions)} times`} in this run`;
  return el("span", { title }, statusWord(run.status), el("span", { class: "muted small guarded" }, " guarded"));
}

const tagsCell = (run) => run.tags.map((tag) => el("a", { class: "tag", href: `/?${new URLSearchParams({ tag })}`, title: `Runs with the tag ${tag}` }, tag));

const STANDARD = [
  { name: "level", label: "Verdict", cell: verdictCell, isFixed: true, first: "-level" },
  { name: "loss", label: "Loss", cell: lossCell, isNumber: true, isShown: true },
  { name: "last_step", label: "Step", cell: (run) => integer(run.last_step), isNumber: true, isShown: true, first: "-last_step" },
  { name: "duration", label: "Duration", cell: (run) => durationText(run.duration), isNumber: true, isShown: true, first: "-duration" },
  { name: "created_at", label: "Started", cell: (run) => el("time", { datetime: run.created_at, title: new Date(run.created_at).toLocaleString() }, ago(run.created_at)), isShown: true, first: "-created_at" },
  { name: "status", label: "Status", cell: statusCell, isShown: true },
  { name: "tags", label: "Tags", cell: tagsCell, isShown: true, isUnsorted: true },
  { name: "project", label: "Project", cell: (run) => run.project, isShown: true },
  { name: "group", label: "Group", cell: (run) => run.group ?? "–" },
  { name: "first_bad_layer", label: "First bad layer", cell: (run) => run.first_bad_layer ?? "–" },
  { name: "updated_at", label: "Changed", cell: (run) => el("time", { datetime: run.updated_at }, ago(run.updated_at)), first: "-updated_at" },
];
const NAME = { name: "name", label: "Run" };

/** Return a column of a hyperparameter (`config.NAME`) or a metric (`metric.NAME`). */
function valueColumn(name) {
  const key = name.slice(name.indexOf(".") + 1);
  const read = name.startsWith("config.") ? (run) => run.config[key] : (run) => run.last_metrics[key];
  const cell = (run) => el("span", { class: "value", title: valueText(read(run)) }, valueText(read(run)));
  return { name, label: key, cell, isNumber: true, isValue: true, first: name.startsWith("metric.") ? `-${name}` : name };
}

const isValueName = (name) => /^(config|metric)\../.test(name);

/** The columns that the list shows, which the address holds and the browser remembers. */
export class Columns {
  constructor(parameters, onChange) {
    this.onChange = onChange;
    const given = parameters.getAll("column");
    let chosen = given.length ? given : null;
    try { chosen ??= JSON.parse(localStorage.getItem(STORED)); } catch { /* the browser may forbid storage */ }
    this.chosen = Array.isArray(chosen) ? chosen.filter((name) => typeof name === "string") : null;
    this.menu = byId("columns");
    this.menu.addEventListener("toggle", () => { if (this.menu.open) this.fillMenu(); });
    document.addEventListener("click", (event) => { if (!this.menu.contains(event.target)) this.menu.open = false; });
    this.menu.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { this.menu.open = false; this.menu.querySelector("summary").focus(); }
    });
  }

  get names() { return this.chosen ?? STANDARD.filter((column) => column.isShown).map((column) => column.name); }

  /** The columns in order: verdict, loss, then the values that the reader chose, then the other standard ones. */
  get shown() {
    const names = this.names;
    const standard = STANDARD.filter((column) => column.isFixed || names.includes(column.name));
    const place = standard.findIndex((column) => column.name === "loss") + 1 || 1;
    return [NAME, ...standard.slice(0, place), ...names.filter(isValueName).map(valueColumn), ...standard.slice(place)];
  }

  get configKeys() { return this.names.filter((name) => name.startsWith("config.")).map((name) => name.slice(7)); }

  /** Return the orders that a reader can choose from. */
  get sorts() {
    const texts = new Map([["created_at", ["oldest first", "newest first"]], ["updated_at", ["changed first", "last changed first"]]]);
    return [NAME, ...STANDARD, ...this.names.filter(isValueName).map(valueColumn)].filter((column) => !column.isUnsorted).flatMap((column) => {
      const [up, down] = texts.get(column.name) ?? [`${column.label}, ascending`, `${column.label}, descending`];
      return [[`-${column.name}`, down], [column.name, up]];
    });
  }

  saveTo(parameters) {
    if (this.chosen) for (const name of this.chosen) parameters.append("column", name);
  }

  choose(name, isChosen) {
    this.chosen = isChosen ? [...this.names.filter((each) => each !== name), name] : this.names.filter((each) => each !== name);
    try { localStorage.setItem(STORED, JSON.stringify(this.chosen)); } catch { /* the choice then stays in the address */ }
    this.onChange();
  }

  async fillMenu() {
    const list = this.menu.querySelector("ul");
    const found = await get("/runs/columns", this.query?.() ?? {}).then(({ items }) => items, () => []);
    const values = [...new Set([...this.names.filter(isValueName), ...found.map(({ name }) => name)])];
    const item = (name, label, hint) => {
      const box = el("input", { type: "checkbox", checked: this.names.includes(name) });
      box.addEventListener("change", () => this.choose(name, box.checked));
      return el("li", {}, el("label", { class: "check", title: name }, box, " ", label, hint ? el("span", { class: "muted small" }, ` ${hint}`) : null));
    };
    const constant = new Set(found.filter(({ varies }) => !varies).map(({ name }) => name));
    list.replaceChildren(
      ...STANDARD.filter((column) => !column.isFixed).map((column) => item(column.name, column.label)),
      ...values.map((name) => item(name, name.slice(7), `${name.slice(0, 6) === "config" ? "setting" : "metric"}${constant.has(name) ? ", the same in all" : ""}`)));
    const search = this.menu.querySelector("input[type=search]");
    search.parentElement.hidden = list.childElementCount <= SEARCHED_COLUMNS;
    search.oninput = debounce(100, () => {
      for (const each of list.children) each.hidden = !each.textContent.toLowerCase().includes(search.value.trim().toLowerCase());
    });
  }
}
