// Outcomes of several runs side by side: first bad layers, findings, and numbers with their differences. Pure functions.

import { isUnhealthy, number } from "./format.js";

const SEVERITIES = ["critical", "warning", "note"];
const HIGHER_IS_BETTER = /(^|[^a-z])(acc|accuracy|auc|auroc|f1|bleu|rouge|map|iou|dice|r2|recall|precision|reward|return|score|success|psnr|ssim|top\d?)([^a-z]|$)/i;
const LOWER_IS_BETTER = /(^|[^a-z])(loss|error|err|perplexity|ppl|mse|mae|rmse|nll|bpc|bpb|wer|cer|fid|kl|regret)([^a-z]|$)/i;

/** Return whether each run fails: true, false, or null for a run without a verdict. */
export const failingOf = (diagnoses) => diagnoses.map(({ verdict }) => (verdict === "undetermined" ? null : isUnhealthy(verdict)));

/**
 * Return the findings by detector, `{detector, findings}` with the finding of each run or null, the most severe first.
 * Of several findings of a detector in a run, it is the one that is still open, or the last.
 */
export function compareFindings(diagnoses) {
  const rows = new Map();
  for (const [at, { findings }] of diagnoses.entries()) {
    for (const finding of findings) {
      if (!rows.has(finding.detector)) rows.set(finding.detector, { detector: finding.detector, findings: diagnoses.map(() => null) });
      const row = rows.get(finding.detector).findings;
      if (row[at] === null || row[at].resolved_step !== null) row[at] = finding;
    }
  }
  const severity = ({ findings }) => Math.min(...findings.filter(Boolean).map((finding) => SEVERITIES.indexOf(finding.severity)));
  const start = ({ findings }) => Math.min(...findings.filter(Boolean).map((finding) => finding.first_step));
  return [...rows.values()].sort((a, b) => severity(a) - severity(b) || start(a) - start(b));
}

/**
 * Return the direction in which a number improves: "minimize", "maximize", or null where it is not known. An objective
 * that a run declared comes first, then the name.
 */
export function directionOf(name, objectives = []) {
  const declared = objectives.find((objective) => objective?.kind === "metric" && objective.metric === name);
  if (declared) return declared.direction;
  if (name === "loss") return "minimize";
  if (LOWER_IS_BETTER.test(name)) return "minimize";
  return HIGHER_IS_BETTER.test(name) ? "maximize" : null;
}

/** Return the smallest and the largest finite value of a series with the steps of their buckets; null if there is none. */
export function extremesOf(table, series) {
  let [low, high] = [null, null];
  for (let at = 0; at < table.first.length; at += 1) {
    if (series.count[at] <= series.nonfinite[at]) continue;
    const place = { first: table.first[at], last: table.last[at] };
    if (low === null || series.min[at] < low.value) low = { value: series.min[at], ...place };
    if (high === null || series.max[at] > high.value) high = { value: series.max[at], ...place };
  }
  return low && { low, high };
}

/** Return the place of the last bucket with a value, -1 if there is none. */
export const lastBucketOf = (series) => series.count.findLastIndex((count) => count > 0);

/** Return the value of a bucket of one value: its number, NaN, or infinite without its sign. */
export const valueAt = (series, at) => (!series.nonfinite[at] ? series.mean[at] : series.infinite[at] ? Infinity : NaN);

/** Return the ratio of two positive numbers as text, for example "×0.01"; null where it means nothing. */
export function ratioText(value, baseline) {
  if (!(value > 0 && baseline > 0 && Number.isFinite(value) && Number.isFinite(baseline))) return null;
  const ratio = Number((value / baseline).toPrecision(3));
  return ratio === 1 ? null : `×${number(ratio)}`;
}

/**
 * Return the difference of a number to that of the baseline: `{text, isBetter}`. `isBetter` is null where the direction
 * is not known or the numbers are equal. Returns null where one number is missing or not finite.
 */
export function differenceOf(value, baseline, direction) {
  if (typeof value !== "number" || typeof baseline !== "number" || !Number.isFinite(value) || !Number.isFinite(baseline)) return null;
  const difference = Number((value - baseline).toPrecision(3));
  if (difference === 0) return { text: "±0", isBetter: null };
  const ratio = ratioText(value, baseline);
  const text = `${difference > 0 ? "+" : "−"}${number(Math.abs(difference))}${ratio ? ` (${ratio})` : ""}`;
  return { text, isBetter: direction === null ? null : difference > 0 === (direction === "maximize") };
}
