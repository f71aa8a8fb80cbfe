"""Advice on the update: clipping and the learning rate."""

from __future__ import annotations

from gradmedic_diagnosis import remedy_fit
from gradmedic_diagnosis.remedies.row import PASCANU, RemedyRow

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
        id="rescale_loss_gradient",
        chances={"unscaled_targets": 0.35, "learning_rate_too_high": 0.25},
        reason="Divides the loss, and with it every gradient, by the loss's own starting scale.",
        cost="None under SGD but a slower start; no effect under Adam.",
        sources=("LeCun et al. 1998, Efficient backprop, section 4.3",),
        choose_parameters=remedy_fit.choose_loss_factor,
        is_applicable=lambda run: remedy_fit.is_exploding(run) and remedy_fit.uses_no_adam(run),
    ),
)
