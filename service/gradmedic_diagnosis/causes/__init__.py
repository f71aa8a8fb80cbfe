"""The probable causes of what is wrong with a run, ranked by the strength of their evidence.

Each cause has a small function that looks for evidence of that cause and returns None where there is none. A condition
(a finding with a cause score) is a cause of its own. Several causes may hold at once. The scores (0 to 1) are
judgements of how well the evidence fits the cause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from gradmedic.protocol.diagnosis import Cause
from gradmedic.protocol.remedies import REMEDIES
from gradmedic.protocol.verdicts import Learning
from gradmedic_diagnosis.causes.cause import make_cause
from gradmedic_diagnosis.causes.initialization import (
    check_large_initialization,
    check_large_recurrence,
    check_small_initialization,
)
from gradmedic_diagnosis.causes.network import (
    check_dead_units,
    check_normalization_is_missing,
    check_saturating_activation,
)
from gradmedic_diagnosis.causes.numerics import (
    check_division_before_model,
    check_numerical_instability,
    check_precision_overflow,
    check_precision_underflow,
    check_unbounded_activation,
)
from gradmedic_diagnosis.causes.recurrence import (
    check_contracting_recurrence,
    check_expanding_recurrence,
)
from gradmedic_diagnosis.causes.scales import (
    check_input_scale,
    check_large_first_outputs,
    check_measured_input_scale,
    check_measured_target_scale,
    check_target_scale,
)
from gradmedic_diagnosis.causes.updates import (
    check_clipping_is_missing,
    check_destroying_gradients,
    check_destroying_updates,
    check_excessive_clipping,
    check_learning_rate,
    check_low_learning_rate,
    check_rate_of_worsening_run,
    check_weight_decay,
)
from gradmedic_diagnosis.remedies import CATALOGUE
from gradmedic_diagnosis.run_evidence import RunEvidence

FINDING_ALONE_SCORE = 0.3
"""Score of a cause that no number supports but those of the finding."""
MAX_CAUSES = 5
"""Most causes of one diagnosis."""
TESTABLE = frozenset(
    cause
    for row in CATALOGUE
    if not REMEDIES[row.id].needs_script
    for cause, chance in row.chances.items()
    if chance >= 0.5
)
"""Causes that a rerun can test: a remedy that it applies to the unchanged script is likely to repair them."""
RERUN_NOTE = "Another cause has the same evidence; a rerun can test this one."

_EXPLODING_CHECKS: tuple[Callable[[RunEvidence], Cause | None], ...] = (
    check_learning_rate,
    check_large_initialization,
    check_large_first_outputs,
    check_input_scale,
    check_target_scale,
    check_expanding_recurrence,
    check_clipping_is_missing,
    check_precision_overflow,
    check_numerical_instability,
    check_division_before_model,
    check_unbounded_activation,
    check_normalization_is_missing,
)
"""Among causes of one score, the first of these is ranked first."""
_VANISHING_CHECKS: tuple[Callable[[RunEvidence], Cause | None], ...] = (
    check_saturating_activation,
    check_precision_underflow,
    check_small_initialization,
    check_large_recurrence,
    check_dead_units,
    check_contracting_recurrence,
    check_weight_decay,
    check_excessive_clipping,
    check_normalization_is_missing,
    check_destroying_updates,
    check_destroying_gradients,
    check_measured_input_scale,
    check_measured_target_scale,
)
_OTHER_CHECKS: tuple[Callable[[RunEvidence], Cause | None], ...] = (check_precision_underflow, check_low_learning_rate)
_FAILED_CHECKS: tuple[Callable[[RunEvidence], Cause | None], ...] = (
    *_OTHER_CHECKS,
    check_rate_of_worsening_run,
    check_measured_input_scale,
    check_measured_target_scale,
    check_weight_decay,
    check_excessive_clipping,
    check_small_initialization,
    check_large_recurrence,
    check_large_first_outputs,
    check_normalization_is_missing,
)
"""Of a run with sound gradients that does not learn: what was measured, and needs no verdict to be a reason."""
FAILED_LEARNING: tuple[Learning, ...] = ("stuck", "worsening")
"""What the objective of such a run does."""


def find_causes(run: RunEvidence) -> list[Cause]:
    """Return the causes that have evidence, the strongest first, at most `MAX_CAUSES`.

    Of a run that neither vanishes nor explodes, only its conditions are causes, and what explains them. If it does not
    learn, measured scales, weights that shrink and tight clipping are causes too.
    """
    # A loss that is no number has a reason of its own, which `nonfinite_loss` names.
    has_failed = run.learning in FAILED_LEARNING and "nonfinite_loss" not in run.conditions
    others = _FAILED_CHECKS if has_failed else _OTHER_CHECKS
    checks = {"exploding": _EXPLODING_CHECKS, "vanishing": _VANISHING_CHECKS}.get(run.verdict, others)
    causes = [*_list_conditions(run), *(cause for check in checks if (cause := check(run)) is not None)]
    if not causes and run.verdict == "exploding":
        causes = _name_by_finding(run)
    return _tell_apart(sorted(causes, key=lambda cause: -cause.score)[:MAX_CAUSES])


def _name_by_finding(run: RunEvidence) -> list[Cause]:
    """Return what an explosion is mostly due to, where nothing but the finding is known, as of norms alone."""
    finding = next((each for each in run.findings if each.verdict == run.verdict), None)
    if finding is None or not finding.evidence:
        return []
    name = "numerical_instability" if finding.detector == "nonfinite" else "learning_rate_too_high"
    text = f"{finding.explanation} No other number of this run could tell the cause."
    return [make_cause(name, FINDING_ALONE_SCORE, text, **finding.evidence)]


def _tell_apart(causes: Sequence[Cause]) -> list[Cause]:
    """Add to causes that share a number which of them a rerun can test: those with a remedy that needs no script."""
    shared = Counter((name, number) for cause in causes for name, number in cause.evidence.items())
    return [
        replace(cause, explanation=f"{cause.explanation} {RERUN_NOTE}")
        if cause.cause in TESTABLE and any(shared[number] > 1 for number in cause.evidence.items())
        else cause
        for cause in causes
    ]


def _list_conditions(run: RunEvidence) -> Iterator[Cause]:
    for detector, score in run.conditions.items():
        finding = run.find(detector)
        if finding is not None:
            yield make_cause(detector, score, finding.explanation, **finding.evidence)
