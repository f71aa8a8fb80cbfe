"""Causes in the numerics: precision, and operations without a finite result."""

from __future__ import annotations

import math

from gradmedic.protocol.diagnosis import Cause
from gradmedic.protocol.origin_sentences import describe_origin
from gradmedic_diagnosis.causes.cause import make_cause
from gradmedic_diagnosis.precision import is_half_precision
from gradmedic_diagnosis.run_evidence import UNBOUNDED, RunEvidence

DESTROYING_UPDATE_RATIO = 0.1
"""Updates of this share of the weights can be the reason for non-finite values."""

SILENT_SCORE = 0.95
"""In half precision, a zero at the model's output is more often rounded than meant."""

LOCATED_SCORE = 0.97
"""The SDK repeated the step and named the operation."""
SMALLEST_BATCH = 4
"""Examples from which whole features tell: in a batch of one, any number of bad values is as many for each example."""
UNBOUNDED_SCORE = 0.9
STACKED_SCORE = 0.96
"""A stack of such activations grows like a power of a power: it explains a loss that is not finite, or large updates,
which are its consequences."""


def check_precision_overflow(run: RunEvidence) -> Cause | None:
    """Look for numbers that overflowed in half precision.

    Where only the loss is not finite, it is the forward pass that overflowed. A loss scale has no part in that.
    """
    finding = run.find("nonfinite")
    if finding is None:
        return None
    scale = run.history.last_loss_scale
    is_of_loss = finding.evidence.get("nonfinite_count", 1.0) == 0
    if is_of_loss and not math.isnan(scale):
        return None
    if not is_half_precision(run.training) and not scale > 1:
        return None
    text = "The forward pass" if is_of_loss else "Gradients"
    text += " overflowed in half precision, whose largest number is 65504"
    text += f", at a loss scale of {scale:g}; the scale that fits is smaller." if scale > 1 else "."
    return make_cause("precision_overflow", 0.9, text, loss_scale=scale, largest_number=65504.0)


def check_precision_underflow(run: RunEvidence) -> Cause | None:
    """Look for gradients that half precision rounds to zero, in the model or already at its output."""
    is_silent = "no_signal_from_loss" in run.conditions
    if not is_half_precision(run.training) or not (is_silent or run.find("zero_gradient") is not None):
        return None
    text = "The training computes in half precision, whose smallest number is 6e-8: smaller gradients are exactly zero."
    numbers = {"loss_scale": run.history.last_loss_scale, "smallest_number": 6e-8}
    return make_cause("precision_underflow", SILENT_SCORE if is_silent else 0.85, text, **numbers)


def check_numerical_instability(run: RunEvidence) -> Cause | None:
    """Look for non-finite gradients of a finite loss that ordinary gradients and updates do not explain.

    Where the loss is the first number that is not finite, `nonfinite_loss` is the cause; this one has its operation, if
    the SDK found it.
    """
    finding = run.find("nonfinite")
    if finding is None or run.find("nonfinite_input"):
        return None
    if not math.isfinite(finding.evidence.get("loss", math.nan)):
        return _name_origin(run) if "nonfinite_loss" in run.conditions else None
    history, loss = run.history, finding.evidence["loss"]
    ratio = math.nan if run.starts_at_zero else history.recent_update_ratio
    if ratio >= DESTROYING_UPDATE_RATIO:
        return None
    numbers = {"loss": loss, "typical_gradient_norm": history.typical_norm(), "update_to_weight": ratio}
    before = "on the first step"
    if history.calm_norms:
        before = f"after ordinary ones (a norm of {history.typical_norm():.2g})"
        if not math.isnan(ratio):
            before += (
                f" and updates of at most {ratio:.2g} of the weights (below {DESTROYING_UPDATE_RATIO:g} is ordinary)"
            )
    text = (
        f"A gradient became non-finite {before}, while the loss of that step is finite, {loss:.3g}: look in the "
        "backward pass for an operation whose slope is infinite, as those of sqrt and log at 0 and of acos at 1 are."
    )
    return _name_origin(run, text, **numbers) or make_cause("numerical_instability", 0.8, text, **numbers)


def _name_origin(run: RunEvidence, text: str = "", **numbers: float) -> Cause | None:
    """Return the operation that has no finite result as a cause, None if the SDK did not find it."""
    origin = run.training.origin
    if origin is None or origin.operation is None or origin.kind != "numeric":
        return None
    sentence = origin.text or describe_origin(origin)
    return make_cause("numerical_instability", LOCATED_SCORE, f"{sentence} {text}".rstrip(), **numbers)


def check_division_before_model(run: RunEvidence) -> Cause | None:
    """Look for input with whole features that are not finite, as where a script divides by a spread of 0."""
    finding, batch = run.find("nonfinite_input"), run.training.batch_size
    count = math.nan if finding is None else finding.evidence.get("input_nonfinite_count", math.nan)
    if not batch or batch < SMALLEST_BATCH or not count >= batch or count % batch:
        return None
    text = (
        f"{count:.0f} elements of the input are not finite, {count / batch:.0f} for each example of the batch: "
        "perhaps a whole feature, which the script computes before the model. A standardization divides 0 by 0 where a "
        "feature is constant in a batch; the data itself may be finite."
    )
    return make_cause("numerical_instability", 0.6, text, input_nonfinite_count=count, batch_size=batch)


def check_unbounded_activation(run: RunEvidence) -> Cause | None:
    """Look for activations that grow faster than their input."""
    count = sum(activation in UNBOUNDED for activation in run.activations)
    if not count:
        return None
    first = next(activation for activation in run.activations if activation in UNBOUNDED)
    text = f"{count} layers end in {first}, which grows faster than its input; no activation should."
    return make_cause("unbounded_activation", UNBOUNDED_SCORE if count == 1 else STACKED_SCORE, text, layers=count)
