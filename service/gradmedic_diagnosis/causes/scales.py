"""Causes in the scale of inputs and targets."""

from __future__ import annotations

import math

from gradmedic.protocol.diagnosis import Cause
from gradmedic_diagnosis.causes.cause import make_cause, ramp
from gradmedic_diagnosis.causes.initialization import CLEAR_INIT_DECADES
from gradmedic_diagnosis.run_evidence import RunEvidence

LARGE_LOSS = 50.0
"""First loss beyond which inputs or targets are unscaled: a classifier starts at ln(classes), a standardized regression
near 1."""
LARGE_RMS = 5.0
"""Root mean square beyond which inputs or targets are unscaled; standardized data has 1."""


def check_input_scale(run: RunEvidence) -> Cause | None:
    """Look for inputs that are far from unit scale."""
    if run.training.input_rms is not None:
        return check_measured_input_scale(run)
    loss = abs(run.history.first_loss)
    has_large_weights = run.initial_signal_decades >= CLEAR_INIT_DECADES
    if math.isnan(loss) or loss < LARGE_LOSS or has_large_weights or run.has_recurrence:
        return None
    score = 0.45 + 0.2 * ramp(math.log10(loss), math.log10(LARGE_LOSS), 4.0)
    text = (
        f"The loss starts at {loss:.3g} with ordinary initial weights; with standardized inputs and targets it "
        "starts near 1."
    )
    return make_cause("unscaled_inputs", score, text, first_loss=loss)


def check_measured_input_scale(run: RunEvidence) -> Cause | None:
    """Look for inputs that were measured to be far from unit scale."""
    rms, largest = run.training.input_rms, run.training.input_abs_max
    if rms is None or rms < LARGE_RMS:
        return None
    return make_cause(
        "unscaled_inputs",
        0.6 + 0.35 * ramp(math.log10(rms), math.log10(LARGE_RMS), 2.0),
        f"Inputs have a root mean square of {rms:.3g} (largest {largest or math.nan:.3g}); standardized ones have 1.",
        input_rms=rms,
    )


def check_target_scale(run: RunEvidence) -> Cause | None:
    """Look for targets that are far from unit scale."""
    if run.training.target_rms is not None:
        return check_measured_target_scale(run)
    loss = abs(run.history.first_loss)
    if run.is_classification or math.isnan(loss) or loss < LARGE_LOSS:
        return None
    if run.initial_signal_decades >= CLEAR_INIT_DECADES:
        return None
    score = 0.4 + 0.2 * ramp(math.log10(loss), math.log10(LARGE_LOSS), 4.0)
    text = f"The loss starts at {loss:.3g}; with standardized targets it starts near 1."
    return make_cause("unscaled_targets", score, text, first_loss=loss)


def check_measured_target_scale(run: RunEvidence) -> Cause | None:
    """Look for targets that were measured to be far from unit scale."""
    rms = run.training.target_rms
    if run.is_classification or rms is None or rms < LARGE_RMS:
        return None
    score = 0.6 + 0.35 * ramp(math.log10(rms), math.log10(LARGE_RMS), 2.0)
    text = f"Targets have a root mean square of {rms:.3g}; standardized ones have 1."
    return make_cause("unscaled_targets", score, text, target_rms=rms)
