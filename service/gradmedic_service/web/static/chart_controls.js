// What all charts over steps of a page share: horizontal axis, smoothing, and the way back from a zoom.

import { AXES } from "./axes.js";
import { el } from "./dom.js";
import { MAX_SMOOTHING } from "./smoothing.js";

const LABELS = { step: "step", elapsed: "time since start", clock: "local time" };

/** Return `{axis, smoothing}` of the parameters of an address: the name of an axis, and a weight from 0 to below 1. */
export function readControls(parameters) {
  const smoothing = Number(parameters.get("smooth"));
  return {
    axis: Object.hasOwn(AXES, parameters.get("x") ?? "") ? parameters.get("x") : "step",
    smoothing: smoothing > 0 ? Math.min(smoothing, MAX_SMOOTHING) : 0, // also where it is no number
  };
}

/** Write `{axis, smoothing}` to the parameters of an address; usual values are left out. */
export function writeControls(parameters, { axis, smoothing }) {
  parameters.delete("x");
  parameters.delete("smooth");
  if (axis !== "step") parameters.set("x", axis);
  if (smoothing > 0) parameters.set("smooth", String(smoothing));
}

/**
 * Show the controls in an element. state: `{axis, smoothing}`, which the controls change. handlers: `axis()` and
 * `smoothing(isLast)` after a change, `isLast` false while the reader still drags; `reset()` for all steps.
 */
export class ChartControls {
  constructor(root, state, handlers) {
    this.axis = el("select", {}, Object.keys(AXES).map((name) => el("option", { value: name, selected: name === state.axis }, LABELS[name])));
    this.axis.addEventListener("change", () => { state.axis = this.axis.value; handlers.axis(); });
    const shown = el("output", {}, state.smoothing.toFixed(2));
    const slider = el("input", { type: "range", min: 0, max: MAX_SMOOTHING, step: 0.01, value: state.smoothing });
    const apply = (isLast) => () => {
      state.smoothing = Number(slider.value);
      shown.textContent = state.smoothing.toFixed(2);
      handlers.smoothing(isLast);
    };
    slider.addEventListener("input", apply(false));
    slider.addEventListener("change", apply(true));
    this.all = el("button", { type: "button", hidden: true, onclick: () => handlers.reset() }, "Reset the zoom");
    this.note = el("span", { class: "muted small", role: "status" });
    root.classList.add("chart-controls");
    root.append(
      el("label", {}, "Horizontal axis ", this.axis),
      el("label", { title: "Weight of the past in an exponential moving average; 0 draws the values as they are" }, "Smoothing ", slider, " ", shown),
      this.all, this.note,
    );
  }

  /** Show whether only a part of the steps is in view. */
  setZoomed(isZoomed) {
    this.all.hidden = !isZoomed;
  }

  /** Show a note, for example that a run has no times. */
  setNote(text) {
    if (this.note.textContent !== text) this.note.textContent = text;
  }
}
