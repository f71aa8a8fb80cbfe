"""Advice on the script: its numerics, its clipping, its sequences."""

from __future__ import annotations

from gradmedic_diagnosis import remedy_fit
from gradmedic_diagnosis.remedies.row import PASCANU, RemedyRow

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
        is_applicable=lambda run: run.has_recurrence and remedy_fit.is_exploding(run),
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
