"""Causes in the scale of inputs, targets and first outputs."""

from __future__ import annotations

import math

from gradmedic.protocol.diagnosis import Cause
from gradmedic_diagnosis.causes.cause import make_cause, ramp
from gradmedic_diagnosis.causes.initialization import CLEAR_INIT_DECADES, check_large_initialization
from gradmedic_diagnosis.run_evidence import RunEvidence

LARGE_LOSS = 50.0
"""First loss beyond which inputs or targets are unscaled: a classifier starts at ln(classes), a standardized regression
near 1."""
LARGE_RMS = 5.0
"""Root mean square beyond which inputs or targets are unscaled; standardized data has 1."""

LARGE_FIRST_LOSS = 10.0
"""First loss over that of outputs of zero, from which the outputs are far too large. Logits of unit variance have a
first loss of less than twice that of equal ones, and outputs of unit variance the same for standardized targets."""
MANY_DECADES = 4.0
"""Decades of that ratio from which nothing else explains it."""


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


def check_large_first_outputs(run: RunEvidence) -> Cause | None:
    """Look for a first loss that only outputs far larger than the targets explain, at inputs of an ordinary size.

    What lies between inputs and outputs makes them so large: weights, or depth. Unlike the decades of the weights, this
    shows in networks with branches, recurrences and operations of the script's own.
    """
    loss, first_loss = run.training.loss, abs(run.history.first_loss)
    if loss is None or math.isnan(first_loss) or check_large_initialization(run) is not None:
        return None
    rms = run.training.input_rms
    if (rms is None and not run.architecture.is_embedding.any()) or (rms is not None and rms >= LARGE_RMS):
        return None
    usual = loss.constant_level if run.is_classification else _find_loss_of_zeros(run)
    if usual is None or not usual > 0 or not first_loss >= LARGE_FIRST_LOSS * usual:
        return None
    decades = math.log10(first_loss / usual) if math.isfinite(first_loss) else MANY_DECADES
    return make_cause(
        "poor_initialization",
        0.55 + 0.4 * ramp(decades, math.log10(LARGE_FIRST_LOSS), MANY_DECADES),
        f"The loss starts at {first_loss:.3g}; outputs of zero have about {usual:.3g}. The inputs are of an ordinary "
        "size: the initial weights, or the depth, make the outputs this large.",
        first_loss=first_loss,
        usual_loss=usual,
    )


def _find_loss_of_zeros(run: RunEvidence) -> float | None:
    """Return the loss of outputs of zero where it is a squared error; None elsewhere.

    It is the mean square of the targets, and no less than that of the best constant output, which tells where the
    script sums squares, or multiplies them by a number.
    """
    loss, rms = run.training.loss, run.training.target_rms
    if loss is None or loss.kind != "squared_error" or rms is None:
        return None
    return max(rms * rms, loss.constant_level or 0.0)
