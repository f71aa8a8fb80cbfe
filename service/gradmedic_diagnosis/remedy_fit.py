"""The fit of remedies to a run: their parameters, from the run's numbers."""

from __future__ import annotations

import math
from statistics import median

from gradmedic_diagnosis.run_evidence import SATURATING, RunEvidence

Parameters = dict[str, float | int | str | bool]

TARGET_UPDATE_RATIO = 3e-3
"""Update over weight that another learning rate aims at; somewhat above `HEALTHY_UPDATE_RATIO`."""
LEARNING_RATE_FACTORS = (1e-4, 0.3)
"""Smallest and largest factor that lowers the learning rate: beyond them it would hardly train, or hardly change."""
RAISING_FACTORS = (10.0, 1e6)
"""Smallest and largest factor that raises it, where no update is in the practical band."""
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
LEAST_FORGET_BIAS = 1.0
"""Bias of a forget gate (Jozefowicz et al. 2015, section 3.2). A gate of sigmoid(1) passes 3e-4 over 25 time steps."""
DEFAULT_DEVIATION = 0.02
"""Deviation of embeddings of unknown width (Radford et al. 2018, section 4.1)."""
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
    """Change the learning rate so that updates are `TARGET_UPDATE_RATIO` of the weights, or by what it jumped up."""
    if not math.isnan(run.slow_update_ratio):
        smallest_factor, largest_factor = RAISING_FACTORS
        factor = TARGET_UPDATE_RATIO / run.slow_update_ratio if run.slow_update_ratio > 0 else largest_factor
        return {"factor": round_to(min(max(factor, smallest_factor), largest_factor))}
    ratios = (run.typical_update_ratio, run.history.first_update_ratio, 0.0)
    largest = max(ratio for ratio in ratios if not math.isnan(ratio))
    factor = TARGET_UPDATE_RATIO / largest if largest > 0 else DEFAULT_FACTOR
    jump = run.find("learning_rate_jump")
    if jump is not None:
        factor = min(factor, 1 / jump.evidence["rise"])
    smallest_factor, largest_factor = LEARNING_RATE_FACTORS
    return {"factor": round_to(min(max(factor, smallest_factor), largest_factor))}


def choose_largest_rate(run: RunEvidence) -> Parameters:
    """Return the learning rate from before the jump."""
    jump = run.find("learning_rate_jump")
    rate = jump.evidence["learning_rate_before"] if jump is not None else run.history.first_learning_rate
    return {"max_learning_rate": round_to(rate, 3)}


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


def choose_embedding_deviation(run: RunEvidence) -> Parameters:
    """Return the deviation with which the vectors of the embeddings have a norm of about 1."""
    widths = [run.embedding_width(i) for i in run.embeddings]
    return {"standard_deviation": round_to(median(widths) ** -0.5 if widths else DEFAULT_DEVIATION)}


def choose_epsilon(run: RunEvidence) -> Parameters:
    """Return an epsilon that fits the precision: a larger one for float16 parameters, else a smaller one."""
    if (run.training.parameter_dtype or "").lower() == "float16":
        return {"epsilon": HALF_EPSILON}
    known = [optimizer.epsilon for optimizer in run.training.optimizers if optimizer.epsilon is not None]
    return {"epsilon": DEFAULT_EPSILON if known and max(known) > DEFAULT_EPSILON else SMALL_EPSILON}


def choose_forget_bias(run: RunEvidence) -> Parameters:
    """Return a bias with which the state lasts for as many time steps as there are (Tallec and Ollivier 2018, 3)."""
    finding = run.find("forgetting_recurrence")
    time_steps = finding.evidence.get("time_steps", 0.0) if finding is not None else 0.0
    return {"bias": round_to(max(LEAST_FORGET_BIAS, math.log(max(time_steps - 1, 1.0))), 2)}


def choose_beta2(run: RunEvidence) -> Parameters:
    """Return a second beta that forgets sooner than the script's."""
    known = [optimizer.beta2 for optimizer in run.training.optimizers if optimizer.beta2 is not None]
    return {"beta2": next((beta for beta in SHORTER_BETAS if not known or beta < min(known)), SHORTER_BETAS[-1])}


def choose_tensor_clipping(run: RunEvidence) -> Parameters:
    """Return AdaGC's bound of a tensor's norm, and the bound of all of them for its first steps."""
    return {"relative_norm": 1.05, "max_norm": choose_max_norm(run)["max_norm"]}


def _has_symmetric_activations(run: RunEvidence) -> bool:
    return bool(run.activations) and all(
        activation in SATURATING or activation == "linear" for activation in run.activations
    )
