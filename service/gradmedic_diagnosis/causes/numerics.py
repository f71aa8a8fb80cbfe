"""Causes in the numerics: precision, and operations without a finite result."""

from __future__ import annotations

import math

from gradmedic.protocol.diagnosis import Cause
from gradmedic_diagnosis.causes.cause import make_cause
from gradmedic_diagnosis.run_evidence import UNBOUNDED, RunEvidence

DESTROYING_UPDATE_RATIO = 0.1
"""Updates of this share of the weights can be the reason for non-finite values."""
HALF_PRECISION = ("float16", "fp16", "half")
"""Names of the 16-bit floating point format with a small range; bfloat16 has the range of float32."""


def check_precision_overflow(run: RunEvidence) -> Cause | None:
    """Look for gradients that overflowed in half precision."""
    finding = run.find("nonfinite")
    if finding is None:
        return None
    scale = run.history.last_loss_scale
    loss = finding.evidence.get("loss", math.nan)
    if _has_half_precision(run) or scale > 1:
        text = "Gradients overflowed in half precision" + (f" at a loss scale of {scale:g}." if scale > 1 else ".")
        return make_cause("precision_overflow", 0.9, text, loss_scale=scale)
    if math.isfinite(loss) and not run.history.calm_norms:
        text = f"Gradients were non-finite on the first step while the loss was an ordinary {loss:.3g}."
        return make_cause("precision_overflow", 0.75, text, loss=loss)
    return None


def check_precision_underflow(run: RunEvidence) -> Cause | None:
    """Look for gradients that half precision rounds to zero."""
    if not _has_half_precision(run) or run.find("zero_gradient") is None:
        return None
    text = "Parameters are in half precision, whose smallest number is 6e-8: smaller gradients become exactly zero."
    return make_cause("precision_underflow", 0.85, text, loss_scale=run.history.last_loss_scale)


def check_numerical_instability(run: RunEvidence) -> Cause | None:
    """Look for non-finite values that ordinary gradients and updates do not explain."""
    finding = run.find("nonfinite")
    if finding is None:
        return None
    history, loss = run.history, finding.evidence.get("loss", math.nan)
    largest = math.nan if run.starts_at_zero else history.largest_update_ratio
    if history.calm_norms and not largest >= DESTROYING_UPDATE_RATIO:
        where = "The loss" if not math.isfinite(loss) else "A gradient"
        place = "the forward pass" if not math.isfinite(loss) else "the backward pass: the loss of that step is finite"
        norm = history.typical_norm()
        text = (
            f"{where} became non-finite although gradients were ordinary before (a norm of {norm:.2g}): look "
            f"for log(0), 0/0, sqrt(0) or exp in {place}."
        )
        return make_cause("numerical_instability", 0.8, text, largest_update_to_weight=largest, loss=loss)
    if not history.calm_norms and not math.isfinite(loss):
        text = "The first loss was already non-finite: look for log(0), 0/0, or an exponential in the forward pass."
        return make_cause("numerical_instability", 0.65, text)
    return None


def check_unbounded_activation(run: RunEvidence) -> Cause | None:
    """Look for activations that grow faster than their input."""
    count = sum(activation in UNBOUNDED for activation in run.activations)
    if not count:
        return None
    text = f"{count} layers end in an activation that grows without bound ({run.activations[0]})."
    return make_cause("unbounded_activation", 0.9, text, layers=count)


def _has_half_precision(run: RunEvidence) -> bool:
    return (run.training.precision or "").lower() in HALF_PRECISION
