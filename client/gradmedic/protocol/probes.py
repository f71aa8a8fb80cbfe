"""The table of probes: numbers that the SDK measures now and then, of one module, of one layer or of the whole model.

A probe travels as a metric whose name begins with `gradmedic/`, so that it is stored, drawn and exported like a metric.
A step without the number was not probed.

>>> name_metric("attention_entropy", "encoder.layers.0.self_attn")
'gradmedic/attention_entropy/encoder.layers.0.self_attn'
>>> parse_metric("gradmedic/attention_entropy/encoder.layers.0.self_attn")
('attention_entropy', 'encoder.layers.0.self_attn')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

from gradmedic.protocol.statistics import Scale

PREFIX = "gradmedic/"
"""Beginning of the names of all probes. A user's metric must not begin with it."""
MAX_SUBJECTS = 16
"""Most modules or layers of which one probe is measured in a run. Of more, those are chosen that lie evenly apart."""

T = TypeVar("T")


class Subject(StrEnum):
    """What a probe is measured of."""

    MODEL = "model"
    MODULE = "module"
    LAYER = "layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One row of the table of probes."""

    name: str
    subject: Subject
    scale: Scale
    description: str
    """What the number is, with its range."""
    is_multiplied_by_loss_scale: bool = False
    """Whether a loss scaler multiplies the number, as it multiplies the gradients."""


PROBES: Mapping[str, Probe] = MappingProxyType({
    row.name: row
    for row in (
        Probe(
            name="output_gradient_rms",
            subject=Subject.MODULE,
            scale=Scale.LOG,
            description="Root mean square of the loss's gradient at the output of a block, of at most 65,536 elements.",
            is_multiplied_by_loss_scale=True,
        ),
        Probe(
            name="output_rms",
            subject=Subject.MODULE,
            scale=Scale.LOG,
            description="Root mean square of the output of a block.",
        ),
        Probe(
            name="output_zero_share",
            subject=Subject.MODULE,
            scale=Scale.LINEAR,
            description="Share of the outputs of a block that are exactly zero, 0 to 1.",
        ),
        Probe(
            name="time_gradient_factor",
            subject=Subject.MODULE,
            scale=Scale.LOG,
            description=(
                "Factor by which the gradient at the input of a recurrent module changes with each time step back, "
                "fitted over the sequence. Of a cell that is called in a loop, that of the gradient at its states."
            ),
        ),
        Probe(
            name="time_steps",
            subject=Subject.MODULE,
            scale=Scale.COUNT,
            description="Number of time steps of the sequence that a recurrent module gets.",
        ),
        Probe(
            name="attention_logit_max",
            subject=Subject.MODULE,
            scale=Scale.LOG,
            description="Largest absolute attention logit before the softmax, over the rows that were measured.",
        ),
        Probe(
            name="attention_entropy",
            subject=Subject.MODULE,
            scale=Scale.LINEAR,
            description=(
                "Entropy of the attention weights over the logarithm of the number of keys that a row may attend to, "
                "0 to 1, of the head with the lowest mean."
            ),
        ),
        Probe(
            name="router_largest_share",
            subject=Subject.MODULE,
            scale=Scale.LINEAR,
            description="Share of the tokens that a router sends to the expert that gets most, 0 to 1.",
        ),
        Probe(
            name="second_moment_ratio",
            subject=Subject.LAYER,
            scale=Scale.LOG,
            description="Root mean square of the gradient over the root of Adam's corrected second moment.",
        ),
        Probe(
            name="epsilon_share",
            subject=Subject.LAYER,
            scale=Scale.LINEAR,
            description=(
                "Share of the elements with a nonzero gradient whose root of Adam's corrected second moment is below "
                "epsilon, 0 to 1."
            ),
        ),
        Probe(
            name="unchanged_share",
            subject=Subject.MODEL,
            scale=Scale.LINEAR,
            description=(
                "Share of the elements in bfloat16 or float16 with a nonzero gradient that no update has changed since "
                "the last probe, 0 to 1."
            ),
        ),
        Probe(
            name="unused_gradient_share",
            subject=Subject.MODEL,
            scale=Scale.LINEAR,
            description="Share of the elements with a gradient that are in no optimizer, 0 to 1.",
        ),
        Probe(
            name="unregistered_gradient_share",
            subject=Subject.MODEL,
            scale=Scale.LINEAR,
            description=(
                "Share of the elements with a gradient that belong to parameters which the model does not register, "
                "0 to 1."
            ),
        ),
        Probe(
            name="steps_without_gradients",
            subject=Subject.MODEL,
            scale=Scale.COUNT,
            description="Number of probed optimizer steps in a row on which no parameter had a gradient or changed.",
        ),
        Probe(
            name="input_nonfinite_count",
            subject=Subject.MODEL,
            scale=Scale.COUNT,
            description="Number of NaN and infinite elements of the model's input, on a step with a non-finite number.",
        ),
        Probe(
            name="ignored_label_share",
            subject=Subject.MODEL,
            scale=Scale.LINEAR,
            description="Share of the labels that the loss ignores, 0 to 1.",
        ),
    )
})  # fmt: skip
"""Every probe, by name."""


def name_metric(probe: str, subject: str = "") -> str:
    """Return the name of the metric of a probe; `subject` is the name of its module or layer."""
    return f"{PREFIX}{probe}/{subject}" if subject else f"{PREFIX}{probe}"


def parse_metric(name: str) -> tuple[str, str] | None:
    """Return the probe and its subject of a metric, None for a user's metric."""
    if not name.startswith(PREFIX):
        return None
    probe, _, subject = name.removeprefix(PREFIX).partition("/")
    return probe, subject


def is_multiplied_by_loss_scale(metric: str) -> bool:
    """Whether a loss scaler multiplies the numbers of a metric, which is a probe."""
    probe, _ = parse_metric(metric) or ("", "")
    return probe in PROBES and PROBES[probe].is_multiplied_by_loss_scale


def choose_subjects(candidates: Sequence[T], limit: int = MAX_SUBJECTS) -> list[T]:
    """Return at most `limit` of the candidates, the first and the last among them, evenly apart.

    >>> choose_subjects([0, 1, 2, 3, 4, 5, 6], limit=3)
    [0, 3, 6]
    """
    if len(candidates) <= limit:
        return list(candidates)
    last = len(candidates) - 1
    return [candidates[round(i * last / (limit - 1))] for i in range(limit)]
