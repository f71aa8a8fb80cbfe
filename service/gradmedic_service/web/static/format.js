// Formats numbers, times, verdicts and statuses.

import { el } from "./dom.js";

/** Return a number with at most four significant digits, as a power of ten where that is shorter. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value; // "NaN", "Infinity" or "-Infinity" in JSON
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "Infinity" : "-Infinity";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e7) return value.toLocaleString("en");
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2).replace("e+", "e").replace(/\.?0+e/, "e") : String(Number(value.toPrecision(4)));
}

export const integer = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));

export const steps = (first, last) => (first === last ? `step ${integer(first)}` : `steps ${integer(first)} to ${integer(last)}`);

export const words = (identifier) => identifier.replaceAll("_", " ");

export function ago(text) {
  const seconds = Math.max(0, (Date.now() - Date.parse(text)) / 1000);
  if (seconds < 5) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return new Date(text).toLocaleDateString("en-CA");
}

export const time = (text) => el("time", { datetime: text, title: new Date(text).toLocaleString() }, ago(text));

const UNHEALTHY = new Set(document.body.dataset.unhealthyVerdicts.split(" "));

/** Return whether a verdict means a failing training. */
export const isUnhealthy = (verdict) => UNHEALTHY.has(verdict);

export const badge = (verdict) => el("span", { class: "badge", "data-verdict": verdict }, verdict);

/** Return the light of a level, which a person reads first. */
export const light = (level) => el("span", { class: "light", "data-level": level }, level);

/** Return a badge for a run that needs attention although its gradients are sound; nothing for other levels. */
export const attentionBadge = (level) => (level === "attention" ? el("span", { class: "badge", "data-level": level }, level) : null);

/** Return the badge of a verdict; where the level is attention, its badge, and the verdict of the gradients as a word. */
export const judgedBadges = (verdict, level) => (level === "attention" ? [attentionBadge(level), " ", el("span", { class: "muted" }, `gradients ${verdict}`)] : [badge(verdict)]);

export const statusWord = (status) => el("span", { class: "status", "data-status": status }, words(status));
