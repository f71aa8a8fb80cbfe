// Horizontal axes of charts over steps: by step, by the time since the start of the run, or by local time.
//
// A chart holds its points by step. An axis places a step on it by the clock of its run, and finds the step of a place.

import { readSeries } from "./api.js";
import { lastAtMost } from "./chart_points.js";
import { DAY, HOUR, MINUTE, duration, integer } from "./format.js";
import { multiples, niceStep } from "./scales.js";

const CLOCK_POINTS = 400;
const TIME_STEPS = [1, 2, 5, 10, 15, 30, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY];

/** Times of the steps of a run, interpolated between buckets. Times never decrease; steps before the first time share it. */
export class Clock {
  /** knots: `[step, seconds since 1970]` in the order of the steps, at least one. */
  constructor(knots) {
    this.steps = knots.map(([step]) => step);
    let latest = -Infinity;
    this.times = knots.map(([, time]) => (latest = Math.max(latest, time)));
  }

  /** Time of the first step, in seconds since 1970. */
  get start() {
    return this.times[0];
  }

  timeAt(step) {
    return interpolate(this.steps, this.times, step);
  }

  stepAt(time) {
    return interpolate(this.times, this.steps, time);
  }
}

function interpolate(from, to, value) {
  const at = lastAtMost(from, value);
  if (at < 0) return to[0];
  if (at === from.length - 1) return to[at];
  return to[at] + ((value - from[at]) / (from[at + 1] - from[at])) * (to[at + 1] - to[at]);
}

/** Return `[step, time]` of both ends of each bucket. */
const knotsOf = ({ first, last, series: [time] }) => first.flatMap((step, at) => (time.count[at] ? [[step, time.min[at]], [last[at], time.max[at]]] : []));

/**
 * Read the clock of a run; null if its steps have no times. Between the steps `from` and `to`, if they are given, times are
 * as fine as a chart of these steps.
 */
export async function readClock(runId, { from = null, to = null } = {}, signal = undefined) {
  const query = { statistic: "time", field: ["min", "max"], max_points: CLOCK_POINTS };
  const reads = [readSeries(runId, query, signal)];
  if (from !== null) reads.push(readSeries(runId, { ...query, from_step: from, to_step: to }, signal));
  const [coarse, fine = []] = (await Promise.all(reads)).map(knotsOf);
  if (!coarse.length) return null;
  if (!fine.length) return new Clock(coarse);
  const [first, last] = [fine[0][0], fine.at(-1)[0]];
  return new Clock([...coarse.filter(([step]) => step < first), ...fine, ...coarse.filter(([step]) => step > last)]);
}

/** Return a round step of time, in seconds, that is not below a number of seconds. */
function timeStep(rough) {
  if (rough < 1) return niceStep(rough);
  return TIME_STEPS.find((step) => step >= rough) ?? DAY * niceStep(rough / DAY);
}

const timeTicks = ({ domain: [low, high] }, count, offset) => multiples(low, high, timeStep((high - low) / count), offset);
const localTime = (options) => (seconds) => new Date(seconds * 1000).toLocaleString("en-GB", options);
const day = localTime({ day: "numeric", month: "short" });
const minute = localTime({ hour: "2-digit", minute: "2-digit" });
const second = localTime({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
const midnight = (seconds) => new Date(seconds * 1000).setHours(0, 0, 0, 0) / 1000;

/**
 * The axes by name. Each has `label`; `tickWidth`, the width of a tick's text in pixels; `needsClock`; `place(clock, step)` and its inverse `stepAt(clock, x)`; `ticks(scale,
 * count)`, which returns `[x, text]`; and `write(clock, step)`, the time of a step as text, "" for steps.
 */
export const AXES = {
  step: {
    name: "step",
    label: "step",
    tickWidth: 64,
    needsClock: false,
    place: (clock, step) => step,
    stepAt: (clock, x) => x,
    ticks: (scale, count) => scale.ticks(count, true).map((tick) => [tick, integer(tick)]),
    write: () => "",
  },
  elapsed: {
    name: "elapsed",
    label: "time since the start",
    tickWidth: 76,
    needsClock: true,
    place: (clock, step) => clock.timeAt(step) - clock.start,
    stepAt: (clock, x) => clock.stepAt(x + clock.start),
    ticks: (scale, count) => timeTicks(scale, count, 0).map((tick) => [tick, tick === 0 ? "0" : duration(tick)]),
    write: (clock, step) => duration(clock.timeAt(step) - clock.start),
  },
  clock: {
    name: "clock",
    label: "local time",
    tickWidth: 66,
    needsClock: true,
    place: (clock, step) => clock.timeAt(step),
    stepAt: (clock, x) => clock.stepAt(x),
    ticks: (scale, count) => {
      const ticks = timeTicks(scale, count, midnight(scale.domain[0]));
      const isFine = ticks.length > 1 && ticks[1] - ticks[0] < MINUTE;
      return ticks.map((tick) => [tick, tick === midnight(tick) ? day(tick) : isFine ? second(tick) : minute(tick)]);
    },
    write: (clock, step) => `${day(clock.timeAt(step))}, ${second(clock.timeAt(step))}`,
  },
};

/** Return the axis of a name, by step if there is none of that name. */
export const axisOf = (name) => (Object.hasOwn(AXES, name ?? "") ? AXES[name] : AXES.step);
