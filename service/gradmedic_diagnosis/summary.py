"""The summary of a diagnosis: one or two sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradmedic.protocol.diagnosis import Cause, Finding
from gradmedic.protocol.verdicts import Verdict
from gradmedic_diagnosis.course import CONSEQUENCES, Course
from gradmedic_diagnosis.detectors.missing_gradients import MissingGradients
from gradmedic_diagnosis.run_history import RunHistory

MAX_FOLLOWED = 2
"""Most consequences that a summary names."""
STALE_STEPS = 20
"""Steps after which the numbers of a finding are of the past: the step at which they were seen is named."""


def summarize(
    verdict: Verdict,
    since_step: int | None,
    findings: Sequence[Finding],
    causes: Sequence[Cause],
    history: RunHistory,
    *,
    course: Course,
    step: int | None,
    lacks_gradients: bool,
    learning: str,
) -> str:
    """Describe what is wrong, since when, where first, what followed, and the likeliest cause.

    Of a healthy run, it gives the numbers, or what the run has recovered from.

    Args:
        verdict: The verdict.
        since_step: First step of the verdict.
        findings: The findings, those for the verdict first.
        causes: The causes, the likeliest first.
        history: Numbers of the whole run.
        course: Onset, decider and end of the verdict.
        step: The last step.
        lacks_gradients: Whether the run has layers and sends no gradients of them.
        learning: Description of a loss that is stuck or gets worse; empty for others.
    """
    if verdict == "undetermined" and lacks_gradients:
        for finding in findings:
            if finding.detector == MissingGradients.id and finding.resolved_step is None:
                return finding.explanation
        return (
            "No gradients were sent: the run has layers, but its steps carry no statistics of them, so the loss is all "
            "that is known. Was run.watch() given the optimizer whose step() the training calls?"
        )
    if verdict == "undetermined":
        return "Too little data to say anything yet."
    if verdict == "healthy":
        return _describe_health(findings, history, course, learning)
    text = f"{verdict.capitalize()} since step {since_step}"
    if course.onset_step is not None and course.onset_step != since_step:
        text += f" (it began at step {course.onset_step})"
    text += "."
    own = [finding for finding in findings if finding.verdict == verdict and finding.severity == "critical"]
    if own:
        ranks = {detector: rank for rank, detector in enumerate(course.supporters)}
        deciding = min(own, key=lambda finding: ranks.get(finding.detector, len(ranks)))
        is_past = step is not None and step - deciding.last_step > STALE_STEPS
        text += f" At step {deciding.last_step}: {deciding.explanation}" if is_past else f" {deciding.explanation}"
        if is_past and learning:
            text += f" {learning}"
    followed = [finding for finding in findings if finding.consequence_of and finding.resolved_step is None]
    if followed:
        text += f" {_describe_consequences(followed[:MAX_FOLLOWED])}"
    if causes:
        text += f" Likeliest cause: {causes[0].cause.replace('_', ' ')}."
    return text


def _describe_consequences(findings: Sequence[Finding]) -> str:
    parts = [f"{CONSEQUENCES[finding.detector]} since step {finding.first_step}" for finding in findings]
    return f"{' and '.join(parts).capitalize()}, as a consequence."


def _describe_health(findings: Sequence[Finding], history: RunHistory, course: Course, learning: str) -> str:
    unresolved = [finding for finding in findings if finding.resolved_step is None]
    if learning:
        others = [finding.explanation for finding in unresolved if finding.detector != "plateau"]
        sound = "No trouble is known of the gradients." if history.calm_norms else ""
        return f"{learning} {others[0] if others else sound}".rstrip()
    warnings = [finding for finding in unresolved if finding.severity != "note"]
    notes = [finding for finding in unresolved if finding.detector != "depth_gap"]
    if warnings or notes:
        return f"No alarm, but: {(warnings or notes)[0].explanation}"
    if course.recovered_verdict is not None:
        return (
            f"Healthy again since step {course.recovered_step}: the run was {course.recovered_verdict} from step "
            f"{course.recovered_onset} on, and has recovered."
        )
    resolved = [f for f in findings if f.verdict == "exploding" and f.resolved_step is not None]
    if resolved:
        return f"Healthy; a disturbance at step {resolved[0].first_step} was over by step {resolved[0].resolved_step}."
    if not history.calm_norms:
        return "Healthy as far as the loss shows; no gradients were sent."
    text = f"Healthy: gradients are finite, with a typical norm of {history.typical_norm():.2g}"
    ratio = history.typical_update_ratio()
    return text + ("." if math.isnan(ratio) else f", and an update changes the weights by {ratio:.1g} of their size.")
