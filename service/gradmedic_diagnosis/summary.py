"""The summary: one or two sentences for somebody who is tired."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradmedic_diagnosis.history import RunHistory
from gradmedic_diagnosis.report import Cause, Finding, Verdict


def summarize(
    verdict: Verdict, since: int | None, findings: Sequence[Finding], causes: Sequence[Cause], history: RunHistory
) -> str:
    """Say what is wrong, since when, where first, and the likeliest cause; of a healthy run, what was measured."""
    if verdict == "undetermined":
        return "Too little data to say anything yet."
    if verdict == "healthy":
        return _describe_health(findings, history)
    speaking = sorted((f for f in findings if f.class_ == verdict and f.severity == "critical"), key=_first_step)
    text = f"{verdict.capitalize()} since step {since}."
    if speaking:
        text += f" {speaking[0].explanation}"
    if causes:
        text += f" Likeliest cause: {causes[0].cause.replace('_', ' ')}."
    return text


def _describe_health(findings: Sequence[Finding], history: RunHistory) -> str:
    open_ones = [f for f in findings if f.resolved_step is None]
    worrying = [f for f in open_ones if f.severity != "note"] or [f for f in open_ones if f.detector != "depth_gap"]
    if worrying:
        return f"No alarm, but: {worrying[0].explanation}"
    passed = [f for f in findings if f.class_ == "exploding" and f.resolved_step is not None]
    if passed:
        return f"Healthy; a disturbance at step {passed[0].first_step} passed by step {passed[0].resolved_step}."
    if not history.calm_norms:
        return "Healthy as far as the loss tells; no gradients were sent."
    text = f"Healthy: gradients are finite, with a typical norm of {history.typical_norm():.2g}"
    ratio = history.typical_ratio()
    return text + ("." if math.isnan(ratio) else f", and an update changes the weights by {ratio:.1g} of their size.")


def _first_step(finding: Finding) -> int:
    return finding.first_step
