// A chart for every metric that one to twelve runs logged: small multiples in groups by prefix. A chart reads its series when
// it comes into view.
//
//   const metrics = new MetricCharts(byId("metrics"), { state: readMetricState(parameters), ...handlers });
//   metrics.show({ runs, axis: AXES.step, from: 0, to: 999, smoothing: 0.6 });   // again after each change

import { readSeries, showError } from "./api.js";
import { Chart, pointsOf } from "./chart.js";
import { debounce, el } from "./dom.js";
import { OTHERS, fits, groupOf, metricsOf } from "./metric_groups.js";

const POINTS = 200; // of a line
const NAMES_AT_ONCE = 20; // metrics of a request, so that its address stays short
const AHEAD = "300px"; // below and above the window, where charts are read already
const HEIGHT = { small: 150, large: 320 }; // pixels
const SEARCH_DELAY = 150; // milliseconds

/** Return what the address holds of the charts: `{log, large, closed, search}`, names of metrics and of groups. */
export const readMetricState = (parameters) => ({
  log: new Set(parameters.getAll("log")), large: new Set(parameters.getAll("large")), closed: new Set(parameters.getAll("closed")),
  search: parameters.get("metric") ?? "",
});

/** Write the state of the charts to the parameters of an address. */
export function writeMetricState(parameters, { log, large, closed, search }) {
  for (const [name, values] of Object.entries({ log, large, closed })) {
    parameters.delete(name);
    for (const value of values) parameters.append(name, value);
  }
  parameters.delete("metric");
  if (search) parameters.set("metric", search);
}

export class MetricCharts {
  /**
   * root: an empty section; it is hidden while no run has a metric.
   * handlers: `state` of `readMetricState`, which the charts change; `onState()`: called after that, to save the address;
   * `onZoom(from, to)`: called when the reader chooses a range, in units of the axis, null and null for all; `onSelect(step)`:
   * called when the reader selects a step; `onPoint(x, chart)`: called when the reader points at a place of the axis in a
   * chart, null at none.
   */
  constructor(root, handlers) {
    this.root = root;
    this.handlers = handlers;
    this.state = handlers.state;
    this.groups = new Map(); // {section, button, grid, count} by name
    this.cards = new Map(); // {name, group, root, chart, points, keys} by metric
    this.view = null;
    this.selected = null;
    this.marks = [];
    this.isReading = false;

    const search = el("input", { type: "search", value: this.state.search, placeholder: "all", "aria-describedby": "metrics-found" });
    search.addEventListener("input", debounce(SEARCH_DELAY, () => {
      this.state.search = search.value.trim();
      this.#filter();
      this.handlers.onState?.();
    }));
    this.found = el("span", { class: "muted small", id: "metrics-found", role: "status" });
    this.body = el("div", { class: "metric-groups" });
    root.hidden = true;
    root.append(el("div", { class: "head" }, el("h2", {}, "Metrics"), el("div", { class: "controls" }, this.found, el("label", {}, "Metric ", search))), this.body);
    this.observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const card = this.cards.get(target.dataset.metric);
        card.isVisible = isIntersecting;
        if (isIntersecting) this.#draw(card);
      }
      this.#read();
    }, { rootMargin: AHEAD });
  }

  /**
   * Show the metrics of runs: `{runs, axis, from, to, smoothing}`.
   *
   * runs: `[{id, name, metrics, revision, index?, clock?}]`; `index` is that of `lineStyle`, by default the place in the list;
   * `clock`, of `readClock`, is needed by an axis that needs clocks: a run without one is left out. axis: one of `AXES`.
   * from, to: the range in view, in units of the axis. A series is read again when the revision of its run or the steps in
   * view change; what is drawn stays until then.
   */
  show(view) {
    const hasGrown = this.view && ["axis", "from", "smoothing"].every((name) => this.view[name] === view[name]) && this.view.to <= view.to;
    this.view = { ...view, runs: view.runs.map((run, index) => ({ index, ...run })) };
    const names = metricsOf(this.view.runs);
    this.root.hidden = !names.length;
    for (const name of names) if (!this.cards.has(name)) this.#add(name);
    for (const [name, card] of this.cards) card.isKnown = names.includes(name);
    this.#filter();
    for (const card of this.cards.values()) {
      if (card.isVisible && !(hasGrown && this.#outdated(card).length)) this.#draw(card); // else it is drawn when it was read
    }
    this.#read();
  }

  /** Mark a step as selected, and findings, as `Chart.setMarks` does; for a single run. */
  setSelected(step) {
    this.selected = step;
    for (const { chart } of this.cards.values()) chart?.setSelected(step);
  }

  setMarks(marks) {
    this.marks = marks;
    for (const { chart } of this.cards.values()) chart?.setMarks(marks);
  }

  /** The charts that have been drawn. */
  get charts() {
    return [...this.cards.values()].flatMap(({ chart }) => chart ?? []);
  }

  #add(name) {
    const group = this.groups.get(groupOf(name)) ?? this.#addGroup(groupOf(name));
    const card = { name, group, root: el("section", { class: "metric", "data-metric": name, "aria-label": name }), points: new Map(), keys: new Map(), isVisible: false };
    if (this.state.large.has(name)) card.root.classList.add("large");
    this.cards.set(name, card);
    group.grid.append(card.root);
    this.observer.observe(card.root);
  }

  #addGroup(name) {
    const grid = el("div", { class: "metric-grid", id: `metrics-of-${this.groups.size}` });
    const count = el("span", { class: "muted" });
    const button = el("button", { type: "button", class: "fold", "aria-controls": grid.id }, el("span", { class: "arrow", "aria-hidden": "true" }), name, count);
    const group = { name, grid, button, count, section: el("section", { class: "metric-group", "data-group": name }, el("h3", {}, button), grid) };
    button.addEventListener("click", () => {
      if (!this.state.closed.delete(name)) this.state.closed.add(name);
      this.#fold(group);
      this.handlers.onState?.();
    });
    this.groups.set(name, group);
    this.#fold(group);
    const others = this.groups.get(OTHERS)?.section ?? null; // metrics without a prefix are last
    this.body.insertBefore(group.section, name === OTHERS ? null : others);
    return group;
  }

  #fold({ name, grid, button }) {
    grid.hidden = this.state.closed.has(name);
    button.setAttribute("aria-expanded", String(!grid.hidden));
  }

  #filter() {
    const counts = new Map();
    let shown = 0;
    for (const { name, group, root, isKnown } of this.cards.values()) {
      root.hidden = !isKnown || !fits(name, this.state.search);
      shown += !root.hidden;
      counts.set(group, (counts.get(group) ?? 0) + !root.hidden);
    }
    for (const group of this.groups.values()) {
      const count = counts.get(group) ?? 0;
      group.section.hidden = !count;
      group.count.textContent = ` ${count}`;
    }
    const known = [...this.cards.values()].filter(({ isKnown }) => isKnown).length;
    this.found.textContent = shown === known ? "" : `${shown} of ${known}`;
  }

  /** Return the first and the last step of a run that are in view. */
  #stepsOf({ clock }) {
    const { axis, from, to } = this.view;
    return { from_step: Math.max(0, Math.floor(axis.stepAt(clock, from))), to_step: Math.max(0, Math.ceil(axis.stepAt(clock, to))) };
  }

  #isDrawable(run) {
    return !this.view.axis.needsClock || run.clock;
  }

  #keyOf(run) {
    const { from_step, to_step } = this.#stepsOf(run);
    return `${run.revision}:${from_step}:${to_step}`;
  }

  /** Return the runs whose series of a metric is not the one in view. */
  #outdated(card) {
    return this.view.runs.filter((run) => run.metrics.includes(card.name) && this.#isDrawable(run) && card.keys.get(run.id) !== this.#keyOf(run));
  }

  /** Read what is in view and outdated, until nothing is. */
  async #read() {
    if (this.isReading || !this.view) return;
    this.isReading = true;
    try {
      for (;;) {
        const cards = [...this.cards.values()].filter((card) => card.isVisible && !card.root.hidden && this.#outdated(card).length).slice(0, NAMES_AT_ONCE);
        if (!cards.length) break;
        await Promise.all(this.view.runs.map((run) => this.#readRun(run, cards.filter((card) => this.#outdated(card).includes(run)))));
        for (const card of cards) this.#draw(card);
      }
    } catch (error) {
      showError(error);
    } finally {
      this.isReading = false;
    }
  }

  async #readRun(run, cards) {
    if (!cards.length) return;
    const key = this.#keyOf(run);
    const table = await readSeries(run.id, { statistic: cards.map(({ name }) => name), max_points: POINTS, ...this.#stepsOf(run) });
    for (const series of table.series) {
      const card = this.cards.get(series.statistic);
      card.points.set(run.id, pointsOf(table, series));
      card.keys.set(run.id, key);
    }
  }

  #draw(card) {
    const { runs, axis, from, to, smoothing } = this.view;
    card.chart ??= this.#createChart(card);
    if (!card.points.size) return;
    const withMetric = runs.filter((run) => card.points.has(run.id) && run.metrics.includes(card.name));
    const lines = withMetric.map((run) => ({ name: runs.length > 1 ? run.name : card.name, index: run.index, clock: run.clock, points: card.points.get(run.id) }));
    card.chart.options.cutsOutliers = runs.length > 1; // a run that explodes would hide the others
    card.chart.setData({ lines, from, to, axis, smoothing });
  }

  #createChart(card) {
    const { name, root } = card;
    const { log, large } = this.state;
    const resize = () => {
      if (!large.delete(name)) large.add(name);
      root.classList.toggle("large", large.has(name));
      chart.setHeight(large.has(name) ? HEIGHT.large : HEIGHT.small);
      this.handlers.onState?.();
    };
    const chart = new Chart(root, {
      title: name, heading: "h4", compact: true,
      height: large.has(name) ? HEIGHT.large : HEIGHT.small,
      scale: log.has(name) ? "log" : "linear",
      onScale: (scale) => {
        if (scale === "log") log.add(name); else log.delete(name);
        this.handlers.onState?.();
      },
      onZoom: this.handlers.onZoom,
      onSelect: this.handlers.onSelect,
      onPoint: (x, pointed) => {
        for (const other of this.charts) if (other !== pointed) other.echo(x);
        this.handlers.onPoint?.(x, pointed);
      },
      fileName: () => [this.view.runs.length > 1 ? "comparison" : this.view.runs[0].name, name].join("-"),
      sources: () => this.view.runs.filter((run) => run.metrics.includes(name) && this.#isDrawable(run)).map((run) => ({
        runId: run.id, runName: run.name, query: { statistic: ["time", name], ...this.#stepsOf(run) },
      })),
      actions: () => [{ label: large.has(name) ? "Show small" : "Show large", run: resize }],
    });
    chart.title.title = name;
    chart.setMarks(this.marks);
    chart.setSelected(this.selected);
    return chart;
  }
}
