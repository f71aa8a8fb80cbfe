"""The summary: one or two sentences for somebody who is tired."""

from __future__ import annotations

from collections.abc import Sequence

from gradmedic_service.diagnosis.report import Cause, Finding, Verdict


def summarize(verdict: Verdict, since: int | None, findings: Sequence[Finding], causes: Sequence[Cause]) -> str:
    """Say what is wrong, since when, where first, and the likeliest cause."""
    if verdict == "undetermined":
        return "Too little data to say anything yet."
    if verdict == "healthy":
        passed = [f for f in findings if f.class_ == "exploding" and f.resolved_step is not None]
        if passed:
            return f"Healthy; a disturbance at step {passed[0].first_step} passed by step {passed[0].resolved_step}."
        return "Healthy: gradients reach every layer and the updates are in proportion."
    speaking = sorted((f for f in findings if f.class_ == verdict and f.severity == "critical"), key=_first_step)
    text = f"{verdict.capitalize()} since step {since}."
    if speaking:
        text += f" {speaking[0].explanation}"
    if causes:
        text += f" Likeliest cause: {causes[0].cause.replace('_', ' ')}."
    return text


def _first_step(finding: Finding) -> int:
    return finding.first_step
