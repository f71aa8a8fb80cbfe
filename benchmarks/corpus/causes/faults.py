"""The kinds of faults: for each the accepted names of its cause, whether a rerun can treat it, and how it must fail.

Most kinds have one name. Where two names state the same fact, both are accepted: a NaN that the loss computes is
`numerical_instability` and `nonfinite_loss`, whichever the diagnosis prefers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from benchmarks.corpus.causes.cases import DIES, FAILS, STALLS, Fault, Lookalike, Settings


@dataclass(frozen=True, slots=True)
class Kind:
    """What is true of all faults of one kind."""

    causes: tuple[str, ...]
    treatable: bool
    manner: str


_NUMERICAL: Final = ("numerical_instability", "nonfinite_loss")

KINDS: Final[dict[str, Kind]] = {
    "rate-too-high": Kind(("learning_rate_too_high",), True, FAILS),
    "rate-too-high-momentum": Kind(("learning_rate_too_high",), True, FAILS),
    "rate-too-high-adam": Kind(("learning_rate_too_high",), True, FAILS),
    "rate-too-low": Kind(("learning_rate_too_low",), True, STALLS),
    "schedule-ends": Kind(("learning_rate_too_low",), False, STALLS),
    "summed-loss": Kind(("learning_rate_too_high", "summed_loss"), True, FAILS),
    "rate-jump": Kind(("learning_rate_jump",), True, FAILS),
    "weights-too-large": Kind(("poor_initialization",), True, FAILS),
    "weights-too-small": Kind(("poor_initialization",), True, STALLS),
    "weights-zero": Kind(("poor_initialization",), True, STALLS),
    "saturating": Kind(("saturating_activation",), True, STALLS),
    # A bias that silences all units is an initial value, and silent units are what it makes.
    "dead-units": Kind(("dead_units", "poor_initialization"), True, STALLS),
    "unscaled-inputs": Kind(("unscaled_inputs",), True, FAILS),
    "unscaled-targets": Kind(("unscaled_targets",), True, FAILS),
    # The recurrent matrix starts too large or too small, and acts once with each of many time steps.
    "expanding-recurrence": Kind(("long_recurrence", "poor_initialization"), True, FAILS),
    "contracting-recurrence": Kind(("long_recurrence", "poor_initialization"), True, STALLS),
    # A gated cell that forgets is a recurrence over which the gradient dies.
    "forgetting": Kind(("forgetting_recurrence", "long_recurrence"), True, STALLS),
    # A deep plain network with torch's own initial weights: better weights or normalization keep the signal's size.
    "no-normalization": Kind(("missing_normalization", "poor_initialization"), True, FAILS),
    "no-clipping": Kind(("missing_clipping",), True, FAILS),
    "excessive-clipping": Kind(("excessive_clipping",), False, STALLS),
    "excessive-decay": Kind(("excessive_weight_decay",), True, STALLS),
    "half-overflow": Kind(("precision_overflow",), False, DIES),
    "half-underflow": Kind(("precision_underflow",), True, STALLS),
    "log-of-zero": Kind(_NUMERICAL, False, DIES),
    "exp-overflow": Kind(_NUMERICAL, False, DIES),
    "root-of-zero": Kind(_NUMERICAL, False, DIES),
    "zero-over-zero": Kind(_NUMERICAL, False, DIES),
    "nonfinite-input": Kind(("nonfinite_input",), True, DIES),
    "attention-logits": Kind(("attention_logit_growth",), True, FAILS),
    "epsilon-too-large": Kind(("optimizer_epsilon",), True, STALLS),
    "epsilon-of-zero": Kind(("optimizer_epsilon",), True, DIES),
    "bfloat16-stall": Kind(("low_precision_stall",), True, STALLS),
    # The scale is exhausted because every gradient is NaN: both are true.
    "scale-exhausted": Kind(("loss_scale_exhausted", *_NUMERICAL), False, FAILS),
    "detached": Kind(("disconnected_parameters",), False, STALLS),
    "no-grad": Kind(("disconnected_parameters",), False, STALLS),
    "left-out": Kind(("disconnected_parameters",), False, STALLS),
    "kept-gradients": Kind(("accumulating_gradients",), False, FAILS),
    "cleared-gradients": Kind(("missing_gradients",), False, STALLS),
    "no-signal": Kind(("no_signal_from_loss",), False, STALLS),
    "softmax-twice": Kind(("loss_mismatch",), False, STALLS),
    "broadcast": Kind(("loss_mismatch",), False, STALLS),
    "adversary": Kind(("adversary_dominates",), False, FAILS),
    "router": Kind(("router_collapse",), False, STALLS),
    "stale-moment": Kind(("stale_second_moment",), True, STALLS),
    "unbounded": Kind(("unbounded_activation",), True, FAILS),
}
"""Every kind of fault, by name."""


def fault(kind: str, *, name: str = "", twin: Settings | None = None, **override: Any) -> Fault:
    """Describe a fault of a kind.

    Args:
        kind: key of `KINDS`.
        name: tells faults of one kind in one program apart.
        twin: settings of both the twin and the fault, where they differ from the program's.
        override: settings of the fault.
    """
    row = KINDS[kind]
    return Fault(
        kind=kind,
        name=name,
        causes=row.causes,
        treatable=row.treatable,
        manner=row.manner,
        override=override,
        twin=twin or {},
    )


def lookalike(kind: str, **override: Any) -> Lookalike:
    """Describe a variation that looks risky and learns."""
    return Lookalike(kind=kind, override=override)
