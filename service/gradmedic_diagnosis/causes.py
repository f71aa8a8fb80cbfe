"""The probable causes of a vanishing or exploding verdict, ranked by the strength of their evidence.

Each cause has a small function that looks for evidence of that cause and returns None where there is none. Several
causes may hold at once. The scores (0 to 1) are judgements of how well the evidence fits the cause.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gradmedic.protocol.diagnosis import Cause
from gradmedic_diagnosis.architecture import SIGMOID_SLOPE
from gradmedic_diagnosis.measurements import HEALTHY_UPDATE_RATIO
from gradmedic_diagnosis.run_evidence import SATURATING, UNBOUNDED, RunEvidence

MAX_CAUSES = 5
"""Most causes of one diagnosis."""
MIN_RATIO = 1e-12
"""Lower bound of a ratio whose logarithm is taken."""
HIGH_UPDATE_RATIO = 0.03
"""Update over weight well above the practical band of 1e-5 to 1e-2 for a whole network."""
MAX_PEAK_UPDATE_RATIO = 10.0
"""Bound of the largest update over weight in a score: after an explosion the ratio has no meaning beyond it."""
DESTROYING_UPDATE_RATIO = 0.1
"""Updates of this share of the weights can be the reason for non-finite values."""
EXPANDING_FACTORS = (0.8, 1.2)
"""Factors per time step at which an expanding recurrence begins to be likely, and is likeliest. A factor above 1 is
necessary (Pascanu et al. 2013); the matrix may have grown since it was measured."""
GROWTH_FINDINGS = ("loss_divergence", "growth_in_time", "overwritten_weights")
"""Detectors whose finding shows that losses or gradients grew."""
RATE_RISE = 3.0
"""A learning rate that has risen by this factor since the start is evidence."""
LARGE_LOSS = 50.0
"""First loss beyond which inputs or targets are unscaled: a classifier starts at ln(classes), a standardized regression
near 1."""
LARGE_RMS = 5.0
"""Root mean square beyond which inputs or targets are unscaled; standardized data has 1."""
DEEP_NETWORK_DEPTH = 8
"""Number of weight matrices from which a plain network needs normalization or residual connections to train well."""
LARGE_RECURRENT_FACTOR = 2.0
"""Initial spectral norm from which a recurrent matrix is too large: torch's own initialization has 1.15, an orthogonal
matrix has 1."""
SMALL_RECURRENT_FACTOR = 0.7
"""Initial factor per time step below which a recurrent matrix is too small."""
INIT_DECADES = 0.5
"""Decades of a signal that the initial weights gain or lose over the network's depth, from which they are poor."""
CLEAR_INIT_DECADES = 2 * INIT_DECADES
"""Decades from which the initial weights alone explain a large first loss or a large recurrent factor."""
VARIANCE_PRESERVING_DECADES = 1.5
"""Decades within which initial weights preserve variance well enough not to be the reason for fading gradients."""
SHRUNK_WEIGHTS = 0.3
"""Weights that have shrunk to this share of their first norm are evidence of too much weight decay."""
HALF_PRECISION = ("float16", "fp16", "half")
"""Names of the 16-bit floating point format with a small range; bfloat16 has the range of float32."""


def find_causes(run: RunEvidence) -> list[Cause]:
    """Return the causes that have evidence, the strongest first, at most `MAX_CAUSES`."""
    checks = _EXPLODING_CHECKS if run.verdict == "exploding" else _VANISHING_CHECKS
    causes = [cause for check in checks if (cause := check(run)) is not None]
    return sorted(causes, key=lambda cause: -cause.score)[:MAX_CAUSES]


def _make_cause(name: str, score: float, explanation: str, **evidence: float) -> Cause:
    """Return a cause, with its score in bounds and without evidence that is NaN."""
    numbers = {key: float(value) for key, value in evidence.items() if not math.isnan(value)}
    return Cause(cause=name, score=round(min(max(score, 0.0), 1.0), 3), evidence=numbers, explanation=explanation)


def _ramp(value: float, low: float, high: float) -> float:
    """Return 0 at `low`, 1 at `high` and beyond, linear in between; 0 for NaN."""
    return 0.0 if math.isnan(value) else min(max((value - low) / (high - low), 0.0), 1.0)


def _check_learning_rate(run: RunEvidence) -> Cause | None:
    history = run.history
    rate, rise = history.largest_learning_rate, math.nan
    if history.first_learning_rate:
        rise = history.last_learning_rate / history.first_learning_rate
    has_risen = rise >= RATE_RISE
    ratio = math.nan if run.starts_at_zero else _largest(run.typical_update_ratio, history.first_update_ratio)
    largest = math.nan if run.starts_at_zero else history.largest_update_ratio
    peak = _largest(ratio, min(largest, MAX_PEAK_UPDATE_RATIO))
    numbers = {"update_to_weight": ratio, "learning_rate": rate, "learning_rate_rise": rise}
    if history.last_learning_rate < 0:
        text = f"The learning rate is negative ({history.last_learning_rate:g}): every step raises the loss."
        return _make_cause("learning_rate_too_high", 1.0, text, **numbers)
    score, text = 0.3, ""
    if math.isnan(ratio):
        has_grown = any(run.find(detector) is not None for detector in GROWTH_FINDINGS)
        if run.find("nonfinite") is not None and not has_grown and not has_risen:
            return None  # nothing grew before the first non-finite value: no update is known that was too large
        text = "The loss blew up, and no update norms were sent that could rule the learning rate out."
        if run.starts_at_zero:
            text = "The loss blew up. The weights start at zero, so the size of the updates against them shows nothing."
    elif _largest(ratio, peak) < HIGH_UPDATE_RATIO / 3 and not has_risen:
        return None
    else:
        score += 0.4 * _ramp(math.log10(max(ratio, MIN_RATIO)), math.log10(HIGH_UPDATE_RATIO / 3), math.log10(1.0))
        score += 0.2 * _ramp(math.log10(max(peak, MIN_RATIO)), math.log10(HIGH_UPDATE_RATIO), 0.5)
        text = (
            f"One update changes the weights by {ratio:.2g} of their size in calm steps, and by up to {largest:.2g}; "
            f"about {HEALTHY_UPDATE_RATIO:g} is healthy."
        )
    if has_risen:
        score += 0.3
        text = f"The learning rate has risen {rise:.3g}-fold since the start, up to {rate:.3g}. {text}"
    return _make_cause("learning_rate_too_high", score, text, **numbers)


def _largest(*values: float) -> float:
    """Return the largest value that is not NaN; NaN if all are."""
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def _check_large_initialization(run: RunEvidence) -> Cause | None:
    factor, decades = run.recurrent_factor, run.initial_signal_decades
    if factor >= LARGE_RECURRENT_FACTOR and not decades >= CLEAR_INIT_DECADES:
        score = 0.6 + 0.35 * _ramp(math.log10(factor), math.log10(LARGE_RECURRENT_FACTOR), 1.0)
        text = f"The recurrent matrix starts at a factor of {factor:.3g} per time step; an orthogonal one starts at 1."
        return _make_cause("poor_initialization", score, text, recurrent_factor=factor)
    if math.isnan(decades) or decades < INIT_DECADES:
        return None
    return _make_cause(
        "poor_initialization",
        0.55 + 0.4 * _ramp(decades, INIT_DECADES, 2.0),
        f"The initial weights amplify a signal 10^{decades:.1f}-fold through {len(run.path)} layers; "
        "a variance-preserving initialization (He, Glorot) keeps its size.",
        signal_decades=decades,
        layers=len(run.path),
    )


def _check_input_scale(run: RunEvidence) -> Cause | None:
    rms, largest = run.training.input_rms, run.training.input_abs_max
    if rms is None:
        loss = abs(run.history.first_loss)
        has_large_weights = run.initial_signal_decades >= CLEAR_INIT_DECADES
        if math.isnan(loss) or loss < LARGE_LOSS or has_large_weights or run.has_recurrence:
            return None
        score = 0.45 + 0.2 * _ramp(math.log10(loss), math.log10(LARGE_LOSS), 4.0)
        text = (
            f"The loss starts at {loss:.3g} with ordinary initial weights: inputs or targets are far from unit scale."
        )
        return _make_cause("unscaled_inputs", score, text, first_loss=loss)
    if rms < LARGE_RMS:
        return None
    return _make_cause(
        "unscaled_inputs",
        0.6 + 0.35 * _ramp(math.log10(rms), math.log10(LARGE_RMS), 2.0),
        f"Inputs have a root mean square of {rms:.3g} (largest {largest or math.nan:.3g}); standardized ones have 1.",
        input_rms=rms,
    )


def _check_target_scale(run: RunEvidence) -> Cause | None:
    loss, rms = abs(run.history.first_loss), run.training.target_rms
    if run.is_classification:
        return None
    if rms is None:
        if math.isnan(loss) or loss < LARGE_LOSS or run.initial_signal_decades >= CLEAR_INIT_DECADES:
            return None
        score = 0.4 + 0.2 * _ramp(math.log10(loss), math.log10(LARGE_LOSS), 4.0)
        return _make_cause("unscaled_targets", score, f"The loss starts at {loss:.3g}.", first_loss=loss)
    if rms < LARGE_RMS:
        return None
    score = 0.6 + 0.35 * _ramp(math.log10(rms), math.log10(LARGE_RMS), 2.0)
    text = f"Targets have a root mean square of {rms:.3g}; standardized ones have 1."
    return _make_cause("unscaled_targets", score, text, target_rms=rms)


def _check_expanding_recurrence(run: RunEvidence) -> Cause | None:
    factor = run.recurrent_factor
    if math.isnan(factor) or factor < EXPANDING_FACTORS[0]:
        return None
    text = f"The recurrent matrix multiplies gradients by up to {factor:.3g} per time step; above 1 they can explode."
    return _make_cause("long_recurrence", 0.6 + 0.3 * _ramp(factor, *EXPANDING_FACTORS), text, recurrent_factor=factor)


def _check_clipping_is_missing(run: RunEvidence) -> Cause | None:
    typical = run.history.typical_norm()
    if run.training.clips_gradients or run.history.clipped_steps or math.isnan(typical):
        return None
    text = (
        f"No gradient clipping was seen; the typical gradient norm is {typical:.3g}, and nothing bounds a larger one."
    )
    score = 0.72 if run.has_recurrence else 0.4
    if run.is_optimizer_scale_free:
        score /= 2
        text += " The optimizer divides by the gradient's size, so clipping matters less."
    return _make_cause("missing_clipping", score, text, typical_gradient_norm=typical)


def _check_precision_overflow(run: RunEvidence) -> Cause | None:
    finding = run.find("nonfinite")
    if finding is None:
        return None
    scale = run.history.last_loss_scale
    loss = finding.evidence.get("loss", math.nan)
    if _has_half_precision(run) or scale > 1:
        text = "Gradients overflowed in half precision" + (f" at a loss scale of {scale:g}." if scale > 1 else ".")
        return _make_cause("precision_overflow", 0.9, text, loss_scale=scale)
    if math.isfinite(loss) and not run.history.calm_norms:
        text = f"Gradients were non-finite on the first step while the loss was an ordinary {loss:.3g}."
        return _make_cause("precision_overflow", 0.75, text, loss=loss)
    return None


def _check_precision_underflow(run: RunEvidence) -> Cause | None:
    if not _has_half_precision(run) or run.find("zero_gradient") is None:
        return None
    text = "Parameters are in half precision, whose smallest number is 6e-8: smaller gradients become exactly zero."
    return _make_cause("precision_underflow", 0.85, text, loss_scale=run.history.last_loss_scale)


def _has_half_precision(run: RunEvidence) -> bool:
    return (run.training.precision or "").lower() in HALF_PRECISION


def _check_numerical_instability(run: RunEvidence) -> Cause | None:
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
        return _make_cause("numerical_instability", 0.8, text, largest_update_to_weight=largest, loss=loss)
    if not history.calm_norms and not math.isfinite(loss):
        text = "The first loss was already non-finite: look for log(0), 0/0, or an exponential in the forward pass."
        return _make_cause("numerical_instability", 0.65, text)
    return None


def _check_unbounded_activation(run: RunEvidence) -> Cause | None:
    count = sum(activation in UNBOUNDED for activation in run.activations)
    if not count:
        return None
    text = f"{count} layers end in an activation that grows without bound ({run.activations[0]})."
    return _make_cause("unbounded_activation", 0.9, text, layers=count)


def _check_normalization_is_missing(run: RunEvidence) -> Cause | None:
    depth = len(run.path)
    if depth < DEEP_NETWORK_DEPTH or run.is_normalized:
        return None
    text = f"The network has {depth} weight matrices in sequence and no normalization layer."
    return _make_cause("missing_normalization", 0.45 + 0.2 * _ramp(depth, DEEP_NETWORK_DEPTH, 24), text, layers=depth)


def _check_saturating_activation(run: RunEvidence) -> Cause | None:
    saturating = [activation for activation in run.activations if activation in SATURATING]
    if saturating:
        slope = SIGMOID_SLOPE if "sigmoid" in saturating else 1.0
        score = (0.75 if slope < 1 else 0.5) + 0.2 * _ramp(len(saturating), 2, 8)
        text = (
            f"{len(saturating)} layers end in {saturating[0]}, whose slope is at most {slope:g}: "
            "each shrinks the gradient."
        )
        return _make_cause("saturating_activation", score, text, layers=len(saturating), largest_slope=slope)
    gap = run.find("depth_gap")
    preserves_variance = abs(run.initial_signal_decades) < VARIANCE_PRESERVING_DECADES
    if gap is None or run.activations or run.find("zero_gradient") is not None or not preserves_variance:
        return None
    text = (
        "Gradients fade with depth although the initial weights preserve variance, "
        "and no layer is inactive as dead rectifiers are."
    )
    return _make_cause("saturating_activation", 0.5, text, gap_decades=gap.evidence.get("gap_decades", math.nan))


def _check_small_initialization(run: RunEvidence) -> Cause | None:
    zeros = len(run.zero_initialized)
    if zeros and zeros >= max(1, len(run.path) // 2):
        text = f"{zeros} weight matrices start at exactly zero: all units of a layer stay the same."
        return _make_cause("poor_initialization", 0.97, text, zero_layers=zeros)
    factor, decades = run.recurrent_factor, run.initial_signal_decades
    if not math.isnan(factor) and factor < SMALL_RECURRENT_FACTOR:
        text = f"The recurrent matrix starts at a factor of {factor:.2g} per time step; an orthogonal one starts at 1."
        return _make_cause("poor_initialization", 0.8, text, recurrent_factor=factor)
    if math.isnan(decades) or decades > -INIT_DECADES:
        return None
    text = f"The initial weights shrink a signal by 10^{-decades:.1f} over {len(run.path)} layers; He or Glorot do not."
    return _make_cause(
        "poor_initialization", 0.55 + 0.4 * _ramp(-decades, INIT_DECADES, 3.0), text, signal_decades=decades
    )


def _check_dead_units(run: RunEvidence) -> Cause | None:
    finding = run.find("zero_gradient")
    if finding is None:
        return None
    text = "Units that are never active pass no gradient at all, so they can never recover."
    return _make_cause("dead_units", 0.75, text, dead_share=finding.evidence.get("dead_share", math.nan))


def _check_contracting_recurrence(run: RunEvidence) -> Cause | None:
    finding = run.find("contracting_recurrence")
    if finding is not None:
        factor = finding.evidence["factor_per_time_step"]
        text = f"Gradients shrink to {factor:.2g} of their size with every time step that they pass."
        return _make_cause("long_recurrence", 0.85, text, factor_per_time_step=factor)
    factor, gap, decades = run.recurrent_factor, run.find("depth_gap"), math.nan
    if factor < 1:
        text = f"The recurrent matrix shrinks gradients to at most {factor:.2g} of their size with every time step."
    elif run.has_recurrence and gap is not None:
        decades = gap.evidence.get("gap_decades", math.nan)
        text = f"A recurrent cell shrinks gradients once per time step; they lose {decades:.1f} decades on their way."
    else:
        return None
    numbers = {"gap_decades": decades} if math.isnan(factor) else {"factor": factor}
    return _make_cause("long_recurrence", 0.6, text, **numbers)


def _check_weight_decay(run: RunEvidence) -> Cause | None:
    shrinkage = run.weight_shrinkage
    decays = [optimizer.weight_decay for optimizer in run.training.optimizers if optimizer.weight_decay]
    is_without_decay = bool(run.training.optimizers) and not decays
    if math.isnan(shrinkage) or shrinkage > SHRUNK_WEIGHTS or is_without_decay:
        return None
    text = f"The weights have shrunk to {shrinkage:.2g} of their initial norm"
    text += f" under a weight decay of {max(decays):g}." if decays else "."
    score = 0.75 + 0.2 * _ramp(-math.log10(max(shrinkage, MIN_RATIO)), 0.5, 2.0)
    return _make_cause("excessive_weight_decay", score, text, weight_shrinkage=shrinkage)


def _check_excessive_clipping(run: RunEvidence) -> Cause | None:
    finding = run.find("excessive_clipping")
    if finding is None:
        return None
    share = finding.evidence["share_of_gradient_left"]
    text = f"Clipping leaves {share:.1g} of the gradient; a useful bound is 0.5 to 10 times its typical norm."
    return _make_cause("excessive_clipping", 0.95, text, share_of_gradient_left=share)


def _check_destroying_updates(run: RunEvidence) -> Cause | None:
    peak = run.history.largest_update_ratio
    if peak < HIGH_UPDATE_RATIO:
        return None
    text = (
        f"Updates were as large as {peak:.2g} of the weights (healthy: about {HEALTHY_UPDATE_RATIO:g}), "
        "enough to saturate units."
    )
    score = 0.4 + 0.3 * _ramp(math.log10(peak), math.log10(HIGH_UPDATE_RATIO), 0.0)
    return _make_cause("learning_rate_too_high", score, text, update_to_weight=peak)


_EXPLODING_CHECKS: tuple[Callable[[RunEvidence], Cause | None], ...] = (
    _check_learning_rate,
    _check_large_initialization,
    _check_input_scale,
    _check_target_scale,
    _check_expanding_recurrence,
    _check_clipping_is_missing,
    _check_precision_overflow,
    _check_numerical_instability,
    _check_unbounded_activation,
    _check_normalization_is_missing,
)
"""Among causes of one score, the first of these is ranked first."""
_VANISHING_CHECKS: tuple[Callable[[RunEvidence], Cause | None], ...] = (
    _check_saturating_activation,
    _check_precision_underflow,
    _check_small_initialization,
    _check_dead_units,
    _check_contracting_recurrence,
    _check_weight_decay,
    _check_excessive_clipping,
    _check_normalization_is_missing,
    _check_destroying_updates,
)
