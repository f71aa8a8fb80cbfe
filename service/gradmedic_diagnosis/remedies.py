"""Every remedy the service knows, as data: what it is for, how its parameters follow from a case, cost and source.

One idea: a remedy is a row. Its weight against a cause is a prior belief that it helps there, from the published repair
orders; trials correct it (`evidence`), and advice multiplies it with the cause's score. A remedy with several good
parameters has a row for each. The code to paste is in `snippets`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gradmedic_diagnosis.run_evidence import RECTIFIERS, SATURATING, Case

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
    """One remedy: `weights` by cause, `parameters` from a case."""

    id: str
    weights: Mapping[str, float]
    reason: str
    cost: str
    """What it takes away: time, signal, exactness, or work."""
    sources: tuple[str, ...]
    parameters: Callable[[Case], Parameters] = lambda _: {}
    applies: Callable[[Case], bool] = lambda _: True
    """Whether it makes sense for this architecture at all."""
    variant: str = ""
    """What tells the rows of one remedy apart."""

    @property
    def kind(self) -> str:
        """Name of the row."""
        return f"{self.id} {self.variant}".rstrip()


def round_to(value: float, digits: int = 1) -> float:
    """Round to significant digits; a person will read and type it.

    >>> round_to(0.0347)
    0.03
    """
    return float(f"{value:.{digits - 1}e}")


def _clip_norm(case: Case) -> Parameters:
    typical = case.history.typical_norm()
    if not math.isfinite(typical) or not 1e-3 <= typical <= 100.0:
        return {"max_norm": 1.0}
    # 0.5 to 10 times the typical norm; the low end where one factor is multiplied up over many time steps
    return {"max_norm": round_to(typical * (0.5 if case.has_recurrence else 1.0))}


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


def _loss_factor(case: Case) -> Parameters:
    scale = abs(case.history.first_loss)
    return {"factor": round_to(1 / scale) if math.isfinite(scale) and scale > 1 else 0.1}


def _initialization(case: Case) -> Parameters:
    if case.has_recurrence:
        return {"scheme": "orthogonal"}
    if "selu" in case.activations:
        return {"scheme": "lecun_normal"}
    return {"scheme": "xavier_uniform" if _prefers_xavier(case) else "kaiming_normal"}


def _prefers_xavier(case: Case) -> bool:
    return bool(case.activations) and all(a in SATURATING or a == "linear" for a in case.activations)


def _has_saturation(case: Case) -> bool:
    if case.is_all_recurrent:
        return False  # a cell computes its own
    return not case.activations or any(a in SATURATING for a in case.activations) or _has_unbounded(case)


def _has_unbounded(case: Case) -> bool:
    return bool(case.activations) and not all(a in SATURATING + RECTIFIERS for a in case.activations)


def _is_plain(case: Case) -> bool:
    return not case.is_normalized and not case.is_all_recurrent


def _is_exploding(case: Case) -> bool:
    return case.verdict == "exploding"


def _uses_adam(case: Case) -> bool:
    return any(o.name.lower().startswith("adam") for o in case.training.optimizers)


def _has_dead_units(case: Case) -> bool:
    return case.finding("zero_gradient") is not None and not case.is_all_recurrent


def _is_feedforward(case: Case) -> bool:
    return not case.has_recurrence and len(case.path) >= 2


CATALOGUE: tuple[RemedySpec, ...] = (
    RemedySpec(
        id="clip_grad_norm",
        weights={
            "missing_clipping": 0.95,
            "long_recurrence": 0.8,
            "learning_rate_too_high": 0.4,
            "unscaled_targets": 0.4,
        },
        reason="Rescales the gradient when its norm exceeds a bound from this run's calm steps; its direction stays.",
        cost="Almost nothing; too low a bound starves the weights.",
        sources=(PASCANU,),
        parameters=_clip_norm,
        applies=_is_exploding,
    ),
    RemedySpec(
        id="clip_grad_value",
        weights={"missing_clipping": 0.6, "long_recurrence": 0.6, "unscaled_inputs": 0.3},
        reason="Bounds every element of the gradient; holds where a few elements dominate the norm.",
        cost="Changes the gradient's direction where it acts.",
        sources=("Mikolov 2012, Statistical language models based on neural networks, section 3.2.2",),
        parameters=_clip_value,
        applies=_is_exploding,
    ),
    RemedySpec(
        id="clip_grad_norm_per_layer",
        weights={"missing_clipping": 0.55, "long_recurrence": 0.45, "learning_rate_too_high": 0.35},
        reason="Clips each tensor by its own norm, so that one exploding layer does not silence the others.",
        cost="Changes the balance between layers where it acts.",
        sources=(PASCANU,),
        parameters=_clip_layer_norm,
        applies=_is_exploding,
    ),
    RemedySpec(
        id="adaptive_clip",
        weights={"missing_clipping": 0.5, "learning_rate_too_high": 0.45, "missing_normalization": 0.3},
        reason="Bounds each row's gradient by a share of that row's own weights, whatever their scale.",
        cost="A norm per row and step; a second constant to choose.",
        sources=("Brock et al. 2021, High-performance large-scale image recognition without normalization, section 4",),
        parameters=lambda _: {"clipping": 0.01},
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
        cost="Slower training in proportion, where the rate was not the problem.",
        sources=("Bengio 2012, Practical recommendations for gradient-based training, section 3.1",),
        parameters=_learning_rate_factor,
    ),
    RemedySpec(
        id="warm_up",
        weights={"learning_rate_too_high": 0.55, "missing_normalization": 0.3},
        reason="Starts with small steps until the gradient statistics have settled.",
        cost="The first steps learn little.",
        sources=("Xiong et al. 2020, On layer normalization in the transformer architecture",),
        parameters=lambda _: {"steps": 100},
    ),
    RemedySpec(
        id="rescale_loss_gradient",
        weights={"unscaled_targets": 0.35, "learning_rate_too_high": 0.25},
        reason="Divides the loss, and with it every gradient, by the loss's own starting scale.",
        cost="None under SGD but a slower start; no effect under Adam.",
        sources=("LeCun et al. 1998, Efficient backprop, section 4.3",),
        parameters=_loss_factor,
        applies=lambda case: _is_exploding(case) and not _uses_adam(case),
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
        cost="The run starts over; pretrained weights are lost.",
        sources=(GLOROT, HE, SAXE),
        variant="for its activations",
        parameters=_initialization,
    ),
    RemedySpec(
        id="reinitialize",
        weights={"poor_initialization": 0.8, "dead_units": 0.4, "missing_normalization": 0.2},
        reason="The other variance-preserving initialization: Glorot for symmetric activations, He for rectifiers.",
        cost="The run starts over; pretrained weights are lost.",
        sources=(GLOROT, HE),
        variant="for others",
        parameters=lambda case: {"scheme": "kaiming_normal" if _prefers_xavier(case) else "xavier_uniform"},
    ),
    RemedySpec(
        id="replace_activation",
        weights={"saturating_activation": 0.95, "unbounded_activation": 1.0, "dead_units": 0.3},
        reason="ELU has slope 1 for positive inputs and a mean near zero: it does not shrink gradients layer by layer.",
        cost="The run starts over; an exponential per negative unit.",
        sources=("Clevert et al. 2016, Fast and accurate deep network learning by exponential linear units",),
        variant="ELU",
        parameters=lambda _: {"activation": "ELU"},
        applies=_has_saturation,
    ),
    RemedySpec(
        id="replace_activation",
        weights={"dead_units": 0.6},
        reason="LeakyReLU passes a little gradient through silent units, so that they can come back.",
        cost="The run starts over.",
        sources=("Maas et al. 2013, Rectifier nonlinearities improve neural network acoustic models",),
        variant="LeakyReLU",
        parameters=lambda _: {"activation": "LeakyReLU"},
        applies=_has_dead_units,
    ),
    RemedySpec(
        id="replace_activation",
        weights={"saturating_activation": 0.8, "missing_normalization": 0.45},
        reason="SELU keeps activations at zero mean and unit variance by itself, with LeCun initialization.",
        cost="The run starts over; needs LeCun initialization and no ordinary dropout.",
        sources=("Klambauer et al. 2017, Self-normalizing neural networks",),
        variant="SELU",
        parameters=lambda _: {"activation": "SELU"},
        applies=lambda case: _has_saturation(case) and _is_feedforward(case),
    ),
    RemedySpec(
        id="replace_activation",
        weights={"unbounded_activation": 0.95},
        reason="The hyperbolic tangent is bounded: no signal can grow from layer to layer.",
        cost="The run starts over; a deep stack of it can saturate.",
        sources=(GLOROT,),
        variant="Tanh",
        parameters=lambda _: {"activation": "Tanh"},
        applies=_has_unbounded,
    ),
    RemedySpec(
        id="replace_activation",
        weights={"dead_units": 0.45},
        reason="GELU has no flat side: every unit keeps a gradient, and it is smooth.",
        cost="The run starts over; an error function per unit.",
        sources=("Hendrycks and Gimpel 2016, Gaussian error linear units",),
        variant="GELU",
        parameters=lambda _: {"activation": "GELU"},
        applies=_has_dead_units,
    ),
    RemedySpec(
        id="replace_activation",
        weights={"saturating_activation": 0.7, "unbounded_activation": 0.9},
        reason="ReLU has slope 1 wherever it is active; it needs He initialization.",
        cost="The run starts over; units can die at a high learning rate.",
        sources=(HE,),
        variant="ReLU",
        parameters=lambda _: {"activation": "ReLU"},
        applies=_has_saturation,
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
        reason="Rescales every layer's input to unit variance over the batch, whatever the weights do.",
        cost="Couples the examples of a batch; poor with tiny batches.",
        sources=("Ioffe and Szegedy 2015, Batch normalization",),
        variant="BatchNorm",
        parameters=lambda _: {"kind": "BatchNorm"},
        applies=lambda case: _is_plain(case) and not case.has_recurrence,
    ),
    RemedySpec(
        id="insert_normalization",
        weights={
            "missing_normalization": 0.85,
            "saturating_activation": 0.6,
            "dead_units": 0.5,
            "poor_initialization": 0.5,
            "long_recurrence": 0.3,
        },
        reason="Rescales each example's features to unit variance, at any batch size and over time.",
        cost="A few percent of a step.",
        sources=("Ba et al. 2016, Layer normalization",),
        variant="LayerNorm",
        parameters=lambda _: {"kind": "LayerNorm"},
        applies=_is_plain,
    ),
    RemedySpec(
        id="insert_normalization",
        weights={"missing_normalization": 0.5, "dead_units": 0.3, "poor_initialization": 0.4, "long_recurrence": 0.2},
        reason="Rescales each example's features to a root mean square of 1, without centring them.",
        cost="Less than layer normalization.",
        sources=("Zhang and Sennrich 2019, Root mean square layer normalization",),
        variant="RMSNorm",
        parameters=lambda _: {"kind": "RMSNorm"},
        applies=_is_plain,
    ),
    RemedySpec(
        id="add_residual",
        weights={"missing_normalization": 0.6, "saturating_activation": 0.5, "dead_units": 0.4},
        reason="An identity path carries the gradient past every block unchanged.",
        cost="The run starts over; blocks must keep their shape.",
        sources=("He et al. 2016, Deep residual learning for image recognition",),
        applies=lambda case: _is_feedforward(case) and len(case.path) >= 4,
    ),
    RemedySpec(
        id="replace_recurrent_cell",
        weights={"long_recurrence": 0.85},
        reason="A gated cell carries its state additively, so that gradients survive many time steps.",
        cost="Three times the recurrent weights and work.",
        sources=("Cho et al. 2014, Learning phrase representations using RNN encoder-decoder, section 2.3",),
        variant="GRU",
        parameters=lambda _: {"cell": "GRU"},
        applies=lambda case: bool(case.recurrent),
    ),
    RemedySpec(
        id="replace_recurrent_cell",
        weights={"long_recurrence": 0.8},
        reason="The cell state of an LSTM is an uninterrupted path for the gradient through time.",
        cost="Four times the recurrent weights and work.",
        sources=("Hochreiter and Schmidhuber 1997, Long short-term memory",),
        variant="LSTM",
        parameters=lambda _: {"cell": "LSTM"},
        applies=lambda case: bool(case.recurrent),
    ),
    RemedySpec(
        id="truncate_backpropagation",
        weights={"long_recurrence": 0.3},
        reason="Cuts the product of Jacobians after a number of time steps.",
        cost="Dependencies longer than the cut are not learned.",
        sources=(
            "Williams and Peng 1990, An efficient gradient-based algorithm for on-line training of recurrent networks",
        ),
        parameters=lambda _: {"time_steps": 35},
        applies=lambda case: case.has_recurrence and _is_exploding(case),
    ),
    RemedySpec(
        id="standardize_inputs",
        weights={"unscaled_inputs": 1.0},
        reason="Inputs with zero mean and unit variance keep the first layer's gradients at the scale of the others.",
        cost="Statistics of the training set to keep with the model.",
        sources=("LeCun et al. 1998, Efficient backprop, section 4.3",),
    ),
    RemedySpec(
        id="standardize_targets",
        weights={"unscaled_targets": 1.0, "unscaled_inputs": 0.4},
        reason="The gradient of a squared error is proportional to the targets' scale.",
        cost="Predictions must be scaled back.",
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
        cost="Two more tensors per parameter; another learning rate.",
        sources=("Kingma and Ba 2015, Adam",),
        variant="Adam",
        parameters=lambda _: {"optimizer": "Adam", "learning_rate": 1e-3},
        applies=lambda case: not _uses_adam(case),
    ),
    RemedySpec(
        id="switch_optimizer",
        weights={"unscaled_targets": 0.3, "unscaled_inputs": 0.25, "long_recurrence": 0.2},
        reason="RMSprop divides by a running root mean square of the gradient; long a standard for recurrent networks.",
        cost="One more tensor per parameter; another learning rate.",
        sources=("Tieleman and Hinton 2012, Lecture 6.5 - RMSProp",),
        variant="RMSprop",
        parameters=lambda _: {"optimizer": "RMSprop", "learning_rate": 1e-3},
        applies=lambda case: not _uses_adam(case),
    ),
    RemedySpec(
        id="switch_optimizer",
        weights={"unscaled_targets": 0.2, "unscaled_inputs": 0.25},
        reason="AdaGrad lowers each parameter's rate as its gradients add up; suits sparse features.",
        cost="One more tensor per parameter; the rate only ever falls.",
        sources=("Duchi et al. 2011, Adaptive subgradient methods",),
        variant="Adagrad",
        parameters=lambda _: {"optimizer": "Adagrad", "learning_rate": 1e-2},
        applies=lambda case: not _uses_adam(case),
    ),
    RemedySpec(
        id="weight_normalization",
        weights={"missing_normalization": 0.35, "poor_initialization": 0.3},
        reason="Separates each weight vector's length from its direction.",
        cost="A norm per weight vector and step.",
        sources=("Salimans and Kingma 2016, Weight normalization",),
    ),
    RemedySpec(
        id="weight_decay",
        weights={"long_recurrence": 0.2, "missing_clipping": 0.15},
        reason="An L2 penalty keeps the weights, and with them the factor per layer, from growing.",
        cost="A bias of the weights towards zero.",
        sources=(PASCANU,),
        parameters=lambda _: {"weight_decay": 1e-2},
        applies=_is_exploding,
    ),
    RemedySpec(
        id="l1_penalty",
        weights={"long_recurrence": 0.15, "missing_clipping": 0.1},
        reason="An L1 penalty keeps the weights from growing and sets many to zero.",
        cost="A bias of the weights towards zero.",
        sources=(PASCANU,),
        parameters=lambda _: {"strength": 1e-5},
        applies=_is_exploding,
    ),
    RemedySpec(
        id="reduce_weight_decay",
        weights={"excessive_weight_decay": 1.0},
        reason="The penalty pulls the weights to zero faster than the loss pulls them out.",
        cost="Less regularization.",
        sources=("Krogh and Hertz 1992, A simple weight decay can improve generalization",),
        parameters=lambda _: {"factor": 0.01},
    ),
    RemedySpec(
        id="relax_clipping",
        weights={"excessive_clipping": 1.0},
        reason="A bound near this run's typical gradient norm stops spikes and lets everything else through.",
        cost="None.",
        sources=(PASCANU,),
        parameters=_clip_norm,
    ),
    RemedySpec(
        id="scale_loss",
        weights={"precision_overflow": 0.95, "precision_underflow": 0.95},
        reason="Dynamic loss scaling finds the largest scale that does not overflow, and skips the steps that do.",
        cost="A few skipped steps.",
        sources=("Micikevicius et al. 2018, Mixed precision training, section 3.2",),
    ),
    RemedySpec(
        id="use_bfloat16",
        weights={"precision_overflow": 0.6, "precision_underflow": 0.8},
        reason="bfloat16 has the exponent range of float32 and needs no loss scale.",
        cost="Eight bits of mantissa in place of eleven.",
        sources=("Kalamkar et al. 2019, A study of bfloat16 for deep learning training",),
    ),
    RemedySpec(
        id="stable_loss",
        weights={"numerical_instability": 0.95, "unbounded_activation": 0.3},
        reason="Losses on logits avoid log(0) and 0/0; a small epsilon does so for divisions and roots.",
        cost="None.",
        sources=("Goodfellow et al. 2016, Deep learning, section 4.1",),
    ),
    RemedySpec(
        id="skip_nonfinite_steps",
        weights={"numerical_instability": 0.45, "precision_overflow": 0.3},
        reason="One bad batch then costs one step and not the run.",
        cost="A look at every gradient; hides the fault.",
        sources=("Micikevicius et al. 2018, Mixed precision training, section 3.2",),
    ),
)
"""Every remedy, in the order in which those that promise the same are tried."""
