// Formats numbers, times, verdicts and statuses.

import { el } from "./dom.js";

export const [MINUTE, HOUR, DAY] = [60, 3600, 86400]; // seconds

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

/** Return a duration in seconds as text, in its two largest units; a dash where it is not known. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const size = Math.abs(seconds);
  if (size < MINUTE) return `${number(Number(seconds.toPrecision(3)))} s`;
  const [large, small, names] = size < HOUR ? [MINUTE, 1, ["min", "s"]] : size < DAY ? [HOUR, MINUTE, ["h", "min"]] : [DAY, HOUR, ["d", "h"]];
  const count = Math.round(size / small);
  const [whole, rest] = [Math.floor(count / (large / small)), count % (large / small)];
  return `${seconds < 0 ? "−" : ""}${integer(whole)} ${names[0]}${rest ? ` ${rest} ${names[1]}` : ""}`;
}

export const words = (identifier) => identifier.replaceAll("_", " ");

export function ago(text) {
  const seconds = Math.max(0, (Date.now() - Date.parse(text)) / 1000);
  if (seconds < 5) return "now";
  if (seconds < MINUTE) return `${Math.floor(seconds)} s ago`;
  if (seconds < HOUR) return `${Math.floor(seconds / MINUTE)} min ago`;
  if (seconds < DAY) return `${Math.floor(seconds / HOUR)} h ago`;
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
