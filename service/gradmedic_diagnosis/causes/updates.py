"""Causes in the updates: their size, clipping, weight decay."""

from __future__ import annotations

import math

from gradmedic.protocol.diagnosis import Cause
from gradmedic_diagnosis.causes.cause import MIN_RATIO, find_largest, make_cause, ramp
from gradmedic_diagnosis.causes.recurrence import EXPANDING_FACTORS
from gradmedic_diagnosis.measurements import HEALTHY_UPDATE_RATIO
from gradmedic_diagnosis.optimizers import is_plain_sgd
from gradmedic_diagnosis.run_evidence import RunEvidence
from gradmedic_diagnosis.run_history import CALM_FACTOR

SPOILING_UPDATE_RATIO = 0.005
"""Largest update over weight from which on updates can have spoiled a network that passed gradients on at the start:
the upper end of the practical band is 0.01, for networks that are trained already."""
SPOILING_SCORE = 0.5
"""Score of such updates. A judgement: another change of the network in its first steps looks the same."""
HIGH_UPDATE_RATIO = 0.03
"""Update over weight well above the practical band of 1e-5 to 1e-2 for a whole network."""
MAX_PEAK_UPDATE_RATIO = 10.0
"""Bound of the largest update over weight in a score: after an explosion the ratio has no meaning beyond it."""
DEATH_SCORE = 0.15
"""What units that were alive at first add: the largest updates then come before dead units, which follow from them."""
UNMOVED_SCORE = 0.9
"""Weights that have not moved at all, although the gradient would move them at a usual rate, have one explanation."""
SLOW_SCORE = 0.7
"""Weights that move too slowly for the steps so far, beside a loss that is flat: another fault may keep it flat."""
GROWTH_FINDINGS = ("loss_divergence", "growth_in_time", "overwritten_weights")
"""Detectors whose finding shows that losses or gradients grew."""
LARGE_NORM = CALM_FACTOR
"""Gradient norm over the typical one from which clipping would have changed the course: a useful bound is 0.5 to 10
times the typical norm (Pascanu et al. 2013, section 3.2)."""
RARE_SHARE = 0.1
"""Share of the steps up to which large gradients are rare. Else clipping acts as a smaller learning rate. In a
recurrence it does more: one step over a cliff is what has to be bounded (Pascanu et al. 2013, section 2.3)."""
FEW_NORMS = 3
"""Large gradients that are rare however short the run is: the first breaks the run, and the others follow from it."""
LARGE_MOMENTUM = 0.99
"""Momentum from which its sum of gradients makes a usual learning rate too high: a hundred times the gradient."""
RATE_RISE = 3.0
"""A learning rate that has risen by this factor since the start is evidence."""
SHRUNK_WEIGHTS = 0.3
"""Weights that have shrunk to this share of their first norm are evidence of too much weight decay."""


def check_learning_rate(run: RunEvidence) -> Cause | None:
    """Look for updates that are too large for the weights of an exploding run."""
    history = run.history
    rate, rise = history.largest_learning_rate, math.nan
    if history.first_learning_rate:
        rise = history.last_learning_rate / history.first_learning_rate
    has_risen = rise >= RATE_RISE and "learning_rate_jump" not in run.conditions  # then the rise is its evidence
    ratio = math.nan if run.starts_at_zero else find_largest(run.typical_update_ratio, history.first_update_ratio)
    largest = math.nan if run.starts_at_zero else history.largest_update_ratio
    has_grown = any(run.find(detector) is not None for detector in GROWTH_FINDINGS)
    is_sudden = run.find("nonfinite") is not None and not has_grown
    if is_sudden:
        # Nothing grew before the first non-finite number: only the updates right before it can be the reason.
        ratio = math.nan if run.starts_at_zero else run.typical_update_ratio
        largest = math.nan if run.starts_at_zero else history.recent_update_ratio
    peak = find_largest(ratio, min(largest, MAX_PEAK_UPDATE_RATIO))
    numbers = {"update_to_weight": ratio, "learning_rate": rate, "learning_rate_rise": rise}
    if history.last_learning_rate < 0:
        text = f"The learning rate is negative ({history.last_learning_rate:g}): every step raises the loss."
        return make_cause("learning_rate_too_high", 1.0, text, **numbers)
    score, text = 0.3, ""
    if math.isnan(ratio):
        divergence = run.find("loss_divergence")
        if divergence is None and not has_risen:
            return None  # neither an update, nor a loss, nor a rate is known that was too large
        if divergence is not None:
            numbers["loss_over_reference"] = times = divergence.evidence["loss_over_reference"]
            text = f"The loss blew up to {times:.3g} times its reference; a loss that falls stays below 1."
    elif find_largest(ratio, peak) < _least_harmful_ratio(has_risen=has_risen, is_sudden=is_sudden):
        return None
    else:
        score += 0.4 * ramp(math.log10(max(ratio, MIN_RATIO)), math.log10(HIGH_UPDATE_RATIO / 3), math.log10(1.0))
        score += 0.2 * ramp(math.log10(max(peak, MIN_RATIO)), math.log10(HIGH_UPDATE_RATIO), 0.5)
        text = (
            f"One update changes the weights by {ratio:.2g} of their size in calm steps, and by up to {largest:.2g}; "
            f"about {HEALTHY_UPDATE_RATIO:g} is healthy."
        )
    if has_risen:
        score += 0.3
        text = f"The learning rate has risen {rise:.3g}-fold since the start, up to {rate:.3g}. {text}".rstrip()
    momentum = max((each.momentum or 0.0 for each in run.training.optimizers if is_plain_sgd(each)), default=0.0)
    if LARGE_MOMENTUM <= momentum < 1:
        text += f" A momentum of {momentum:g} adds each gradient to {1 / (1 - momentum):.0f} updates, one of 0.9 to 10."
    return make_cause("learning_rate_too_high", score, text, **numbers)


def _least_harmful_ratio(*, has_risen: bool, is_sudden: bool) -> float:
    """Return the update over weight from which updates can be too large.

    A rate that has risen is evidence itself. But where nothing grew before the first non-finite number, a warm-up with
    ordinary updates has done no harm.
    """
    if not has_risen:
        return HIGH_UPDATE_RATIO / 3
    return SPOILING_UPDATE_RATIO if is_sudden else 0.0


def check_rate_of_worsening_run(run: RunEvidence) -> Cause | None:
    """Look for updates that are too large in a run whose objective gets worse, with gradients that cause no alarm."""
    return check_learning_rate(run) if run.learning == "worsening" else None


def check_low_learning_rate(run: RunEvidence) -> Cause | None:
    """Look for a learning rate at which the weights of a run that is not learning stay what they are.

    The SDK measures the update itself. So where something else makes it small, as clipping or Adam's epsilon does, the
    condition that says so is the cause.
    """
    is_unmoved = any(each.detector == "starvation" and each.severity == "warning" for each in run.open_findings)
    is_explained = bool(run.conditions) or any(each.detector == "excessive_clipping" for each in run.open_findings)
    if is_explained or not (is_unmoved or run.learning == "stuck"):
        return None
    rate, largest = run.history.last_learning_rate, run.history.largest_learning_rate
    if run.has_ended_schedule:
        text = (
            f"The schedule has taken the learning rate from {largest:.3g} to {rate:.3g} before the loss moved, which "
            "ends the training. Perhaps its number of steps is that of another training."
        )
        return make_cause(
            "learning_rate_too_low", UNMOVED_SCORE, text, learning_rate=rate, largest_learning_rate=largest
        )
    ratio = run.slow_update_ratio
    is_warming_up = rate > RATE_RISE * run.history.first_learning_rate and not rate < largest
    if math.isnan(ratio) or is_warming_up:
        return None  # updates were larger, or may become so
    known = "" if math.isnan(rate) else f", {rate:.3g},"
    text = (
        f"One update changes the weights by only {ratio:.1g} of their size, and none was larger than "
        f"{run.history.largest_update_ratio:.1g}; about {HEALTHY_UPDATE_RATIO:g} is healthy. The learning rate{known} "
        "is too low for gradients of this size."
    )
    score = UNMOVED_SCORE if is_unmoved else SLOW_SCORE
    return make_cause("learning_rate_too_low", score, text, update_to_weight=ratio, learning_rate=rate)


def check_destroying_updates(run: RunEvidence) -> Cause | None:
    """Look for updates that were large enough to drive units of a vanishing run into saturation."""
    peak = run.history.largest_update_ratio
    if peak < HIGH_UPDATE_RATIO:
        return _check_spoiling_updates(run, peak)
    text = (
        f"Updates were as large as {peak:.2g} of the weights (healthy: about {HEALTHY_UPDATE_RATIO:g}), "
        "enough to saturate units."
    )
    score = 0.4 + 0.3 * ramp(math.log10(peak), math.log10(HIGH_UPDATE_RATIO), 0.0)
    dead = run.find("zero_gradient")
    if dead is not None and dead.first_step > 0:
        score += DEATH_SCORE
        text += f" Units died at step {dead.first_step}, and not at the start."
    return make_cause("learning_rate_too_high", score, text, update_to_weight=peak)


def _check_spoiling_updates(run: RunEvidence, peak: float) -> Cause | None:
    """Look for updates after which gradients fade with depth, in a network that passed them on at the start.

    Adam's first updates have full size, whatever the gradient: a transformer that normalizes behind its branches needs
    a warm-up (Xiong et al. 2020, "On layer normalization in the transformer architecture").
    """
    gap = run.find("depth_gap")
    if gap is None or gap.first_step == 0 or not peak >= SPOILING_UPDATE_RATIO:
        return None
    text = (
        f"At the start gradients reached all layers; they fade with depth since step {gap.first_step}, after updates "
        f"of up to {peak:.2g} of the weights (healthy: about {HEALTHY_UPDATE_RATIO:g}). A warm-up makes the first "
        "updates small."
    )
    return make_cause("learning_rate_too_high", SPOILING_SCORE, text, update_to_weight=peak)


def check_destroying_gradients(run: RunEvidence) -> Cause | None:
    """Look for large gradients that nothing bounded, and that spoiled a recurrence which passed gradients before."""
    has_passed_gradients = run.history.largest_time_factor >= EXPANDING_FACTORS[0]
    return check_clipping_is_missing(run) if has_passed_gradients else None


def check_clipping_is_missing(run: RunEvidence) -> Cause | None:
    """Look for large gradients that nothing bounds: rare ones, or those of a recurrence."""
    typical = run.history.typical_norm()
    if run.training.clips_gradients or run.history.clipped_steps or math.isnan(typical):
        return None
    largest, share = run.history.largest_norm, run.history.large_norms / max(1, run.history.norms)
    is_rare = share <= RARE_SHARE or run.history.large_norms <= FEW_NORMS
    if not largest >= LARGE_NORM * typical > 0 or not (is_rare or run.has_recurrence):
        return None
    text = (
        f"No gradient clipping was seen. The largest gradient norm is {largest:.3g}, {largest / typical:.3g} times the "
        f"typical {typical:.3g}; clipping would keep it within a few times that. Norms of {CALM_FACTOR:g} times the "
        f"typical one: {share:.1%} of the steps."
    )
    score = 0.72 if run.has_recurrence else 0.4
    if run.is_optimizer_scale_free:
        score /= 2
        text += " The optimizer divides by the gradient's size, so clipping matters less."
    return make_cause(
        "missing_clipping", score, text,
        typical_gradient_norm=typical, largest_gradient_norm=largest, share_of_large_norms=share,
    )  # fmt: skip


def check_excessive_clipping(run: RunEvidence) -> Cause | None:
    """Look for clipping that leaves too little of the gradient."""
    finding = run.find("excessive_clipping")
    if finding is None:
        return None
    share = finding.evidence["share_of_gradient_left"]
    text = f"Clipping leaves {share:.1g} of the gradient; a useful bound is 0.5 to 10 times its typical norm."
    return make_cause("excessive_clipping", 0.95, text, share_of_gradient_left=share)


def check_weight_decay(run: RunEvidence) -> Cause | None:
    """Look for weights that have shrunk, where the condition of the same name does not show it with more numbers."""
    if "excessive_weight_decay" in run.conditions:
        return None
    shrinkage = run.weight_shrinkage
    decays = [optimizer.weight_decay for optimizer in run.training.optimizers if optimizer.weight_decay]
    is_without_decay = bool(run.training.optimizers) and not decays
    if math.isnan(shrinkage) or shrinkage > SHRUNK_WEIGHTS or is_without_decay:
        return None
    text = f"The weights have shrunk to {shrinkage:.2g} of their initial norm"
    text += f" under a weight decay of {max(decays):g}." if decays else "."
    score = 0.75 + 0.2 * ramp(-math.log10(max(shrinkage, MIN_RATIO)), 0.5, 2.0)
    return make_cause("excessive_weight_decay", score, text, weight_shrinkage=shrinkage)
