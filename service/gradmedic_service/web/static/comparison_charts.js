// The charts of a comparison: loss, gradient norm, and the statistic of one layer, over steps or over time.

import { showError } from "./api.js";
import { Chart, pointsOf } from "./chart.js";
import { overTime, readDrawn, totalNormOf } from "./comparison_reading.js";
import { byId, el } from "./dom.js";
import { integer, number, words } from "./format.js";

const NORM = "grad_norm";
const TITLES = { loss: "Loss", gradient: "Gradient norm of all layers", layer: "One layer" }; // by the name of the chart
const TIME_UNITS = [["seconds", 1, 300], ["minutes", 60, 300 * 60], ["hours", 3600, Infinity]]; // name, seconds, up to a span in seconds

/** Return names joined, the letters of runs. */
const lettersOf = (items) => items.map(({ letter }) => letter).join(", ");

export class ComparisonCharts {
  /**
   * `view` is the state of the page: `axis`, the scale of each chart, and `statistic` and `layer`, null unless the reader has
   * chosen them. `save` keeps it in the address.
   */
  constructor(view, save) {
    this.view = view;
    this.save = save;
    this.items = [];
    this.charts = {}; // those that have come into view, by name
    const watcher = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        watcher.unobserve(target);
        this.#create(target.id.replace("-chart", ""));
      }
    }, { rootMargin: "400px" });
    for (const name of Object.keys(TITLES)) watcher.observe(byId(`${name}-chart`));
    for (const name of ["statistic", "layer"]) {
      byId(name).addEventListener("change", (event) => { view[name] = this[name] = event.target.value; save(); this.draw().catch(showError); });
    }
  }

  /** Draw the charts that have come into view. `items` are the runs, each with `letter`, `index` and what was read of it. */
  async show(items) {
    this.items = items;
    this.#fillPickers();
    await this.draw();
  }

  async draw() {
    await Promise.all(Object.keys(this.charts).map((name) => this.#drawOne(name)));
  }

  #create(name) {
    this.charts[name] = new Chart(byId(`${name}-chart`), {
      title: TITLES[name], cutsOutliers: true, scale: this.view.scales[name] ?? "log", describeX: (point) => this.#placeOf(point),
      onScale: (scale) => { this.view.scales[name] = scale; this.save(); },
    });
    this.#drawOne(name).catch(showError);
  }

  #placeOf(point) {
    const [first, last] = [point.first ?? point.x, point.end ?? point.last ?? point.x];
    const step = first === last ? `step ${integer(first)}` : `steps ${integer(first)} to ${integer(last)}`;
    return this.view.axis === "time" ? `${number(Number(point.x.toPrecision(4)))} ${this.unit[0]}` : step;
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

  async #drawOne(name) {
    const { items } = this;
    if (!items.length) return;
    const read = { loss: () => this.#readLosses(items), gradient: () => this.#readNorms(items), layer: () => this.#readLayer(items) }[name];
    const lines = await read();
    if (items === this.items) this.#drawLines(name, lines);
  }

  #readLosses(items) {
    return { lines: items.map((item) => ({ item, table: item.loss.table, points: item.loss.points })), note: "" };
  }

  async #readNorms(items) {
    const having = items.filter(({ run }) => run.layers.length && run.statistics.includes(NORM));
    const lines = await Promise.all(having.map(async (item) => {
      const table = await readDrawn(item, { statistic: NORM, field: "mean" });
      return { item, table, points: totalNormOf(table) };
    }));
    const missing = items.filter((item) => !having.includes(item));
    return { lines, note: missing.length ? `Not sent by ${lettersOf(missing)}.` : "" };
  }

  async #readLayer(items) {
    const { statistic, layer } = this;
    if (layer === undefined) return { lines: [], note: "" };
    const having = items.filter(({ run }) => run.statistics.includes(statistic) && run.layers.some(({ name }) => name === layer));
    const lines = await Promise.all(having.map(async (item) => {
      const table = await readDrawn(item, { statistic, layer });
      return { item, table, points: pointsOf(table, table.series.find((series) => series.layer === layer)) };
    }));
    const missing = items.filter((item) => !having.includes(item));
    this.charts.layer.setTitle(`${words(statistic)} of ${layer}`);
    return { lines, note: missing.length ? `Not in ${lettersOf(missing)}.` : "" };
  }

  #drawLines(name, { lines, note }) {
    const isTime = this.view.axis === "time";
    const clocked = isTime ? lines.filter(({ item }) => item.startTime !== null) : lines;
    const ends = this.items.map(({ run, duration }) => (isTime ? duration : run.last_step) ?? 0);
    const span = Math.max(...ends, isTime ? 0.001 : 1);
    this.unit = TIME_UNITS.find(([, , most]) => span <= most);
    const chart = this.charts[name];
    chart.options.unit = isTime ? `${this.unit[0]} since the first step` : "step";
    const inUnit = (value) => value / (isTime ? this.unit[1] : 1);
    const notes = [note, clocked.length < lines.length ? `No times were recorded by ${lettersOf(lines.filter((line) => !clocked.includes(line)).map(({ item }) => item))}.` : ""];
    chart.setData({
      lines: clocked.map(({ item, table, points }) => ({
        name: `${item.letter} ${item.run.name}`, index: item.index,
        points: isTime ? overTime(points, table, item.startTime).map((point) => ({ ...point, x: inUnit(point.x), last: inUnit(point.last), next: point.next === undefined ? undefined : inUnit(point.next) })) : points,
      })),
      from: 0, to: inUnit(span), note: notes.filter(Boolean).join(" "),
    });
  }
}
