"""Why a run went bad: independent arguments, each with its numbers, ranked by how strong they are.

One idea: a cause is a small function from the case to an argument or None. It speaks only from evidence it has; the
scores are judgements (0 to 1) whose reasons stand beside them, and several causes may hold at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gradmedic_diagnosis.report import Cause
from gradmedic_diagnosis.run_evidence import SATURATING, UNBOUNDED, Case

MAX_CAUSES = 5
HEALTHY_RATIO = 1e-3
"""Update over weight per step of healthy SGD-like training (Karpathy 2015)."""
HIGH_RATIO = 0.03
"""Well above the practical band of 1e-5 to 1e-2 for a whole network."""
LARGE_LOSS = 50.0
"""A classifier starts at ln(classes), a standardized regression near 1; a start beyond this is a matter of scale."""
LARGE_SCALE = 5.0
"""Root mean square of inputs or targets beyond which they count as unscaled (standardized data has 1)."""
DEEP = 8
"""Weight matrices from which a plain network needs normalization or residual connections to train dependably."""
LARGE_FACTOR = 2.0
"""Spectral norm of a recurrent matrix at the start: torch's own initialization has 1.15, an orthogonal matrix 1."""
INIT_DECADES = 0.5
"""Half a decade of signal gained or lost over the network's depth at initialization."""


def find_causes(case: Case) -> tuple[Cause, ...]:
    """Return the causes that have evidence, strongest first, at most `MAX_CAUSES`."""
    arguments = _EXPLODING if case.verdict == "exploding" else _VANISHING
    found = [cause for argument in arguments if (cause := argument(case)) is not None]
    return tuple(sorted(found, key=lambda cause: -cause.score)[:MAX_CAUSES])


def _cause(name: str, score: float, explanation: str, **evidence: float) -> Cause:
    known = {key: float(value) for key, value in evidence.items() if not math.isnan(value)}
    return Cause(cause=name, score=round(min(max(score, 0.0), 1.0), 3), evidence=known, explanation=explanation)


def _ramp(value: float, low: float, high: float) -> float:
    """Return 0 at `low`, 1 at `high` and beyond, linear between; 0 for NaN."""
    return 0.0 if math.isnan(value) else min(max((value - low) / (high - low), 0.0), 1.0)


def _learning_rate_too_high(case: Case) -> Cause | None:
    history = case.history
    ratio = max(case.typical_ratio, history.first_ratio) if not math.isnan(history.first_ratio) else math.nan
    peak = max(ratio, min(history.largest_ratio, 10.0)) if not math.isnan(ratio) else math.nan
    rate = history.learning_rate
    score = 0.3 + 0.4 * _ramp(math.log10(max(ratio, 1e-12)), math.log10(HIGH_RATIO / 3), math.log10(1.0))
    score += 0.2 * _ramp(math.log10(max(peak, 1e-12)), math.log10(HIGH_RATIO), 0.5) if not math.isnan(peak) else 0.0
    rose = history.last_learning_rate / history.first_learning_rate if history.first_learning_rate else math.nan
    text = f"One update changes the weights by {ratio:.2g} of their size in calm steps; about 0.001 is healthy."
    if math.isnan(ratio):
        text = "The loss blew up and no update norms were sent that would clear the learning rate."
    if not math.isnan(rose) and rose >= 3:
        score += 0.3
        text = f"The learning rate has risen {rose:.3g}-fold since the start, up to {rate:.3g}. " + text
    if history.last_learning_rate < 0:
        score = 1.0
        text = f"The learning rate is negative ({history.last_learning_rate:g}): every step climbs the loss."
    if case.finding("nonfinite") is not None and math.isnan(history.first_ratio) and not history.calm_norms:
        return None  # dead from the first step: no update was made that could have been too large
    return _cause(
        "learning_rate_too_high", score, text, update_to_weight=ratio, learning_rate=rate, learning_rate_rise=rose
    )


def _poor_initialization_large(case: Case) -> Cause | None:
    factor, decades = case.recurrent_factor, case.init_decades
    if factor >= LARGE_FACTOR and not decades >= 2 * INIT_DECADES:
        score = 0.6 + 0.35 * _ramp(math.log10(factor), math.log10(LARGE_FACTOR), 1.0)
        text = f"The recurrent matrix starts at a factor of {factor:.3g} per time step; an orthogonal one starts at 1."
        return _cause("poor_initialization", score, text, recurrent_factor=factor)
    if math.isnan(decades) or decades < INIT_DECADES:
        return None
    return _cause(
        "poor_initialization",
        0.55 + 0.4 * _ramp(decades, INIT_DECADES, 2.0),
        f"The initial weights amplify a signal 10^{decades:.1f}-fold through {len(case.path)} layers; "
        "a variance-preserving initialization (He, Glorot) keeps it at 1.",
        signal_decades=decades,
        layers=len(case.path),
    )


def _unscaled_inputs(case: Case) -> Cause | None:
    rms, largest = case.training.input_rms, case.training.input_abs_max
    if rms is None:
        loss = abs(case.history.first_loss)
        if math.isnan(loss) or loss < LARGE_LOSS or case.init_decades >= 2 * INIT_DECADES or case.has_recurrence:
            return None
        score = 0.45 + 0.2 * _ramp(math.log10(loss), math.log10(LARGE_LOSS), 4.0)
        text = (
            f"The loss starts at {loss:.3g} with ordinary initial weights: inputs or targets are far from unit scale."
        )
        return _cause("unscaled_inputs", score, text, first_loss=loss)
    if rms < LARGE_SCALE:
        return None
    return _cause(
        "unscaled_inputs",
        0.6 + 0.35 * _ramp(math.log10(rms), math.log10(LARGE_SCALE), 2.0),
        f"Inputs have a root mean square of {rms:.3g} (largest {largest or math.nan:.3g}); standardized ones have 1.",
        input_rms=rms,
    )


def _unscaled_targets(case: Case) -> Cause | None:
    loss, rms = abs(case.history.first_loss), case.training.target_rms
    if rms is None:
        if math.isnan(loss) or loss < LARGE_LOSS or case.init_decades >= 2 * INIT_DECADES:
            return None
        score = 0.4 + 0.2 * _ramp(math.log10(loss), math.log10(LARGE_LOSS), 4.0)
        return _cause("unscaled_targets", score, f"The loss starts at {loss:.3g}.", first_loss=loss)
    if rms < LARGE_SCALE:
        return None
    score = 0.6 + 0.35 * _ramp(math.log10(rms), math.log10(LARGE_SCALE), 2.0)
    text = f"Targets have a root mean square of {rms:.3g}; standardized ones have 1."
    return _cause("unscaled_targets", score, text, target_rms=rms)


def _expanding_recurrence(case: Case) -> Cause | None:
    if not case.has_recurrence:
        return None
    factor = case.recurrent_factor
    score = 0.6 + 0.3 * _ramp(factor, 0.8, 1.2)
    text = "A recurrent cell multiplies gradients once per time step."
    if not math.isnan(factor):
        text = (
            f"The recurrent matrix multiplies gradients by up to {factor:.3g} per time step; above 1 they can explode."
        )
    return _cause("long_recurrence", score, text, recurrent_factor=factor)


def _missing_clipping(case: Case) -> Cause | None:
    if case.training.clips_gradients or case.history.clipped_steps:
        return None
    score = 0.72 if case.has_recurrence else 0.4
    typical = case.history.typical_norm()
    text = "No gradient clipping was seen"
    if not math.isnan(typical):
        text += f"; the typical gradient norm is {typical:.3g}, and nothing bounds a larger one"
    return _cause("missing_clipping", score, text + ".", typical_gradient_norm=typical)


def _precision_overflow(case: Case) -> Cause | None:
    finding = case.finding("nonfinite")
    if finding is None:
        return None
    half = (case.training.precision or "").lower() in ("float16", "fp16", "half")
    scale = case.history.loss_scale
    loss = finding.evidence.get("loss", math.nan)
    if half or scale > 1:
        text = "Gradients overflowed in half precision" + (f" at a loss scale of {scale:g}." if scale > 1 else ".")
        return _cause("precision_overflow", 0.9, text, loss_scale=scale)
    if math.isfinite(loss) and not case.history.calm_norms:
        text = f"Gradients were non-finite on the first step while the loss was an ordinary {loss:.3g}."
        return _cause("precision_overflow", 0.75, text, loss=loss)
    return None


def _precision_underflow(case: Case) -> Cause | None:
    half = (case.training.precision or "").lower() in ("float16", "fp16", "half")
    if not half or case.finding("zero_gradient") is None:
        return None
    text = "Parameters are in half precision, whose smallest number is 6e-8: smaller gradients become exactly zero."
    return _cause("precision_underflow", 0.85, text, loss_scale=case.history.loss_scale)


def _numerical_instability(case: Case) -> Cause | None:
    finding = case.finding("nonfinite")
    if finding is None:
        return None
    history = case.history
    calm = bool(history.calm_norms) and not history.largest_ratio >= 0.1
    if calm:
        text = "The loss or a gradient became non-finite out of ordinary gradients: look for log(0), 0/0, sqrt(0), exp."
        return _cause("numerical_instability", 0.8, text, largest_update_to_weight=history.largest_ratio)
    if not history.calm_norms and not math.isfinite(finding.evidence.get("loss", math.nan)):
        text = "The first loss was already non-finite: look for log(0), 0/0, or an exponential in the forward pass."
        return _cause("numerical_instability", 0.65, text)
    return None


def _unbounded_activation(case: Case) -> Cause | None:
    unbounded = sum(a in UNBOUNDED for a in case.activations)
    if not unbounded:
        return None
    text = f"{unbounded} layers end in an activation that grows without bound ({case.activations[0]})."
    return _cause("unbounded_activation", 0.9, text, layers=unbounded)


def _missing_normalization(case: Case) -> Cause | None:
    depth = len(case.path)
    if depth < DEEP or case.is_normalized:
        return None
    text = f"{depth} weight matrices in sequence and no normalization layer."
    return _cause("missing_normalization", 0.45 + 0.2 * _ramp(depth, DEEP, 24), text, layers=depth)


def _saturating_activation(case: Case) -> Cause | None:
    saturating = [a for a in case.activations if a in SATURATING]
    if saturating:
        steepest = 0.25 if "sigmoid" in saturating else 1.0
        score = (0.75 if steepest < 1 else 0.5) + 0.2 * _ramp(len(saturating), 2, 8)
        kind = saturating[0]
        text = (
            f"{len(saturating)} layers end in {kind}, whose slope is at most {steepest:g}: each shrinks the gradient."
        )
        return _cause("saturating_activation", score, text, layers=len(saturating), largest_slope=steepest)
    gap = case.finding("depth_gap")
    if gap is None or case.activations or case.finding("zero_gradient") is not None or not abs(case.init_decades) < 1.5:
        return None
    text = (
        "Gradients fade with depth although the initial weights preserve variance, "
        "and no layer is silent, as dead rectifiers are."
    )
    return _cause("saturating_activation", 0.5, text, gap_decades=gap.evidence.get("gap_decades", math.nan))


def _poor_initialization_small(case: Case) -> Cause | None:
    if case.zero_initialized and len(case.zero_initialized) >= max(1, len(case.path) // 2):
        text = (
            f"{len(case.zero_initialized)} weight matrices start at exactly zero: no unit differs from its neighbour."
        )
        return _cause("poor_initialization", 0.97, text, zero_layers=len(case.zero_initialized))
    factor, decades = case.recurrent_factor, case.init_decades
    if not math.isnan(factor) and factor < 0.7:
        text = f"The recurrent matrix starts at a factor of {factor:.2g} per time step; an orthogonal one starts at 1."
        return _cause("poor_initialization", 0.8, text, recurrent_factor=factor)
    if math.isnan(decades) or decades > -INIT_DECADES:
        return None
    text = (
        f"The initial weights shrink a signal by 10^{-decades:.1f} over {len(case.path)} layers; He or Glorot do not."
    )
    return _cause("poor_initialization", 0.55 + 0.4 * _ramp(-decades, INIT_DECADES, 3.0), text, signal_decades=decades)


def _dead_units(case: Case) -> Cause | None:
    finding = case.finding("zero_gradient")
    if finding is None:
        return None
    text = "Units that are never active pass no gradient at all, and so can never recover."
    return _cause("dead_units", 0.75, text, dead_share=finding.evidence.get("dead_share", math.nan))


def _contracting_recurrence(case: Case) -> Cause | None:
    finding = case.finding("contracting_recurrence")
    if finding is not None:
        factor = finding.evidence["factor_per_time_step"]
        text = f"Gradients shrink to {factor:.2g} of their size with every time step they pass."
        return _cause("long_recurrence", 0.85, text, factor_per_time_step=factor)
    if not case.has_recurrence:
        return None
    return _cause(
        "long_recurrence", 0.6, "A recurrent cell shrinks gradients once per time step.", factor=case.recurrent_factor
    )


def _excessive_weight_decay(case: Case) -> Cause | None:
    shrinkage = case.weight_shrinkage
    decays = [o.weight_decay for o in case.training.optimizers if o.weight_decay]
    if math.isnan(shrinkage) or shrinkage > 0.3 or (case.training.optimizers and not decays):
        return None
    text = f"The weights have shrunk to {shrinkage:.2g} of their initial norm" + (
        f" under a weight decay of {max(decays):g}." if decays else "."
    )
    return _cause(
        "excessive_weight_decay",
        0.75 + 0.2 * _ramp(-math.log10(max(shrinkage, 1e-12)), 0.5, 2.0),
        text,
        weight_shrinkage=shrinkage,
    )


def _excessive_clipping(case: Case) -> Cause | None:
    finding = case.finding("excessive_clipping")
    if finding is None:
        return None
    share = finding.evidence["share_of_gradient_left"]
    text = f"Clipping leaves {share:.1g} of the gradient; a useful bound is 0.5 to 10 times its typical norm."
    return _cause("excessive_clipping", 0.95, text, share_of_gradient_left=share)


def _destroyed_by_updates(case: Case) -> Cause | None:
    peak = case.history.largest_ratio
    if peak < HIGH_RATIO:
        return None
    text = f"Updates were as large as {peak:.2g} of the weights (healthy: about 0.001), enough to saturate units."
    return _cause(
        "learning_rate_too_high",
        0.4 + 0.3 * _ramp(math.log10(peak), math.log10(HIGH_RATIO), 0.0),
        text,
        update_to_weight=peak,
    )


_EXPLODING: tuple[Callable[[Case], Cause | None], ...] = (
    _learning_rate_too_high,
    _poor_initialization_large,
    _unscaled_inputs,
    _unscaled_targets,
    _expanding_recurrence,
    _missing_clipping,
    _precision_overflow,
    _numerical_instability,
    _unbounded_activation,
    _missing_normalization,
)
_VANISHING: tuple[Callable[[Case], Cause | None], ...] = (
    _saturating_activation,
    _precision_underflow,
    _poor_initialization_small,
    _dead_units,
    _contracting_recurrence,
    _excessive_weight_decay,
    _excessive_clipping,
    _missing_normalization,
    _destroyed_by_updates,
)
