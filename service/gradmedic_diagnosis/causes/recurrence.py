"""Causes in a recurrence over many time steps."""

from __future__ import annotations

import math

from gradmedic.protocol.diagnosis import Cause
from gradmedic_diagnosis.causes.cause import make_cause, ramp
from gradmedic_diagnosis.run_evidence import RunEvidence

EXPANDING_FACTORS = (0.8, 1.2)
"""Factors per time step at which an expanding recurrence begins to be likely, and is likeliest. A factor above 1 is
necessary (Pascanu et al. 2013); the matrix may have grown since it was measured."""

ACQUIRED_SCORE = 0.45
"""Score of a recurrence that shrinks gradients now and once passed them on: what destroyed it stands before it."""


def check_expanding_recurrence(run: RunEvidence) -> Cause | None:
    """Look for a recurrent matrix that may amplify gradients with each time step."""
    measured = run.history.largest_time_factor
    if not math.isnan(measured):
        if measured < EXPANDING_FACTORS[0]:
            return None
        text = f"Gradients were measured to change by up to {measured:.3g} per time step; above 1 they can explode."
        score = 0.6 + 0.3 * ramp(measured, *EXPANDING_FACTORS)
        return make_cause("long_recurrence", score, text, factor_per_time_step=measured)
    factor = run.recurrent_factor
    if math.isnan(factor) or factor < EXPANDING_FACTORS[0]:
        return None
    text = f"The recurrent matrix multiplies gradients by up to {factor:.3g} per time step; above 1 they can explode."
    return make_cause("long_recurrence", 0.6 + 0.3 * ramp(factor, *EXPANDING_FACTORS), text, recurrent_factor=factor)


def check_contracting_recurrence(run: RunEvidence) -> Cause | None:
    """Look for a recurrent matrix or cell that shrinks gradients with each time step."""
    finding = run.find("contracting_recurrence")
    if finding is not None:
        factor = finding.evidence["factor_per_time_step"]
        text = f"Gradients shrink to {factor:.2g} of their size with every time step that they pass."
        before = run.history.largest_time_factor
        if before >= EXPANDING_FACTORS[0]:
            text += f" Earlier in the run it was {before:.3g}: something else has spoiled the recurrence."
            return make_cause("long_recurrence", ACQUIRED_SCORE, text, factor_per_time_step=factor)
        return make_cause("long_recurrence", 0.85, text, factor_per_time_step=factor)
    if not math.isnan(run.history.largest_time_factor):
        forgetting = run.find("forgetting_recurrence")
        if forgetting is None or forgetting.resolved_step is not None:
            return None
        is_acquired = run.history.largest_time_factor >= EXPANDING_FACTORS[0]
        score = ACQUIRED_SCORE if is_acquired else 0.7
        return make_cause("long_recurrence", score, forgetting.explanation, **forgetting.evidence)
    factor, gap = run.recurrent_factor, run.find("depth_gap")
    if factor < 1:
        text = f"The recurrent matrix shrinks gradients to at most {factor:.2g} of their size with every time step."
        return make_cause("long_recurrence", 0.6, text, factor=factor)
    if not run.has_recurrence or gap is None or "gap_decades" not in gap.evidence:
        return None
    decades = gap.evidence["gap_decades"]
    text = f"A recurrent cell shrinks gradients once per time step; they lose {decades:.1f} decades on their way."
    numbers = {"gap_decades": decades} if math.isnan(factor) else {"factor": factor}
    return make_cause("long_recurrence", 0.6, text, **numbers)
