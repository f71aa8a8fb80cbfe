// Finds the finding that the pages name first. Pure functions.

import { isUnhealthy } from "./format.js";

/** Return the first open warning of a diagnosis; null if there is none. */
export const openWarning = ({ findings }) => findings.find(({ severity, resolved_step }) => severity !== "note" && resolved_step === null) ?? null;

/** Return the finding that decided an unhealthy verdict, else the first open warning; null if there is none. */
export function decidingFinding(diagnosis, history) {
  const { verdict, findings } = diagnosis;
  if (!isUnhealthy(verdict)) return openWarning(diagnosis);
  const decider = history.findLast((change) => change.verdict === verdict && change.finding)?.finding;
  return findings.find(({ detector }) => detector === decider) ?? findings.find((finding) => finding.verdict === verdict) ?? null;
}
