"""Advice on the update: clipping and the learning rate."""

from __future__ import annotations

from gradmedic_diagnosis import remedy_fit
from gradmedic_diagnosis.remedies.row import PASCANU, RemedyRow

STABLE_ADAMW = "Wortsman et al. 2023, Stable and low-precision training for large-scale vision-language models"
SMALL_SCALE_PROXIES = "Wortsman et al. 2024, Small-scale proxies for large-scale Transformer training instabilities"

UPDATE_ROWS: tuple[RemedyRow, ...] = (
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
        id="clip_update",
        chances={
            "stale_second_moment": 0.9,
            "loss_spike": 0.6,
            "learning_rate_jump": 0.3,
            "learning_rate_too_high": 0.25,
        },
        reason="Lowers the rate of a tensor whose gradient is far larger than Adam's second moment expects.",
        cost="A root mean square per tensor and step.",
        sources=(STABLE_ADAMW,),
        fixed_parameters={"threshold": remedy_fit.TIGHT_THRESHOLD},
        is_applicable=remedy_fit.has_second_moment,
    ),
    RemedyRow(
        id="optimizer_epsilon",
        chances={"optimizer_epsilon": 0.95, "precision_overflow": 0.3},
        reason="The epsilon must be far below the size of the gradients, and a number that the precision can hold.",
        cost="Smaller ones amplify the noise of parameters that hardly get a gradient.",
        sources=(SMALL_SCALE_PROXIES,),
        choose_parameters=remedy_fit.choose_epsilon,
        is_applicable=remedy_fit.can_change_epsilon,
    ),
    RemedyRow(
        id="beta2",
        chances={"stale_second_moment": 0.7, "loss_spike": 0.5, "learning_rate_too_high": 0.2},
        reason="The second moment follows the gradients sooner, so that it is out of date for fewer steps.",
        cost="A noisier size of the steps.",
        sources=(STABLE_ADAMW, "Bai et al. 2025, Adaptive preconditioners trigger loss spikes in Adam"),
        choose_parameters=remedy_fit.choose_beta2,
        is_applicable=remedy_fit.can_forget_sooner,
    ),
    RemedyRow(
        id="adaptive_clip_per_tensor",
        chances={"loss_spike": 0.7, "missing_clipping": 0.35, "stale_second_moment": 0.3},
        reason="Clips each tensor by its own recent norm: one that jumps does not shrink the gradients of the others.",
        cost="A norm per tensor and step; it cannot follow gradients that grow fast for a good reason.",
        sources=("Wang et al. 2025, AdaGC: improving training stability for large language model pretraining",),
        choose_parameters=remedy_fit.choose_tensor_clipping,
    ),
    RemedyRow(
        id="skip_spikes",
        chances={"loss_spike": 0.65, "nonfinite_input": 0.3, "stale_second_moment": 0.15},
        reason="A step whose gradient is several times the usual largest one is not taken, up to five in a row.",
        cost="The batches of those steps are lost; a spike that the weights cause comes back.",
        sources=("Chowdhery et al. 2022, PaLM, section 5.1",),
        fixed_parameters={"times_usual": 4.0},
    ),
    RemedyRow(
        id="float32_master_weights",
        chances={
            "low_precision_stall": 0.95,
            "optimizer_epsilon": 0.8,
            "precision_overflow": 0.6,
            "precision_underflow": 0.6,
            "loss_scale_exhausted": 0.5,
        },
        reason="Updates that are too small for a 16-bit weight add up in a float32 copy of it.",
        cost="Four bytes per parameter, and the optimizer's state in float32.",
        sources=(
            "Micikevicius et al. 2018, Mixed precision training, section 3.1",
            "Zamirai et al. 2020, Revisiting bfloat16 training",
        ),
        is_applicable=remedy_fit.has_low_precision_weights,
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
)
