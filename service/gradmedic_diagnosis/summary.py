"""The summary of a diagnosis: one or two sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradmedic.protocol.diagnosis import Cause, Finding
from gradmedic.protocol.verdicts import Verdict
from gradmedic_diagnosis.run_history import RunHistory


def summarize(
    verdict: Verdict,
    since_step: int | None,
    findings: Sequence[Finding],
    causes: Sequence[Cause],
    history: RunHistory,
    *,
    lacks_gradients: bool,
    learning: str,
) -> str:
    """Describe what is wrong, since when, where first, and the likeliest cause; of a healthy run, its numbers.

    Args:
        verdict: The verdict.
        since_step: First step of the verdict.
        findings: The findings, those for the verdict first.
        causes: The causes, the likeliest first.
        history: Numbers of the whole run.
        lacks_gradients: Whether the run has layers and sends no gradients of them.
        learning: Description of a loss that is stuck or gets worse; empty for others.
    """
    if verdict == "undetermined" and lacks_gradients:
        return (
            "No gradients were sent: the run has layers, but its steps carry no statistics of them, so the loss is all "
            "that is known. Was run.watch() given the optimizer whose step() the training calls?"
        )
    if verdict == "undetermined":
        return "Too little data to say anything yet."
    if verdict == "healthy":
        return _describe_health(findings, history, learning)
    critical = [finding for finding in findings if finding.verdict == verdict and finding.severity == "critical"]
    text = f"{verdict.capitalize()} since step {since_step}."
    if critical:
        text += f" {min(critical, key=lambda finding: finding.first_step).explanation}"
    if causes:
        text += f" Likeliest cause: {causes[0].cause.replace('_', ' ')}."
    return text


def _describe_health(findings: Sequence[Finding], history: RunHistory, learning: str) -> str:
    unresolved = [finding for finding in findings if finding.resolved_step is None]
    if learning:
        others = [finding.explanation for finding in unresolved if finding.detector != "plateau"]
        sound = "No trouble is known of the gradients." if history.calm_norms else ""
        return f"{learning} {others[0] if others else sound}".rstrip()
    warnings = [finding for finding in unresolved if finding.severity != "note"]
    notes = [finding for finding in unresolved if finding.detector != "depth_gap"]
    if warnings or notes:
        return f"No alarm, but: {(warnings or notes)[0].explanation}"
    resolved = [f for f in findings if f.verdict == "exploding" and f.resolved_step is not None]
    if resolved:
        return f"Healthy; a disturbance at step {resolved[0].first_step} was over by step {resolved[0].resolved_step}."
    if not history.calm_norms:
        return "Healthy as far as the loss shows; no gradients were sent."
    text = f"Healthy: gradients are finite, with a typical norm of {history.typical_norm():.2g}"
    ratio = history.typical_update_ratio()
    return text + ("." if math.isnan(ratio) else f", and an update changes the weights by {ratio:.1g} of their size.")
