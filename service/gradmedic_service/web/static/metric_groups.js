// The metrics of runs in groups by their prefix.

/** Names of the metrics that the SDK measures itself begin so; they have pictures of their own. */
export const PROBE_PREFIX = "gradmedic/";
const STAGES = ["train", "training", "val", "valid", "validation", "test", "eval"]; // prefixes also before an underscore

/** Name of the group of metrics without a prefix. */
export const OTHERS = "other";

/** Return the group of a metric: what is before the first "/", a stage before the first "_", else `OTHERS`. */
export function groupOf(name) {
  const [path] = name.split("/", 1);
  if (path && path.length < name.length) return path;
  const [word] = name.split("_", 1);
  return word.length < name.length && STAGES.includes(word) ? word : OTHERS;
}

/** Return the names of the metrics that the runs logged, without those of probes, in the order in which they arrived. */
export const metricsOf = (runs) => [...new Set(runs.flatMap(({ metrics }) => metrics))].filter((name) => !name.startsWith(PROBE_PREFIX));

/** Return whether a name contains every word of a text, in any case. */
export const fits = (name, text) => text.toLowerCase().split(/\s+/).every((word) => name.toLowerCase().includes(word));
