"""Every remedy the service knows, as data: what it is for, how its parameters follow from a case, code, and source.

One idea: a remedy is a row. Its weight against a cause is a prior belief that it helps there, from the published repair
orders and from trying the remedies on failing scripts; advice multiplies it with the cause's score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gradmedic_service.diagnosis.case import RECTIFIERS, SATURATING, Case

Parameters = dict[str, float | int | str | bool]

PASCANU = "Pascanu et al. 2013, On the difficulty of training recurrent neural networks, section 3.2"
GLOROT = (
    "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, section 4.2"
)
HE = "He et al. 2015, Delving deep into rectifiers, section 2.2"
SAXE = "Saxe et al. 2013, Exact solutions to the nonlinear dynamics of learning in deep linear networks"
TARGET_RATIO = 3e-3
"""Update over weight that a lowered learning rate aims at: healthy training has about 1e-3."""


@dataclass(frozen=True, slots=True)
class RemedySpec:
    """One remedy: `weights` by cause, `parameters` from a case, `snippet` formatted with them."""

    id: str
    weights: Mapping[str, float]
    reason: str
    snippet: str
    sources: tuple[str, ...]
    parameters: Callable[[Case], Parameters] = lambda _: {}
    applies: Callable[[Case], bool] = lambda _: True
    """Whether it makes sense for this architecture at all."""


def round_to(value: float, digits: int = 1) -> float:
    """Round to significant digits; a person will read and type it.

    >>> round_to(0.0347)
    0.03
    """
    return float(f"{value:.{digits - 1}e}")


def _clip_norm(case: Case) -> Parameters:
    typical = case.history.typical_norm()
    is_usable = math.isfinite(typical) and 1e-3 <= typical <= 100.0
    return {"max_norm": round_to(typical) if is_usable else 1.0}


def _clip_layer_norm(case: Case) -> Parameters:
    return {"max_norm": round_to(float(_clip_norm(case)["max_norm"]) / math.sqrt(max(1, len(case.layers))))}


def _clip_value(case: Case) -> Parameters:
    norm = float(_clip_norm(case)["max_norm"])
    return {"clip_value": round_to(max(10 * norm / math.sqrt(case.numel), 1e-4))}


def _learning_rate_factor(case: Case) -> Parameters:
    ratio = case.typical_ratio
    first = case.history.first_ratio
    worst = max(r for r in (ratio, first, 0.0) if not math.isnan(r))
    factor = TARGET_RATIO / worst if worst > 0 else 0.1
    return {"factor": round_to(min(max(factor, 1e-4), 0.3))}


def _initialization(case: Case) -> Parameters:
    if case.has_recurrence:
        return {"scheme": "orthogonal"}
    kinds = case.activations
    if "selu" in kinds:
        return {"scheme": "lecun_normal"}
    if kinds and all(a in SATURATING or a == "linear" for a in kinds):
        return {"scheme": "xavier_uniform"}
    return {"scheme": "kaiming_normal"}


def _has_saturation(case: Case) -> bool:
    return not case.activations or any(a in SATURATING for a in case.activations) or _has_unbounded(case)


def _has_unbounded(case: Case) -> bool:
    return bool(case.activations) and not all(a in SATURATING + RECTIFIERS for a in case.activations)


def _is_exploding(case: Case) -> bool:
    return case.verdict == "exploding"


def _is_feedforward(case: Case) -> bool:
    return not case.has_recurrence and len(case.path) >= 2


CATALOGUE: tuple[RemedySpec, ...] = (
    RemedySpec(
        id="clip_grad_norm",
        weights={
            "missing_clipping": 0.95,
            "long_recurrence": 0.8,
            "learning_rate_too_high": 0.6,
            "unscaled_targets": 0.4,
        },
        reason="Rescales the gradient when its norm exceeds a bound from this run's calm steps; its direction stays.",
        snippet="torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={max_norm})  # before optimizer.step()",
        sources=(PASCANU,),
        parameters=_clip_norm,
        applies=_is_exploding,
    ),
    RemedySpec(
        id="clip_grad_value",
        weights={"missing_clipping": 0.6, "long_recurrence": 0.6, "unscaled_inputs": 0.3},
        reason="Bounds every element of the gradient; holds where a few elements dominate the norm.",
        snippet="torch.nn.utils.clip_grad_value_(model.parameters(), {clip_value})  # before optimizer.step()",
        sources=("Mikolov 2012, Statistical language models based on neural networks, section 3.2.2",),
        parameters=_clip_value,
        applies=_is_exploding,
    ),
    RemedySpec(
        id="clip_grad_norm_per_layer",
        weights={"missing_clipping": 0.55, "long_recurrence": 0.45, "learning_rate_too_high": 0.35},
        reason="Clips each tensor by its own norm, so that one exploding layer does not silence the others.",
        snippet="for p in model.parameters():\n    torch.nn.utils.clip_grad_norm_([p], max_norm={max_norm})",
        sources=(PASCANU,),
        parameters=_clip_layer_norm,
        applies=_is_exploding,
    ),
    RemedySpec(
        id="scale_learning_rate",
        weights={
            "learning_rate_too_high": 1.0,
            "unscaled_inputs": 0.55,
            "unscaled_targets": 0.6,
            "missing_clipping": 0.4,
        },
        reason="Brings the updates from their measured share of the weights to about the healthy 0.001.",
        snippet="for group in optimizer.param_groups:\n    group['lr'] *= {factor}",
        sources=("Bengio 2012, Practical recommendations for gradient-based training, section 3.1",),
        parameters=_learning_rate_factor,
    ),
    RemedySpec(
        id="warm_up",
        weights={"learning_rate_too_high": 0.55, "missing_normalization": 0.3},
        reason="Starts with small steps until the gradient statistics have settled.",
        snippet="scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters={steps})",
        sources=("Xiong et al. 2020, On layer normalization in the transformer architecture",),
        parameters=lambda _: {"steps": 100},
    ),
    RemedySpec(
        id="reinitialize",
        weights={
            "poor_initialization": 1.0,
            "dead_units": 0.65,
            "long_recurrence": 0.6,
            "saturating_activation": 0.5,
            "missing_normalization": 0.3,
        },
        reason="Starts from weights that keep the size of signals and gradients the same through every layer.",
        snippet="for p in model.parameters():\n    if p.ndim >= 2:\n        torch.nn.init.{scheme}_(p)",
        sources=(GLOROT, HE, SAXE),
        parameters=_initialization,
    ),
    RemedySpec(
        id="replace_activation",
        weights={"saturating_activation": 0.95, "unbounded_activation": 1.0, "dead_units": 0.5},
        reason="An activation with slope near 1 for positive inputs does not shrink the gradient layer by layer.",
        snippet="# replace the hidden activations\nactivation = torch.nn.{activation}()",
        sources=("Clevert et al. 2016, Fast and accurate deep network learning by exponential linear units", HE),
        parameters=lambda case: {"activation": "LeakyReLU" if case.finding("zero_gradient") else "ELU"},
        applies=lambda case: _has_saturation(case) or case.finding("zero_gradient") is not None,
    ),
    RemedySpec(
        id="insert_normalization",
        weights={
            "missing_normalization": 0.95,
            "saturating_activation": 0.75,
            "dead_units": 0.7,
            "poor_initialization": 0.6,
            "unscaled_inputs": 0.4,
        },
        reason="Rescales every layer's input to unit variance, whatever the weights do.",
        snippet="torch.nn.Sequential(torch.nn.Linear(n_in, n_out), torch.nn.{kind}(n_out), activation)",
        sources=("Ioffe and Szegedy 2015, Batch normalization", "Ba et al. 2016, Layer normalization"),
        parameters=lambda case: {"kind": "LayerNorm" if case.has_recurrence else "BatchNorm1d"},
        applies=lambda case: not case.is_normalized,
    ),
    RemedySpec(
        id="add_residual",
        weights={"missing_normalization": 0.6, "saturating_activation": 0.5, "dead_units": 0.4},
        reason="An identity path carries the gradient past every block unchanged.",
        snippet="x = x + block(x)  # around blocks that keep the shape",
        sources=("He et al. 2016, Deep residual learning for image recognition",),
        applies=lambda case: _is_feedforward(case) and len(case.path) >= 4,
    ),
    RemedySpec(
        id="replace_recurrent_cell",
        weights={"long_recurrence": 0.85},
        reason="A gated cell carries its state additively, so that gradients survive many time steps.",
        snippet="rnn = torch.nn.{cell}(input_size, hidden_size, batch_first=True)",
        sources=("Hochreiter and Schmidhuber 1997, Long short-term memory", "Cho et al. 2014, section 2.3"),
        parameters=lambda _: {"cell": "GRU"},
        applies=lambda case: bool(case.recurrent),
    ),
    RemedySpec(
        id="standardize_inputs",
        weights={"unscaled_inputs": 1.0},
        reason="Inputs with zero mean and unit variance keep the first layer's gradients at the scale of the others.",
        snippet="x = (x - x_train.mean(0)) / x_train.std(0)",
        sources=("LeCun et al. 1998, Efficient backprop, section 4.3",),
    ),
    RemedySpec(
        id="standardize_targets",
        weights={"unscaled_targets": 1.0, "unscaled_inputs": 0.4},
        reason="The gradient of a squared error is proportional to the targets' scale.",
        snippet="y = (y - y_train.mean()) / y_train.std()",
        sources=("LeCun et al. 1998, Efficient backprop, section 4.3",),
    ),
    RemedySpec(
        id="switch_optimizer",
        weights={
            "learning_rate_too_high": 0.35,
            "unscaled_targets": 0.45,
            "unscaled_inputs": 0.4,
            "poor_initialization": 0.3,
            "saturating_activation": 0.3,
        },
        reason="Adaptive optimizers divide by the gradient's own scale: none is too large or too small for them.",
        snippet="optimizer = torch.optim.{optimizer}(model.parameters(), lr={learning_rate})  # or RMSprop, Adagrad",
        sources=("Kingma and Ba 2015, Adam", "Duchi et al. 2011, AdaGrad", "Tieleman and Hinton 2012, RMSProp"),
        parameters=lambda _: {"optimizer": "Adam", "learning_rate": 1e-3},
        applies=lambda case: not any(o.name.lower().startswith("adam") for o in case.training.optimizers),
    ),
    RemedySpec(
        id="weight_normalization",
        weights={"missing_normalization": 0.35, "poor_initialization": 0.3},
        reason="Separates each weight vector's length from its direction.",
        snippet="layer = torch.nn.utils.parametrizations.weight_norm(layer)",
        sources=("Salimans and Kingma 2016, Weight normalization",),
    ),
    RemedySpec(
        id="weight_decay",
        weights={"long_recurrence": 0.2, "missing_clipping": 0.15},
        reason="An L2 penalty keeps the weights, and with them the factor per layer, from growing.",
        snippet="optimizer = torch.optim.AdamW(model.parameters(), weight_decay={weight_decay})",
        sources=(PASCANU,),
        parameters=lambda _: {"weight_decay": 1e-2},
        applies=_is_exploding,
    ),
    RemedySpec(
        id="l1_penalty",
        weights={"long_recurrence": 0.15, "missing_clipping": 0.1},
        reason="An L1 penalty keeps the weights from growing.",
        snippet="loss = loss + {strength} * sum(p.abs().sum() for p in model.parameters())",
        sources=(PASCANU,),
        parameters=lambda _: {"strength": 1e-5},
        applies=_is_exploding,
    ),
    RemedySpec(
        id="reduce_weight_decay",
        weights={"excessive_weight_decay": 1.0},
        reason="The penalty pulls the weights to zero faster than the loss pulls them out.",
        snippet="for group in optimizer.param_groups:\n    group['weight_decay'] *= {factor}",
        sources=("Krogh and Hertz 1992, A simple weight decay can improve generalization",),
        parameters=lambda _: {"factor": 0.01},
    ),
    RemedySpec(
        id="relax_clipping",
        weights={"excessive_clipping": 1.0},
        reason="A bound near this run's typical gradient norm stops spikes and lets everything else through.",
        snippet="torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={max_norm})",
        sources=(PASCANU,),
        parameters=_clip_norm,
    ),
    RemedySpec(
        id="scale_loss",
        weights={"precision_overflow": 0.95},
        reason="Dynamic loss scaling finds the largest scale that does not overflow, and skips the steps that do.",
        snippet=(
            "scaler = torch.amp.GradScaler()\nscaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()"
        ),
        sources=("Micikevicius et al. 2018, Mixed precision training, section 3.2",),
    ),
    RemedySpec(
        id="use_bfloat16",
        weights={"precision_overflow": 0.6},
        reason="bfloat16 has the exponent range of float32 and needs no loss scale.",
        snippet="with torch.autocast(device_type, dtype=torch.bfloat16): ...",
        sources=("Kalamkar et al. 2019, A study of bfloat16 for deep learning training",),
    ),
    RemedySpec(
        id="stable_loss",
        weights={"numerical_instability": 0.95, "unbounded_activation": 0.3},
        reason="Losses on logits avoid log(0) and 0/0; a small epsilon does so for divisions and roots.",
        snippet="loss = torch.nn.functional.cross_entropy(logits, target)  # not log(softmax(x))",
        sources=("Goodfellow et al. 2016, Deep learning, section 4.1",),
    ),
    RemedySpec(
        id="skip_nonfinite_steps",
        weights={"numerical_instability": 0.45, "precision_overflow": 0.3},
        reason="One bad batch then costs one step and not the run.",
        snippet=(
            "if all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None):\n"
            "    optimizer.step()"
        ),
        sources=("Micikevicius et al. 2018, Mixed precision training, section 3.2",),
    ),
)
"""Every remedy, in no order that matters."""
