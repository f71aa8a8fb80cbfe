"""The catalogue of advice: what each remedy is good for, its reason, its cost and its sources.

The ids, the parameters with their ranges, what each remedy changes and the code to paste are in
`gradmedic.protocol.remedies`. This table adds what advice needs. A remedy with several good values of its parameters
has one row for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gradmedic.protocol.remedies import Remedy
from gradmedic_diagnosis import remedy_fit
from gradmedic_diagnosis.remedy_fit import Parameters
from gradmedic_diagnosis.run_evidence import RunEvidence

PASCANU = "Pascanu et al. 2013, On the difficulty of training recurrent neural networks, section 3.2"
GLOROT = (
    "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, section 4.2"
)
HE = "He et al. 2015, Delving deep into rectifiers, section 2.2"
SAXE = "Saxe et al. 2013, Exact solutions to the nonlinear dynamics of learning in deep linear networks"
MIN_RESIDUAL_DEPTH = 4
"""Weight matrices from which residual connections are worth their change of the architecture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemedyRow:
    """One row of the catalogue: a remedy, with one choice of its parameters."""

    id: str
    variant: str = ""
    """Distinguishes the rows of one remedy."""
    chances: Mapping[str, float]
    """Chance, by cause, that the remedy repairs what the cause broke, judged from publications.

    Our own trials correct it (`repair_counts`).
    """
    reason: str
    cost: str
    """Cost of the remedy: time, signal, exactness, or work."""
    sources: tuple[str, ...]
    fixed_parameters: Parameters = field(default_factory=dict)
    """Parameters that are the same for every run."""
    choose_parameters: Callable[[RunEvidence], Parameters] | None = None
    """Returns the parameters that depend on the run."""
    is_applicable: Callable[[RunEvidence], bool] = lambda _: True
    """Returns whether the remedy makes sense for a run at all."""
    estimate_fit: Callable[[RunEvidence], float] = lambda _: 1.0
    """Returns the share of its chances that the remedy has in a run, from 0 to 1."""

    @property
    def name(self) -> str:
        """Name of the row: the id and the variant."""
        return f"{self.id} {self.variant}".rstrip()

    def create_remedy(self, run: RunEvidence) -> Remedy:
        """Return the remedy with its parameters for a run."""
        chosen = self.choose_parameters(run) if self.choose_parameters is not None else {}
        return Remedy(id=self.id, parameters={**self.fixed_parameters, **chosen})


CATALOGUE: tuple[RemedyRow, ...] = (
    RemedyRow(
        id="clip_grad_norm",
        chances={
            "missing_clipping": 0.95,
            "long_recurrence": 0.8,
            "learning_rate_too_high": 0.4,
            "unscaled_targets": 0.4,
        },
        reason="Rescales the gradient when its norm exceeds a bound from this run's calm steps; its direction stays.",
        cost="Almost nothing; too low a bound starves the weights.",
        sources=(PASCANU,),
        choose_parameters=remedy_fit.choose_max_norm,
        is_applicable=remedy_fit.lacks_clipping,
        estimate_fit=remedy_fit.estimate_fit_of_clipping,
    ),
    RemedyRow(
        id="clip_grad_value",
        chances={"missing_clipping": 0.6, "long_recurrence": 0.6, "unscaled_inputs": 0.3},
        reason="Bounds every element of the gradient; it also helps where a few elements dominate the norm.",
        cost="Changes the gradient's direction where it acts.",
        sources=("Mikolov 2012, Statistical language models based on neural networks, section 3.2.2",),
        choose_parameters=remedy_fit.choose_clip_value,
        is_applicable=remedy_fit.lacks_clipping,
        estimate_fit=remedy_fit.estimate_fit_of_clipping,
    ),
    RemedyRow(
        id="clip_grad_norm_per_layer",
        chances={"missing_clipping": 0.55, "long_recurrence": 0.45, "learning_rate_too_high": 0.35},
        reason="Clips each tensor by its own norm, so that one exploding layer does not shrink the other gradients.",
        cost="Changes the balance between layers where it acts.",
        sources=(PASCANU,),
        choose_parameters=remedy_fit.choose_layer_max_norm,
        is_applicable=remedy_fit.lacks_clipping,
        estimate_fit=remedy_fit.estimate_fit_of_clipping,
    ),
    RemedyRow(
        id="adaptive_clip",
        chances={"missing_clipping": 0.5, "learning_rate_too_high": 0.45, "missing_normalization": 0.3},
        reason="Bounds each row's gradient by a share of that row's own weights, at any scale.",
        cost="A norm per row and step; a second constant to choose.",
        sources=("Brock et al. 2021, High-performance large-scale image recognition without normalization, section 4",),
        fixed_parameters={"clipping": 0.01},
        is_applicable=remedy_fit.is_exploding,
    ),
    RemedyRow(
        id="scale_learning_rate",
        chances={
            "learning_rate_too_high": 1.0,
            "unscaled_inputs": 0.55,
            "unscaled_targets": 0.6,
            "missing_clipping": 0.4,
        },
        reason="Brings the updates from their measured share of the weights to about the healthy 0.001.",
        cost="Slower training in proportion, where the rate was not the problem.",
        sources=("Bengio 2012, Practical recommendations for gradient-based training, section 3.1",),
        choose_parameters=remedy_fit.choose_learning_rate_factor,
    ),
    RemedyRow(
        id="warm_up",
        chances={"learning_rate_too_high": 0.55, "missing_normalization": 0.3},
        reason="Starts with small steps until the gradient statistics have settled.",
        cost="The first steps learn little.",
        sources=("Xiong et al. 2020, On layer normalization in the transformer architecture",),
        fixed_parameters={"steps": 100},
    ),
    RemedyRow(
        id="rescale_loss_gradient",
        chances={"unscaled_targets": 0.35, "learning_rate_too_high": 0.25},
        reason="Divides the loss, and with it every gradient, by the loss's own starting scale.",
        cost="None under SGD but a slower start; no effect under Adam.",
        sources=("LeCun et al. 1998, Efficient backprop, section 4.3",),
        choose_parameters=remedy_fit.choose_loss_factor,
        is_applicable=lambda run: remedy_fit.is_exploding(run) and remedy_fit.uses_no_adam(run),
    ),
    RemedyRow(
        id="reinitialize",
        chances={
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
        choose_parameters=remedy_fit.choose_initialization,
    ),
    RemedyRow(
        id="reinitialize",
        chances={"poor_initialization": 0.8, "dead_units": 0.4, "missing_normalization": 0.2},
        reason="The other variance-preserving initialization: Glorot for symmetric activations, He for rectifiers.",
        cost="The run starts over; pretrained weights are lost.",
        sources=(GLOROT, HE),
        variant="for others",
        choose_parameters=remedy_fit.choose_other_initialization,
    ),
    RemedyRow(
        id="replace_activation",
        chances={"saturating_activation": 0.95, "unbounded_activation": 1.0, "dead_units": 0.3},
        reason="ELU has slope 1 for positive inputs and a mean near zero: it does not shrink gradients layer by layer.",
        cost="The run starts over; an exponential per negative unit.",
        sources=("Clevert et al. 2016, Fast and accurate deep network learning by exponential linear units",),
        variant="ELU",
        fixed_parameters={"activation": "ELU"},
        is_applicable=remedy_fit.may_saturate,
    ),
    RemedyRow(
        id="replace_activation",
        chances={"dead_units": 0.6},
        reason="LeakyReLU passes a little gradient through inactive units, so that they can become active again.",
        cost="The run starts over.",
        sources=("Maas et al. 2013, Rectifier nonlinearities improve neural network acoustic models",),
        variant="LeakyReLU",
        fixed_parameters={"activation": "LeakyReLU"},
        is_applicable=remedy_fit.has_dead_units,
    ),
    RemedyRow(
        id="replace_activation",
        chances={"saturating_activation": 0.8, "missing_normalization": 0.45},
        reason="SELU keeps activations at zero mean and unit variance by itself, with LeCun initialization.",
        cost="The run starts over; needs LeCun initialization and no ordinary dropout.",
        sources=("Klambauer et al. 2017, Self-normalizing neural networks",),
        variant="SELU",
        fixed_parameters={"activation": "SELU"},
        is_applicable=lambda run: remedy_fit.may_saturate(run) and remedy_fit.is_feedforward(run),
    ),
    RemedyRow(
        id="replace_activation",
        chances={"unbounded_activation": 0.95},
        reason="The hyperbolic tangent is bounded: no signal can grow from layer to layer.",
        cost="The run starts over; a deep stack of it can saturate.",
        sources=(GLOROT,),
        variant="Tanh",
        fixed_parameters={"activation": "Tanh"},
        is_applicable=remedy_fit.has_unusual_activation,
    ),
    RemedyRow(
        id="replace_activation",
        chances={"dead_units": 0.45},
        reason="GELU is smooth and has no flat side: every unit keeps a gradient.",
        cost="The run starts over; an error function per unit.",
        sources=("Hendrycks and Gimpel 2016, Gaussian error linear units",),
        variant="GELU",
        fixed_parameters={"activation": "GELU"},
        is_applicable=remedy_fit.has_dead_units,
    ),
    RemedyRow(
        id="replace_activation",
        chances={"saturating_activation": 0.7, "unbounded_activation": 0.9},
        reason="ReLU has slope 1 wherever it is active; it needs He initialization.",
        cost="The run starts over; units can die at a high learning rate.",
        sources=(HE,),
        variant="ReLU",
        fixed_parameters={"activation": "ReLU"},
        is_applicable=remedy_fit.may_saturate,
    ),
    RemedyRow(
        id="insert_normalization",
        chances={
            "missing_normalization": 0.95,
            "saturating_activation": 0.75,
            "dead_units": 0.7,
            "poor_initialization": 0.6,
            "unscaled_inputs": 0.4,
        },
        reason="Rescales every layer's input to unit variance over the batch, whatever the weights are.",
        cost="Couples the examples of a batch; poor with tiny batches.",
        sources=("Ioffe and Szegedy 2015, Batch normalization",),
        variant="BatchNorm",
        fixed_parameters={"kind": "BatchNorm"},
        is_applicable=lambda run: remedy_fit.can_be_normalized(run) and not run.has_recurrence,
    ),
    RemedyRow(
        id="insert_normalization",
        chances={
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
        fixed_parameters={"kind": "LayerNorm"},
        is_applicable=remedy_fit.can_be_normalized,
    ),
    RemedyRow(
        id="insert_normalization",
        chances={"missing_normalization": 0.5, "dead_units": 0.3, "poor_initialization": 0.4, "long_recurrence": 0.2},
        reason="Rescales each example's features to a root mean square of 1, without centring them.",
        cost="Less than layer normalization.",
        sources=("Zhang and Sennrich 2019, Root mean square layer normalization",),
        variant="RMSNorm",
        fixed_parameters={"kind": "RMSNorm"},
        is_applicable=remedy_fit.can_be_normalized,
    ),
    RemedyRow(
        id="add_residual",
        chances={"missing_normalization": 0.6, "saturating_activation": 0.5, "dead_units": 0.4},
        reason="An identity path carries the gradient past every block unchanged.",
        cost="The run starts over; blocks must keep their shape.",
        sources=("He et al. 2016, Deep residual learning for image recognition",),
        is_applicable=lambda run: remedy_fit.is_feedforward(run) and len(run.path) >= MIN_RESIDUAL_DEPTH,
    ),
    RemedyRow(
        id="replace_recurrent_cell",
        chances={"long_recurrence": 0.85},
        reason="A gated cell carries its state additively, so that gradients survive many time steps.",
        cost="Three times the recurrent weights and work.",
        sources=("Cho et al. 2014, Learning phrase representations using RNN encoder-decoder, section 2.3",),
        variant="GRU",
        fixed_parameters={"cell": "GRU"},
        is_applicable=remedy_fit.has_plain_recurrence,
    ),
    RemedyRow(
        id="replace_recurrent_cell",
        chances={"long_recurrence": 0.8},
        reason="The cell state of an LSTM is an uninterrupted path for the gradient through time.",
        cost="Four times the recurrent weights and work.",
        sources=("Hochreiter and Schmidhuber 1997, Long short-term memory",),
        variant="LSTM",
        fixed_parameters={"cell": "LSTM"},
        is_applicable=remedy_fit.has_plain_recurrence,
    ),
    RemedyRow(
        id="truncate_backpropagation",
        chances={"long_recurrence": 0.3},
        reason="Cuts the product of Jacobians after a number of time steps.",
        cost="Dependencies longer than the cut are not learned.",
        sources=(
            "Williams and Peng 1990, An efficient gradient-based algorithm for on-line training of recurrent networks",
        ),
        fixed_parameters={"time_steps": 35},
        is_applicable=lambda run: run.has_recurrence and remedy_fit.is_exploding(run),
    ),
    RemedyRow(
        id="standardize_inputs",
        chances={"unscaled_inputs": 1.0},
        reason="Inputs with zero mean and unit variance keep the first layer's gradients at the scale of the others.",
        cost="Statistics of the training set to keep with the model.",
        sources=("LeCun et al. 1998, Efficient backprop, section 4.3",),
    ),
    RemedyRow(
        id="standardize_targets",
        chances={"unscaled_targets": 1.0, "unscaled_inputs": 0.4},
        reason="The gradient of a squared error is proportional to the targets' scale.",
        cost="Predictions must be scaled back.",
        sources=("LeCun et al. 1998, Efficient backprop, section 4.3",),
        is_applicable=remedy_fit.has_scaled_targets,
    ),
    RemedyRow(
        id="switch_optimizer",
        chances={
            "learning_rate_too_high": 0.35,
            "unscaled_targets": 0.45,
            "unscaled_inputs": 0.4,
            "poor_initialization": 0.3,
            "saturating_activation": 0.3,
        },
        reason="Adaptive optimizers divide by the gradient's own scale, so gradients of any scale can train.",
        cost="Two more tensors per parameter; another learning rate.",
        sources=("Kingma and Ba 2015, Adam",),
        variant="Adam",
        fixed_parameters={"optimizer": "Adam", "learning_rate": 1e-3},
        is_applicable=remedy_fit.uses_no_adam,
    ),
    RemedyRow(
        id="switch_optimizer",
        chances={"unscaled_targets": 0.3, "unscaled_inputs": 0.25, "long_recurrence": 0.2},
        reason="RMSprop divides by a running root mean square of the gradient; it is common in recurrent networks.",
        cost="One more tensor per parameter; another learning rate.",
        sources=("Tieleman and Hinton 2012, Lecture 6.5 - RMSProp",),
        variant="RMSprop",
        fixed_parameters={"optimizer": "RMSprop", "learning_rate": 1e-3},
        is_applicable=remedy_fit.uses_no_adam,
    ),
    RemedyRow(
        id="switch_optimizer",
        chances={"unscaled_targets": 0.2, "unscaled_inputs": 0.25},
        reason="AdaGrad lowers each parameter's rate as its gradients add up; it suits sparse features.",
        cost="One more tensor per parameter; the rate only ever falls.",
        sources=("Duchi et al. 2011, Adaptive subgradient methods",),
        variant="Adagrad",
        fixed_parameters={"optimizer": "Adagrad", "learning_rate": 1e-2},
        is_applicable=remedy_fit.uses_no_adam,
    ),
    RemedyRow(
        id="weight_normalization",
        chances={"missing_normalization": 0.35, "poor_initialization": 0.3},
        reason="Separates each weight vector's length from its direction.",
        cost="A norm per weight vector and step.",
        sources=("Salimans and Kingma 2016, Weight normalization",),
    ),
    RemedyRow(
        id="weight_decay",
        chances={"long_recurrence": 0.2, "missing_clipping": 0.15},
        reason="An L2 penalty keeps the weights, and with them the factor per layer, from growing.",
        cost="A bias of the weights towards zero.",
        sources=(PASCANU,),
        fixed_parameters={"weight_decay": 1e-2},
        is_applicable=remedy_fit.is_exploding,
    ),
    RemedyRow(
        id="l1_penalty",
        chances={"long_recurrence": 0.15, "missing_clipping": 0.1},
        reason="An L1 penalty keeps the weights from growing and sets many to zero.",
        cost="A bias of the weights towards zero.",
        sources=(PASCANU,),
        fixed_parameters={"strength": 1e-5},
        is_applicable=remedy_fit.is_exploding,
    ),
    RemedyRow(
        id="reduce_weight_decay",
        chances={"excessive_weight_decay": 1.0},
        reason="The penalty pulls the weights to zero faster than the loss moves them away.",
        cost="Less regularization.",
        sources=("Krogh and Hertz 1992, A simple weight decay can improve generalization",),
        fixed_parameters={"factor": 0.01},
    ),
    RemedyRow(
        id="relax_clipping",
        chances={"excessive_clipping": 1.0},
        reason="A bound near this run's typical gradient norm stops spikes and lets everything else through.",
        cost="None.",
        sources=(PASCANU,),
        choose_parameters=remedy_fit.choose_max_norm,
    ),
    RemedyRow(
        id="scale_loss",
        chances={"precision_overflow": 0.95, "precision_underflow": 0.95},
        reason="Dynamic loss scaling finds the largest scale that does not overflow, and skips the steps that do.",
        cost="A few skipped steps.",
        sources=("Micikevicius et al. 2018, Mixed precision training, section 3.2",),
    ),
    RemedyRow(
        id="use_bfloat16",
        chances={"precision_overflow": 0.6, "precision_underflow": 0.8},
        reason="bfloat16 has the exponent range of float32 and needs no loss scale.",
        cost="Eight bits of mantissa in place of eleven.",
        sources=("Kalamkar et al. 2019, A study of bfloat16 for deep learning training",),
    ),
    RemedyRow(
        id="stable_loss",
        chances={"numerical_instability": 0.95, "unbounded_activation": 0.3},
        reason="Losses on logits avoid log(0) and 0/0; a small epsilon does so for divisions and roots.",
        cost="None.",
        sources=("Goodfellow et al. 2016, Deep learning, section 4.1",),
        is_applicable=remedy_fit.may_compute_loss_unsafely,
    ),
    RemedyRow(
        id="skip_nonfinite_steps",
        chances={"numerical_instability": 0.45, "precision_overflow": 0.3},
        reason="A bad batch then costs one step instead of the run.",
        cost="One check of every gradient; it hides the fault.",
        sources=("Micikevicius et al. 2018, Mixed precision training, section 3.2",),
    ),
)
"""Every remedy. Among remedies of the same merit, the first of these is advised first."""
