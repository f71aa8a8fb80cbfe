// The tables of a comparison: a column for each run, a row for each setting, outcome, finding and number.

import { lineStyle } from "./chart.js";
import { compareFindings, differenceOf, directionOf, ratioText } from "./comparison_outcomes.js";
import { divides, isName } from "./comparison_differences.js";
import { el, svg } from "./dom.js";
import { attentionBadge, badge, duration, integer, number, statusWord, steps as stepText, words } from "./format.js";
import { outcomeText, remediesOf, remediesText } from "./remedies.js";

const MAX_ROWS = 100; // of differences at first; a button shows the others
const MAX_CAUSES = 2;
const MAX_TEXT = 160; // characters of a value
const CONDITIONS = new Set(document.body.dataset.conditions.split(" "));

/** Return the sample of a run's line. */
export const swatch = (index) => svg("svg", { width: 28, height: 12, class: lineStyle(index).class, "aria-hidden": "true" }, svg("path", { d: "M0,6H28", "stroke-dasharray": lineStyle(index).dash }));

export const letterBadge = (letter) => el("span", { class: "letter" }, letter);

/** Replace the content of an element if it has changed; the focus stays on the control with the same key. */
export function replaceContent(element, ...content) {
  const next = el("div", {}, ...content);
  if (element.innerHTML === next.innerHTML) return;
  const key = element.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const left = element.querySelector(".scroll")?.scrollLeft ?? 0;
  element.replaceChildren(...next.childNodes);
  const scroll = element.querySelector(".scroll");
  if (scroll) scroll.scrollLeft = left;
  if (key) [...element.querySelectorAll("[data-key]")].find((control) => control.dataset.key === key)?.focus();
}

/** Return a name that may break after its separators. */
const breakable = (name) => name.split(/(?<=[._/])/).flatMap((part, at) => (at ? [el("wbr"), part] : [part]));

const code = (name) => el("code", {}, breakable(name));

/** Return the first cell of a row: what it is about, and marks. */
const rowHead = (name, ...marks) => el("th", { scope: "row" }, el("span", { class: "label" }, el("span", {}, name), marks));

function headOf(items, title) {
  return el("thead", {}, el("tr", {}, el("th", { scope: "col" }, title), items.map(({ run, letter, index, isBaseline }) => el("th", { scope: "col" },
    el("span", { class: "run" }, swatch(index), letterBadge(letter), isBaseline ? el("span", { class: "muted" }, "baseline") : null),
    el("a", { href: `/runs/${run.id}`, title: run.name }, run.name)))));
}

/** Return a table with a column for each run, in a box that scrolls sideways. */
function tableOf(items, label, title, ...bodies) {
  const table = el("table", { class: "sides" }, headOf(items, title), ...bodies);
  table.style.setProperty("--runs", items.length);
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${label}, run by run`, "data-key": `table ${label}` }, table);
}

const groupRow = (items, title) => el("tr", { class: "group" }, el("th", { scope: "rowgroup", colspan: items.length + 1 }, el("span", {}, title)));

const absent = (text) => el("span", { class: "absent" }, text);

/** Return the rest of a list of names as its number; a pointer shows the names. */
const moreOf = (names) => el("span", { class: "muted", title: names.join("\n") }, ` and ${integer(names.length)} more`);

/** Return the text of a value; of a long one the beginning, and all of it to a pointer. */
const valueOf = (text) => (text.length <= MAX_TEXT
  ? el("span", { class: "value" }, text)
  : el("span", { class: "value", title: text }, `${text.slice(0, MAX_TEXT)}… `, el("span", { class: "muted" }, `(${integer(text.length)} characters)`)));

/** Return the row of a setting; values of another group than the baseline's are marked. */
function differenceRow(items, row, missing, isFailing = null) {
  const baseline = items.findIndex(({ isBaseline }) => isBaseline);
  return el("tr", { "data-setting": row.key },
    rowHead([breakable(row.key), row.more ? moreOf(row.more) : null], isFailing && divides(row, isFailing) ? el("span", { class: "tag" }, "divides the verdicts") : null),
    items.map((_, at) => {
      const isOther = row.groups[at] !== row.groups[baseline];
      const ratio = isOther && row.isNumeric && !isName(row.key) ? ratioText(row.values[at], row.values[baseline]) : null;
      return el("td", { class: isOther ? "differs" : null },
        row.texts[at] === null ? absent(missing) : valueOf(row.texts[at]), ratio ? el("span", { class: "muted ratio" }, ` ${ratio}`) : null);
    }));
}

const equalRow = (items, row) => el("tr", { class: "equal", "data-setting": row.key },
  rowHead(breakable(row.key)), el("td", { colspan: items.length }, new Set(row.texts).size > 1 ? `about ${row.texts[0]}` : row.texts[0]));

const moreButton = (key, text, isPressed = null) => el("button", { type: "button", class: "more", "data-key": key, "aria-expanded": isPressed === null ? null : String(isPressed) }, text);

/** Return rows with the same texts as one row; `more` has the keys of the others. */
function mergeRows(rows) {
  const merged = new Map();
  for (const row of rows) {
    const key = JSON.stringify(row.texts);
    const first = merged.get(key);
    merged.set(key, first ? { ...first, more: [...(first.more ?? []), row.key] } : row);
  }
  return [...merged.values()];
}

/** Return the head of a card and a table of settings, environment and model: what differs, and what is equal if wanted. */
export function settingsContent(items, { settings, facts, layers }, isFailing, { showsEqual, showsAll }) {
  const bodies = [];
  let hidden = 0;
  const add = (title, { different, equal }, missing, isSetting) => {
    if (!different.length && !equal.length) return;
    const none = equal.length === 1 ? "The one is equal" : `All ${integer(equal.length)} are equal`;
    const rows = title === "Layers" ? mergeRows(different) : different;
    const shown = showsAll ? rows : rows.slice(0, MAX_ROWS);
    hidden += rows.length - shown.length;
    bodies.push(el("tbody", {}, title ? groupRow(items, title) : null,
      shown.map((row) => differenceRow(items, row, missing, isSetting ? isFailing : null)),
      !different.length && !showsEqual ? el("tr", {}, el("td", { class: "muted", colspan: items.length + 1 }, none)) : null,
      showsEqual ? equal.map((row) => equalRow(items, row)) : null));
  };
  add(null, settings, "not set", true);
  add("Environment and training", facts, "not known", false);
  add("Layers", layers, "no such layer", false);
  const count = settings.equal.length + facts.equal.length + layers.equal.length;
  const hasSettings = settings.different.length + settings.equal.length > 0;
  return [
    el("div", { class: "head" }, el("h2", { id: "settings-title" }, "What differs"), count ? moreButton("equal", `${showsEqual ? "Hide" : "Show"} ${integer(count)} equal`, showsEqual) : null),
    hasSettings ? null : el("p", { class: "muted" }, "No run has settings. ", el("code", {}, "gradmedic.init(config={...})"), " records them."),
    bodies.length ? tableOf(items, "What differs", "Setting", ...bodies) : null,
    hidden ? moreButton("all", `Show ${integer(hidden)} more differences`) : null,
  ];
}

const named = (name) => (CONDITIONS.has(name) ? el("a", { href: `/conditions/${name}` }, words(name)) : words(name));

/** Return the marker of what only some runs have: "only A", or "not B" where that is shorter. */
function markOf(items, has) {
  const [those, others] = [items.filter((_, at) => has[at]), items.filter((_, at) => !has[at])];
  if (!others.length) return null;
  const text = those.length <= others.length ? `only ${those.map(({ letter }) => letter).join(", ")}` : `not ${others.map(({ letter }) => letter).join(", ")}`;
  return el("span", { class: "tag" }, text);
}

function outcomeRow(items, title, contentOf) {
  return el("tr", {}, rowHead(title), items.map((item) => el("td", {}, contentOf(item) ?? absent("–"))));
}

function findingCell(finding) {
  if (!finding) return el("td", {}, absent("not found"));
  const until = finding.resolved_step === null ? `from step ${integer(finding.first_step)}` : stepText(finding.first_step, finding.resolved_step);
  return el("td", { title: finding.explanation },
    el("span", { class: "severity", "data-severity": finding.severity }, finding.severity), ` ${until}`,
    finding.resolved_step === null ? null : el("span", { class: "muted" }, ", resolved"),
    finding.layers.length ? el("div", { class: "where" }, code(finding.layers[0]), finding.layers.length > 1 ? moreOf(finding.layers.slice(1)) : null) : null,
    finding.consequence_of ? el("div", { class: "muted small" }, `follows from ${words(finding.consequence_of)}`) : null);
}

function causesOf({ causes }) {
  if (!causes.length) return null;
  return el("ul", { class: "plain" }, causes.slice(0, MAX_CAUSES).map(({ cause, score, explanation }) => el("li", { title: explanation },
    named(cause), el("span", { class: "muted" }, ` ${score.toFixed(2)}`))));
}

function adviceOf({ run, diagnosis: { advice: [first] } }) {
  return first && [
    el("a", { href: `/runs/${run.id}#advice-title`, title: first.reason }, remediesText(remediesOf(first))),
    first.outcome ? el("div", { class: "small muted" }, outcomeText(first.outcome)) : null,
  ];
}

/** Return the best advice that a rerun of the run has verified; undefined if there is none. */
const verifiedOf = ({ advice }) => advice.find(({ outcome }) => outcome?.state === "verified");

/** Return the head of a card and a table of verdicts, causes, advice and findings. */
export function outcomesContent(items) {
  const rows = [
    outcomeRow(items, "Verdict", ({ run }) => [badge(run.verdict), " ", attentionBadge(run.level)]),
    outcomeRow(items, "Level", ({ run }) => run.level),
    outcomeRow(items, "Learning", ({ run }) => run.learning),
    outcomeRow(items, "Since step", ({ diagnosis }) => (diagnosis.since_step === null ? null : integer(diagnosis.since_step))),
    outcomeRow(items, "Confidence", ({ diagnosis }) => (diagnosis.since_step === null ? null : diagnosis.score.toFixed(2))),
    outcomeRow(items, "First bad layer", ({ firstLayer }) => firstLayer && code(firstLayer)),
    outcomeRow(items, "Likeliest causes", ({ diagnosis }) => causesOf(diagnosis)),
    outcomeRow(items, "First advice", adviceOf),
    items.some(({ diagnosis }) => verifiedOf(diagnosis)) ? outcomeRow(items, "Verified remedy", ({ diagnosis }) => {
      const verified = verifiedOf(diagnosis);
      return verified && el("a", { href: `/reruns/${verified.outcome.rerun_id}`, title: outcomeText(verified.outcome) }, remediesText(remediesOf(verified)));
    }) : null,
    outcomeRow(items, "Status", ({ run }) => statusWord(run.status)),
    outcomeRow(items, "Last step", ({ run }) => (run.last_step === null ? null : integer(run.last_step))),
    outcomeRow(items, "Duration", ({ run }) => (run.duration === null ? null : duration(run.duration))),
    outcomeRow(items, "Created", ({ run }) => el("time", { datetime: run.created_at }, new Date(run.created_at).toLocaleString("en-CA", { dateStyle: "short", timeStyle: "short", hour12: false }))),
  ];
  const findings = compareFindings(items.map(({ diagnosis }) => diagnosis));
  const found = findings.map((row) => {
    const has = row.findings.map(Boolean);
    return el("tr", { "data-detector": row.detector, class: has.includes(false) ? "partial" : null },
      rowHead(named(row.detector), markOf(items, has)), row.findings.map(findingCell));
  });
  const none = el("tr", {}, el("td", { class: "muted", colspan: items.length + 1 }, "There are no findings in these runs."));
  return [
    el("div", { class: "head" }, el("h2", { id: "outcomes-title" }, "Diagnosis")),
    tableOf(items, "Diagnosis", "Outcome", el("tbody", {}, rows), el("tbody", { id: "findings" }, groupRow(items, "Findings"), found.length ? found : none)),
  ];
}

function measureCell(value, baseline, direction, place, isBaseline) {
  if (value === undefined || value === null) return el("td", { class: "number" }, absent("–"));
  const difference = isBaseline ? null : differenceOf(value, baseline, direction);
  const sign = difference?.isBetter === null || !difference ? "" : difference.isBetter ? "better" : "worse";
  return el("td", { class: "number" }, el("span", { class: Number.isFinite(value) ? "value" : "value bad", title: place }, number(value)),
    difference ? el("div", { class: `change ${sign}` }, difference.text, sign ? el("span", { class: "hidden" }, `, ${sign}`) : null) : null);
}

/** Return the rows of a number: its last value, and its best, or its lowest and highest where no direction is known. */
function measureRows(items, name, objectives) {
  const direction = directionOf(name, objectives);
  const baseline = items.find(({ isBaseline }) => isBaseline)?.measures.get(name);
  const kinds = [["last", ({ last }) => last.value, ({ last }) => `at step ${integer(last.step)}`]];
  const extreme = (side) => [({ [side]: end }) => end?.value, ({ [side]: end }) => end && `at ${stepText(end.first, end.last)}`];
  if (direction) kinds.push(["best", ...extreme(direction === "minimize" ? "low" : "high")]);
  else if (name !== "learning_rate") kinds.push(["lowest", ...extreme("low")], ["highest", ...extreme("high")]);
  return kinds.map(([kind, valueOf, placeOf]) => el("tr", { "data-measure": `${name} ${kind}` },
    rowHead(breakable(words(name)), el("span", { class: "muted" }, kind)),
    items.map(({ measures, isBaseline }) => {
      const measure = measures.get(name);
      return measureCell(measure && valueOf(measure), baseline && valueOf(baseline), direction, measure && placeOf(measure), isBaseline);
    })));
}

/** Return the head of a card and a table of losses and metrics: last, best, and the difference to the baseline. */
export function measuresContent(items) {
  const names = [...new Set(items.flatMap(({ measures }) => [...measures.keys()]))];
  const objectives = items.map(({ run }) => run.training?.objective);
  const { letter } = items.find(({ isBaseline }) => isBaseline);
  const head = el("div", { class: "head" }, el("h2", { id: "measures-title" }, "Numbers"), el("p", { class: "muted small" }, `Changes and ratios are relative to run ${letter}.`));
  if (!names.length) return [head, el("p", { class: "muted" }, "No run has sent a loss or a metric yet.")];
  return [head, tableOf(items, "Numbers", "Number", el("tbody", {}, names.map((name) => measureRows(items, name, objectives))))];
}
