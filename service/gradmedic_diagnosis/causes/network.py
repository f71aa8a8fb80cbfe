"""Causes in the layers: activations, dead units, missing normalization."""

from __future__ import annotations

import math

from gradmedic.protocol.diagnosis import Cause
from gradmedic_diagnosis.architecture import SIGMOID_SLOPE
from gradmedic_diagnosis.causes.cause import make_cause, ramp
from gradmedic_diagnosis.causes.initialization import VARIANCE_PRESERVING_DECADES, has_zero_matrices
from gradmedic_diagnosis.run_evidence import SATURATING, RunEvidence

DEEP_NETWORK_DEPTH = 8
"""Number of weight matrices from which a plain network needs normalization or residual connections to train well."""


def check_saturating_activation(run: RunEvidence) -> Cause | None:
    """Look for activations whose slope goes to zero."""
    saturating = [activation for activation in run.activations if activation in SATURATING]
    if saturating:
        slope = SIGMOID_SLOPE if "sigmoid" in saturating else 1.0
        score = (0.75 if slope < 1 else 0.5) + 0.2 * ramp(len(saturating), 2, 8)
        text = (
            f"{len(saturating)} layers end in {saturating[0]}, whose slope is at most {slope:g}: "
            "each shrinks the gradient."
        )
        return make_cause("saturating_activation", score, text, layers=len(saturating), largest_slope=slope)
    gap = run.find("depth_gap")
    preserves_variance = abs(run.initial_signal_decades) < VARIANCE_PRESERVING_DECADES
    knows_activations = any(layer.activation for layer in run.layers)
    if gap is None or knows_activations or run.find("zero_gradient") is not None or not preserves_variance:
        return None
    text = (
        "Gradients fade with depth although the initial weights preserve variance, "
        "and no layer is inactive as dead rectifiers are."
    )
    return make_cause("saturating_activation", 0.5, text, gap_decades=gap.evidence.get("gap_decades", math.nan))


def check_dead_units(run: RunEvidence) -> Cause | None:
    """Look for units that are never active."""
    finding = run.find("zero_gradient")
    if finding is None or has_zero_matrices(run):
        return None
    share = finding.evidence.get("dead_share", math.nan)
    text = "Units that are never active pass no gradient at all, so they can never recover"
    text += "." if math.isnan(share) else f": {share:.0%} of the weight matrices get none; it should be 0 %."
    if finding.first_step == 0:
        text += (
            " It was so from the first step on: perhaps no unit is dead, and an operation without a gradient (round, "
            "sign, argmax, detach) lies behind these matrices."
        )
    return make_cause("dead_units", 0.75, text, dead_share=share)


def check_normalization_is_missing(run: RunEvidence) -> Cause | None:
    """Look for a deep network without normalization."""
    depth = sum(not run.layers[i].branch for i in run.path)  # identity paths pass the others by
    if depth < DEEP_NETWORK_DEPTH or run.is_normalized:
        return None
    text = (
        f"The network has {depth} weight matrices in sequence and no normalization layer; fewer than "
        f"{DEEP_NETWORK_DEPTH} train well without one."
    )
    return make_cause("missing_normalization", 0.45 + 0.2 * ramp(depth, DEEP_NETWORK_DEPTH, 24), text, layers=depth)
