"""Advice on the script: its numerics, its clipping, its sequences."""

from __future__ import annotations

from gradmedic_diagnosis import applicability, remedy_fit
from gradmedic_diagnosis.remedies.row import PASCANU, RemedyRow

TORCH_RECIPES = "PyTorch documentation, Optimizing model parameters"

SCRIPT_ROWS: tuple[RemedyRow, ...] = (
    RemedyRow(
        id="truncate_backpropagation",
        chances={"long_recurrence": 0.3},
        reason="Cuts the product of Jacobians after a number of time steps.",
        cost="Dependencies longer than the cut are not learned.",
        sources=(
            "Williams and Peng 1990, An efficient gradient-based algorithm for on-line training of recurrent networks",
        ),
        fixed_parameters={"time_steps": 35},
        is_applicable=lambda run: run.has_recurrence and applicability.is_exploding(run),
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
        chances={"precision_overflow": 0.95, "precision_underflow": 0.95, "nonfinite_loss": 0.2},
        reason="Dynamic loss scaling finds the largest scale that does not overflow, and skips the steps that do.",
        cost="A few skipped steps.",
        sources=("Micikevicius et al. 2018, Mixed precision training, section 3.2",),
        is_applicable=applicability.may_scale_loss,
    ),
    RemedyRow(
        id="use_bfloat16",
        chances={"precision_overflow": 0.6, "precision_underflow": 0.8, "loss_scale_exhausted": 0.9},
        reason="bfloat16 has the exponent range of float32 and needs no loss scale.",
        cost="Eight bits of mantissa in place of eleven.",
        sources=("Kalamkar et al. 2019, A study of bfloat16 for deep learning training",),
        is_applicable=applicability.may_use_bfloat16,
    ),
    RemedyRow(
        id="stable_loss",
        chances={"numerical_instability": 0.95, "nonfinite_loss": 0.8, "unbounded_activation": 0.3},
        reason="Losses on logits avoid log(0) and 0/0; a small epsilon does so for divisions and roots.",
        cost="None.",
        sources=("Goodfellow et al. 2016, Deep learning, section 4.1",),
        is_applicable=applicability.may_compute_loss_unsafely,
    ),
    RemedyRow(
        id="guard_operations",
        chances={"numerical_instability": 0.9, "nonfinite_loss": 0.6, "unbounded_activation": 0.3},
        reason="Roots, quotients, logarithms and exponentials get no number at which their slope is infinite.",
        cost="Examples at such a number give no gradient.",
        sources=(
            "Yan et al. 2021, Exposing numerical bugs in deep learning via gradient back-propagation (GRIST)",
            "Goodfellow et al. 2016, Deep learning, section 4.1",
        ),
        is_applicable=lambda run: not applicability.ignores_all_labels(run),
    ),
    RemedyRow(
        id="use_float32",
        chances={
            "precision_overflow": 0.9,
            "precision_underflow": 0.9,
            "low_precision_stall": 0.7,
            "loss_scale_exhausted": 0.6,
            "nonfinite_loss": 0.4,
            "numerical_instability": 0.3,
        },
        reason="float32 has the range and the resolution that 16 bits lack.",
        cost="Twice the memory, and slower matrix products.",
        sources=("Micikevicius et al. 2018, Mixed precision training, section 3",),
    ),
    RemedyRow(
        id="extend_schedule",
        chances={"learning_rate_too_low": 1.0},
        reason="A schedule whose steps are those of this training ends with it, and not before.",
        cost="None.",
        sources=("Bengio 2012, Practical recommendations for gradient-based training, section 3.1",),
        is_applicable=lambda run: run.has_ended_schedule,
    ),
    RemedyRow(
        id="call_zero_grad",
        chances={"accumulating_gradients": 1.0, "missing_gradients": 1.0},
        reason="Each optimizer step must use the gradients of its own backward pass, and no others.",
        cost="None.",
        sources=(TORCH_RECIPES,),
    ),
    RemedyRow(
        id="remove_extra_softmax",
        chances={"loss_mismatch": 1.0},
        reason="The loss applies a softmax or sigmoid itself, and expects logits.",
        cost="None.",
        sources=("Goodfellow et al. 2016, Deep learning, section 6.2.2",),
        is_applicable=applicability.applies_softmax_twice,
    ),
    RemedyRow(
        id="match_target_shape",
        chances={"loss_mismatch": 1.0},
        reason="With shapes that broadcast, each output is compared with every target.",
        cost="None.",
        sources=(TORCH_RECIPES,),
        is_applicable=applicability.has_broadcast_targets,
    ),
    RemedyRow(
        id="filter_nonfinite_batches",
        chances={"nonfinite_input": 1.0, "nonfinite_loss": 0.3, "numerical_instability": 0.25},
        reason="One NaN in the data makes every weight NaN: find the examples, and leave them out or mend them.",
        cost="A check of each batch.",
        sources=("Goodfellow et al. 2016, Deep learning, section 11.5",),
    ),
    RemedyRow(
        id="skip_nonfinite_steps",
        chances={
            "numerical_instability": 0.45,
            "nonfinite_loss": 0.4,
            "nonfinite_input": 0.95,
            "precision_overflow": 0.3,
        },
        reason="A bad batch then costs one step instead of the run.",
        cost="One check of every gradient; it hides the fault.",
        sources=("Micikevicius et al. 2018, Mixed precision training, section 3.2",),
    ),
    RemedyRow(
        id="connect_parameters",
        chances={"disconnected_parameters": 1.0, "no_signal_from_loss": 0.5, "missing_gradients": 0.6},
        reason="A parameter learns only if the model registers it, an optimizer holds it, and it reaches the loss.",
        cost="None.",
        sources=(TORCH_RECIPES,),
    ),
    RemedyRow(
        id="check_labels",
        chances={"no_signal_from_loss": 0.7, "nonfinite_loss": 1.0},
        reason="A loss that ignores all its labels has no gradient, and its mean is 0/0.",
        cost="None.",
        sources=(TORCH_RECIPES,),
        is_applicable=applicability.may_ignore_labels,
    ),
    RemedyRow(
        id="slow_down_adversary",
        chances={"adversary_dominates": 0.8},
        reason="A discriminator that is always right gives the generator no gradient: it must learn more slowly.",
        cost="One more rate to choose.",
        sources=("Heusel et al. 2017, GANs trained by a two time-scale update rule, section 2",),
        fixed_parameters={"factor": 0.25},
    ),
    RemedyRow(
        id="balance_router",
        chances={"router_collapse": 0.9},
        reason="A penalty on an uneven load keeps every expert in use.",
        cost="A little of the task's loss.",
        sources=("Fedus et al. 2022, Switch transformers, section 2.2",),
    ),
    RemedyRow(
        id="smooth_schedule",
        chances={"learning_rate_jump": 0.7},
        reason="A rate that rises over many steps lets the weights move to where the new rate is stable.",
        cost="The steps of the rise learn less.",
        sources=("Goyal et al. 2017, Accurate, large minibatch SGD, section 2.2",),
        fixed_parameters={"steps": 100},
    ),
)
