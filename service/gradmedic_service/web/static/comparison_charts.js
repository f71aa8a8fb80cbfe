// The charts of a comparison: loss, gradient norm, the statistic of one layer, and every metric. They share the horizontal
// axis, the range in view and the place that the reader points at.

import { showError } from "./api.js";
import { AXES, axisOf } from "./axes.js";
import { Chart, pointsOf } from "./chart.js";
import { ChartControls } from "./chart_controls.js";
import { readDrawn, readItemClock, totalNormOf } from "./comparison_reading.js";
import { byId, el } from "./dom.js";
import { words } from "./format.js";
import { MetricCharts } from "./metric_charts.js";

const NORM = "grad_norm";
const TITLES = { loss: "Loss", gradient: "Gradient norm of all layers", layer: "One layer" }; // by the name of the chart
const AHEAD = "400px"; // below and above the window, where charts are drawn already

/** Return the letters of runs as text. */
const lettersOf = (items) => items.map(({ letter }) => letter).join(", ");
const nameOf = ({ letter, run }) => `${letter} ${run.name}`;

export class ComparisonCharts {
  /**
   * `view` is the state of the page: `controls` of `readControls`; `metrics` of `readMetricState`; `range`, the part of the axis
   * in view, null for all; `scales` of the charts by name; `statistic` and `layer`, null unless the reader has chosen them.
   * `save` keeps it in the address.
   */
  constructor(view, save) {
    this.view = view;
    this.save = save;
    this.items = [];
    this.charts = {}; // those that have come into view, by name
    this.axis = AXES.step; // that is drawn
    this.draws = 0;
    this.controls = new ChartControls(byId("chart-controls"), view.controls, {
      axis: () => this.#zoom(null, null), // a range of steps means nothing in seconds
      smoothing: (isLast) => { if (isLast) save(); this.#redraw(); },
      reset: () => this.#zoom(null, null),
    });
    const shared = { onZoom: (from, to) => this.#zoom(from, to), onPoint: (x, pointed) => this.#pointAll(x, pointed) };
    this.metrics = new MetricCharts(byId("metrics"), { state: view.metrics, onState: save, ...shared });
    const watcher = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        watcher.unobserve(target);
        this.#create(target.id.replace("-chart", ""), shared);
      }
    }, { rootMargin: AHEAD });
    for (const name of Object.keys(TITLES)) watcher.observe(byId(`${name}-chart`));
    for (const name of ["statistic", "layer"]) {
      byId(name).addEventListener("change", (event) => { view[name] = this[name] = event.target.value; save(); this.#redraw(); });
    }
  }

  /** Draw the charts that have come into view. `items` are the runs, each with `letter`, `index` and what was read of it. */
  async show(items) {
    this.items = items;
    this.#fillPickers();
    await this.#draw();
  }

  #create(name, shared) {
    this.charts[name] = new Chart(byId(`${name}-chart`), {
      title: TITLES[name], cutsOutliers: true, scale: this.view.scales[name] ?? "log", ...shared,
      onScale: (scale) => { this.view.scales[name] = scale; this.save(); },
      fileName: (title) => `comparison-${title}`,
      sources: () => this.#sourcesOf(name),
    });
    this.#redraw();
  }

  #redraw() {
    this.#draw().catch(showError);
  }

  #zoom(from, to) {
    const isAll = from === null || to <= from;
    this.view.range = isAll ? null : { from: this.axis.needsClock ? from : Math.round(from), to: this.axis.needsClock ? to : Math.round(to) };
    this.save();
    this.#redraw();
  }

  #pointAll(x, pointed) {
    for (const chart of [...Object.values(this.charts), ...this.metrics.charts]) if (chart !== pointed) chart.echo(x);
  }

  /** Return the first and the last place of the axis that any run reaches. */
  #extent(items) {
    const ended = items.filter(({ run, clock }) => run.last_step !== null && (clock || !this.axis.needsClock));
    const places = ended.flatMap(({ run, clock }) => [0, run.last_step].map((step) => this.axis.place(clock, step)));
    return places.length ? { from: Math.min(...places), to: Math.max(...places) } : { from: 0, to: 1 };
  }

  /** Return the query of the steps of a run that are in view; empty for all. */
  #stepsOf({ clock, run }) {
    if (!this.view.range) return {};
    const [from, to] = [this.view.range.from, this.view.range.to].map((place) => this.axis.stepAt(clock, place));
    return { from_step: Math.max(0, Math.floor(from)), to_step: Math.min(run.last_step ?? 0, Math.ceil(to)) };
  }

  async #draw() {
    const { items } = this;
    const thisDraw = this.draws += 1;
    if (!items.length) return;
    const wanted = axisOf(this.view.controls.axis);
    const clocked = await Promise.all(items.map(async (item) => ({ ...item, clock: wanted.needsClock ? await readItemClock(item) : null })));
    const isCurrent = () => thisDraw === this.draws;
    if (!isCurrent()) return;
    const withoutTimes = wanted.needsClock ? clocked.filter(({ clock }) => !clock) : [];
    const axis = this.axis = withoutTimes.length === items.length ? AXES.step : wanted;
    const note = axis === wanted ? `No times were recorded by ${lettersOf(withoutTimes)}.` : "No run has times; the axis shows steps.";
    this.controls.setNote(withoutTimes.length ? note : "");
    this.controls.setZoomed(this.view.range !== null);
    const shown = axis.needsClock ? clocked.filter(({ clock }) => clock) : clocked;
    const range = this.view.range ?? this.#extent(shown);
    this.metrics.show({ runs: shown.map((item) => ({ ...item.run, name: nameOf(item), index: item.index, clock: item.clock })), axis, ...range, smoothing: this.view.controls.smoothing });
    await Promise.all(Object.entries(this.charts).map(async ([name, chart]) => {
      const having = shown.filter((item) => this.#has(name, item));
      const lines = await Promise.all(having.map(async (item) => ({ name: nameOf(item), index: item.index, clock: item.clock, points: await this.#readPoints(name, item) })));
      if (!isCurrent()) return;
      const missing = items.filter((item) => !this.#has(name, item));
      if (name === "layer") chart.setTitle(`${words(this.statistic)} of ${this.layer}`);
      chart.setData({ lines, ...range, axis, note: missing.length ? `Not in ${lettersOf(missing)}.` : "", smoothing: name === "loss" ? this.view.controls.smoothing : 0 });
    }));
  }

  /** Return whether a run has what a chart shows. */
  #has(name, { run }) {
    if (name === "loss") return true;
    if (name === "gradient") return run.layers.length > 0 && run.statistics.includes(NORM);
    return run.statistics.includes(this.statistic) && run.layers.some((layer) => layer.name === this.layer);
  }

  async #readPoints(name, item) {
    const steps = this.#stepsOf(item);
    if (steps.to_step < steps.from_step) return []; // the run ended before the steps in view
    if (name === "gradient") return totalNormOf(await readDrawn(item, { statistic: NORM, field: "mean", ...steps }));
    const table = await readDrawn(item, name === "loss" ? { statistic: "loss", ...steps } : { statistic: this.statistic, layer: this.layer, ...steps });
    return pointsOf(table, table.series[0]);
  }

  /** Return where every step of a chart's lines is read; empty for the norm of all layers, which no run stores. */
  #sourcesOf(name) {
    if (name === "gradient") return [];
    const query = name === "loss" ? { statistic: ["time", "loss"] } : { statistic: ["time", this.statistic], layer: this.layer };
    return this.items.filter((item) => this.#has(name, item)).map(({ run }) => ({ runId: run.id, runName: run.name, query }));
  }

  /** Fill the choices of layer and statistic with those that any run has; the first choice is where a run first went bad. */
  #fillPickers() {
    const statistics = [...new Set(this.items.flatMap(({ run }) => (run.layers.length ? run.statistics : [])))];
    const layers = new Map(); // items by name of the layer
    for (const item of this.items) for (const { name } of item.run.layers) layers.set(name, [...(layers.get(name) ?? []), item]);
    byId("layers-section").hidden = !statistics.length || !layers.size;
    if (byId("layers-section").hidden) return;
    const onset = this.items.find(({ firstLayer }) => layers.has(firstLayer))?.firstLayer;
    this.statistic = [this.view.statistic, NORM].find((name) => statistics.includes(name)) ?? statistics[0];
    this.layer = [this.view.layer, onset].find((name) => layers.has(name)) ?? [...layers.keys()][0];
    const fill = (select, options, chosen) => {
      const key = JSON.stringify(options);
      if (select.dataset.options !== key) {
        select.dataset.options = key;
        select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
      }
      select.value = chosen;
    };
    fill(byId("statistic"), statistics.map((name) => [name, words(name)]), this.statistic);
    fill(byId("layer"), [...layers].map(([name, having]) => [name, having.length < this.items.length ? `${name} (only ${lettersOf(having)})` : name]), this.layer);
  }
}
