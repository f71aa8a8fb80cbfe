"""Advice on the optimizer: another one, and its pull on the weights."""

from __future__ import annotations

from gradmedic_diagnosis import applicability
from gradmedic_diagnosis.remedies.row import PASCANU, RemedyRow

OPTIMIZER_ROWS: tuple[RemedyRow, ...] = (
    RemedyRow(
        id="switch_optimizer",
        chances={
            "learning_rate_too_high": 0.35,
            "learning_rate_too_low": 0.7,
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
        is_applicable=applicability.may_switch_to_adam,
    ),
    RemedyRow(
        id="switch_optimizer",
        chances={"unscaled_targets": 0.3, "unscaled_inputs": 0.25, "long_recurrence": 0.2},
        reason="RMSprop divides by a running root mean square of the gradient; it is common in recurrent networks.",
        cost="One more tensor per parameter; another learning rate.",
        sources=("Tieleman and Hinton 2012, Lecture 6.5 - RMSProp",),
        variant="RMSprop",
        fixed_parameters={"optimizer": "RMSprop", "learning_rate": 1e-3},
        is_applicable=applicability.uses_no_adam,
    ),
    RemedyRow(
        id="switch_optimizer",
        chances={"unscaled_targets": 0.2, "unscaled_inputs": 0.25},
        reason="AdaGrad lowers each parameter's rate as its gradients add up; it suits sparse features.",
        cost="One more tensor per parameter; the rate only ever falls.",
        sources=("Duchi et al. 2011, Adaptive subgradient methods",),
        variant="Adagrad",
        fixed_parameters={"optimizer": "Adagrad", "learning_rate": 1e-2},
        is_applicable=applicability.uses_no_adam,
    ),
    RemedyRow(
        id="weight_decay",
        chances={"long_recurrence": 0.2, "missing_clipping": 0.15},
        reason="An L2 penalty keeps the weights, and with them the factor per layer, from growing.",
        cost="A bias of the weights towards zero.",
        sources=(PASCANU,),
        fixed_parameters={"weight_decay": 1e-2},
        is_applicable=applicability.is_exploding,
    ),
    RemedyRow(
        id="l1_penalty",
        chances={"long_recurrence": 0.15, "missing_clipping": 0.1},
        reason="An L1 penalty keeps the weights from growing and sets many to zero.",
        cost="A bias of the weights towards zero.",
        sources=(PASCANU,),
        fixed_parameters={"strength": 1e-5},
        is_applicable=applicability.is_exploding,
    ),
    RemedyRow(
        id="reduce_weight_decay",
        chances={"excessive_weight_decay": 1.0},
        reason="The penalty pulls the weights to zero faster than the loss moves them away.",
        cost="Less regularization.",
        sources=("Krogh and Hertz 1992, A simple weight decay can improve generalization",),
        fixed_parameters={"factor": 0.01},
    ),
)
