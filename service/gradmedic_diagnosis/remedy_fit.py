"""The fit of remedies to a run: parameters from the run's numbers, and whether a remedy makes sense for it at all."""

from __future__ import annotations

import math

from gradmedic_diagnosis.run_evidence import RECTIFIERS, SATURATING, RunEvidence

Parameters = dict[str, float | int | str | bool]

TARGET_UPDATE_RATIO = 3e-3
"""Update over weight that a lowered learning rate aims at; somewhat above `HEALTHY_UPDATE_RATIO`."""
LEARNING_RATE_FACTORS = (1e-4, 0.3)
"""Smallest and largest factor of the learning rate: beyond them it would hardly train, or hardly change."""
DEFAULT_MAX_NORM = 1.0
"""Bound of the gradient norm where the run's own norms are no guide."""
PLAUSIBLE_NORMS = (1e-3, 100.0)
"""Typical gradient norms that a bound is derived from."""
RECURRENT_NORM_SHARE = 0.5
"""Bound over typical norm in recurrent networks: the low end of the useful 0.5 to 10 (Pascanu et al. 2013, section
3.2), since one factor is multiplied over many time steps. Elsewhere it is 1."""
CLIP_VALUE_FACTOR = 10.0
"""Bound of one element over the root mean square of a gradient at the norm's bound."""
MIN_CLIP_VALUE = 1e-4
CLIPPING_WITHOUT_SCALE = 0.3
"""Share of its effect that clipping has where a gradient's size hardly changes the update. A judgement: under Adam only
a gradient that is far above its running average changes the step (Kingma and Ba 2015, section 2.1)."""
STABLE_LOSSES = frozenset({"LogSoftmax", "BinaryCrossEntropyWithLogits", "MseLoss", "SmoothL1Loss", "HuberLoss"})
"""Operations of losses that overflow or take the logarithm of zero only where their inputs are non-finite."""
STABLE_LOSS_DEPTH = 4
"""Operations of the loss, from the loss backwards, among which such an operation is looked for."""
TIGHT_THRESHOLD = 1.0
"""Bound of an update's root mean square (Wortsman et al. 2023, algorithm 2)."""
SMALL_EPSILON = 1e-15
"""Epsilon that swallows no update of a float32 training (Wortsman et al. 2024, Small-scale proxies, section 3.4)."""
DEFAULT_EPSILON = 1e-8
"""Epsilon of Adam's paper and of torch."""
HALF_EPSILON = 1e-4
"""Epsilon of float16 parameters: 1e-8 is zero in float16, whose smallest normal number is 6e-5."""
SHORTER_BETAS = (0.95, 0.9)
"""Second betas that forget sooner than the usual 0.999: that of most large language models, and a shorter one."""
SECOND_MOMENT = ("adam", "adamw", "nadam", "radam", "lamb")
"""Beginnings and endings of the names of optimizers that keep a second moment as Adam does."""
DEFAULT_FACTOR = 0.1
"""Factor of the learning rate or the loss where the run's numbers give none."""


def round_to(value: float, digits: int = 1) -> float:
    """Round to significant digits, since a person reads and types the number.

    >>> round_to(0.0347)
    0.03
    """
    return float(f"{value:.{digits - 1}e}")


def choose_max_norm(run: RunEvidence) -> Parameters:
    """Bound the gradient norm near its typical value in calm steps."""
    typical = run.history.typical_norm()
    if not math.isfinite(typical) or not PLAUSIBLE_NORMS[0] <= typical <= PLAUSIBLE_NORMS[1]:
        return {"max_norm": DEFAULT_MAX_NORM}
    return {"max_norm": round_to(typical * (RECURRENT_NORM_SHARE if run.has_recurrence else 1.0))}


def choose_layer_max_norm(run: RunEvidence) -> Parameters:
    """Bound the gradient norm of each layer, so that all layers together have the bound of the whole gradient."""
    max_norm = float(choose_max_norm(run)["max_norm"])
    return {"max_norm": round_to(max_norm / math.sqrt(max(1, len(run.layers))))}


def choose_clip_value(run: RunEvidence) -> Parameters:
    """Bound the elements of the gradient, from the bound of its norm."""
    max_norm = float(choose_max_norm(run)["max_norm"])
    return {"clip_value": round_to(max(CLIP_VALUE_FACTOR * max_norm / math.sqrt(run.numel), MIN_CLIP_VALUE))}


def choose_learning_rate_factor(run: RunEvidence) -> Parameters:
    """Lower the learning rate so that updates are `TARGET_UPDATE_RATIO` of the weights."""
    ratios = (run.typical_update_ratio, run.history.first_update_ratio, 0.0)
    largest = max(ratio for ratio in ratios if not math.isnan(ratio))
    factor = TARGET_UPDATE_RATIO / largest if largest > 0 else DEFAULT_FACTOR
    smallest_factor, largest_factor = LEARNING_RATE_FACTORS
    return {"factor": round_to(min(max(factor, smallest_factor), largest_factor))}


def choose_loss_factor(run: RunEvidence) -> Parameters:
    """Scale the loss so that it starts near 1."""
    scale = abs(run.history.first_loss)
    return {"factor": round_to(1 / scale) if math.isfinite(scale) and scale > 1 else DEFAULT_FACTOR}


def choose_initialization(run: RunEvidence) -> Parameters:
    """Return the initialization that preserves variance behind the network's activations."""
    if run.has_recurrence:
        return {"scheme": "orthogonal"}
    if "selu" in run.activations:
        return {"scheme": "lecun_normal"}
    return {"scheme": "xavier_uniform" if _has_symmetric_activations(run) else "kaiming_normal"}


def choose_other_initialization(run: RunEvidence) -> Parameters:
    """Return the one of Glorot's and He's initialization that does not belong to the network's activations."""
    return {"scheme": "kaiming_normal" if _has_symmetric_activations(run) else "xavier_uniform"}


def choose_epsilon(run: RunEvidence) -> Parameters:
    """Return an epsilon that fits the precision: a larger one for float16 parameters, else a smaller one."""
    if has_dtype(run, "float16"):
        return {"epsilon": HALF_EPSILON}
    known = [optimizer.epsilon for optimizer in run.training.optimizers if optimizer.epsilon is not None]
    return {"epsilon": DEFAULT_EPSILON if known and max(known) > DEFAULT_EPSILON else SMALL_EPSILON}


def choose_beta2(run: RunEvidence) -> Parameters:
    """Return a second beta that forgets sooner than the script's."""
    known = [optimizer.beta2 for optimizer in run.training.optimizers if optimizer.beta2 is not None]
    return {"beta2": next((beta for beta in SHORTER_BETAS if not known or beta < min(known)), SHORTER_BETAS[-1])}


def choose_tensor_clipping(run: RunEvidence) -> Parameters:
    """Return AdaGC's bound of a tensor's norm, and the bound of all of them for its first steps."""
    return {"relative_norm": 1.05, "max_norm": choose_max_norm(run)["max_norm"]}


def is_exploding(run: RunEvidence) -> bool:
    """Whether the verdict is exploding."""
    return run.verdict == "exploding"


def lacks_clipping(run: RunEvidence) -> bool:
    """Whether the run explodes, and the script does not clip its gradients already."""
    return is_exploding(run) and not run.training.clips_gradients and not run.history.clipped_steps


def estimate_fit_of_clipping(run: RunEvidence) -> float:
    """Return how much clipping can do: little where the optimizer divides by the gradient's size."""
    return CLIPPING_WITHOUT_SCALE if run.is_optimizer_scale_free else 1.0


def has_scaled_targets(run: RunEvidence) -> bool:
    """Whether the targets may have a scale; those of a classification have none."""
    return not run.is_classification


def may_compute_loss_unsafely(run: RunEvidence) -> bool:
    """Whether the loss may be computed from probabilities, and not by a stable function of the logits."""
    loss = run.training.loss
    return loss is None or not set(loss.operations[:STABLE_LOSS_DEPTH]) & STABLE_LOSSES


def uses_adam(run: RunEvidence) -> bool:
    """Whether an optimizer is Adam or a variant of it."""
    return any(optimizer.name.lower().startswith("adam") for optimizer in run.training.optimizers)


def has_second_moment(run: RunEvidence) -> bool:
    """Whether every optimizer keeps a second moment as Adam does."""
    names = [optimizer.name.lower() for optimizer in run.training.optimizers]
    return bool(names) and all(name.startswith(SECOND_MOMENT) or name.endswith(SECOND_MOMENT) for name in names)


def can_forget_sooner(run: RunEvidence) -> bool:
    """Whether a shorter second beta than the script's is advised at all."""
    known = [optimizer.beta2 for optimizer in run.training.optimizers if optimizer.beta2 is not None]
    return has_second_moment(run) and not any(beta <= SHORTER_BETAS[-1] for beta in known)


def can_change_epsilon(run: RunEvidence) -> bool:
    """Whether the optimizer has an epsilon that is not the advised one already."""
    epsilon = choose_epsilon(run)["epsilon"]
    return has_second_moment(run) and any(optimizer.epsilon != epsilon for optimizer in run.training.optimizers)


def has_dtype(run: RunEvidence, *names: str) -> bool:
    """Whether the parameters have one of these dtypes."""
    return (run.training.parameter_dtype or "").lower() in names


def has_low_precision_weights(run: RunEvidence) -> bool:
    """Whether the parameters themselves have 16 bits, not only what autocast computes with them."""
    return has_dtype(run, "float16", "bfloat16")


def uses_no_adam(run: RunEvidence) -> bool:
    """Whether no optimizer is known to be Adam or a variant of it."""
    return not uses_adam(run)


def may_saturate(run: RunEvidence) -> bool:
    """Whether there may be activations outside of a recurrent cell that saturate or grow without bound."""
    if run.is_all_recurrent:
        return False  # a cell computes its own activations
    if not run.activations or any(activation in SATURATING for activation in run.activations):
        return True
    return has_unusual_activation(run)


def has_unusual_activation(run: RunEvidence) -> bool:
    """Whether a known activation neither saturates nor is a rectifier."""
    return bool(run.activations) and not all(activation in SATURATING + RECTIFIERS for activation in run.activations)


def can_be_normalized(run: RunEvidence) -> bool:
    """Whether there is no normalization yet, and a hidden layer outside of a recurrent cell."""
    return not run.is_normalized and not run.is_all_recurrent


def has_dead_units(run: RunEvidence) -> bool:
    """Whether gradients are exactly zero, with hidden layers outside of a recurrent cell."""
    return run.find("zero_gradient") is not None and not run.is_all_recurrent


def is_feedforward(run: RunEvidence) -> bool:
    """Whether there are several weight matrices and no recurrent cell."""
    return not run.has_recurrence and len(run.path) >= 2


def has_plain_recurrence(run: RunEvidence) -> bool:
    """Whether there is a recurrent matrix without gates."""
    return bool(run.recurrent)


def _has_symmetric_activations(run: RunEvidence) -> bool:
    return bool(run.activations) and all(
        activation in SATURATING or activation == "linear" for activation in run.activations
    )
