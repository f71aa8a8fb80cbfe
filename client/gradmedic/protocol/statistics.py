"""The tables of statistics and of step series: their ranges, how they are reduced and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class StatisticKind(StrEnum):
    """The tensors from which a statistic is computed."""

    GRADIENT = "gradient"
    WEIGHT = "weight"
    UPDATE = "update"
    ACTIVATION = "activation"


class Reduction(StrEnum):
    """How the statistics of a tensor's shards become the statistic of the whole tensor."""

    NORM = "norm"
    """Square root of the sum of squares."""
    MAXIMUM = "maximum"
    MEAN_OF_ELEMENTS = "mean_of_elements"
    """Mean, weighted by the number of elements in each shard."""
    MEAN_OF_PROCESSES = "mean_of_processes"
    """Mean over the processes. Each process has a batch of its own."""
    SUM = "sum"


class Scale(StrEnum):
    """How values are drawn."""

    LOG = "log"
    """By the logarithm of their absolute value."""
    LINEAR = "linear"
    COUNT = "count"
    """Whole numbers, by their logarithm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """One row of the table of statistics: a number per layer and sampled step."""

    name: str
    kind: StatisticKind
    minimum: float = 0.0
    maximum: float = math.inf
    reduction: Reduction
    scale: Scale
    is_multiplied_by_loss_scale: bool = False
    """Whether a loss scaler multiplies the statistic, as it multiplies the gradients."""

    @property
    def is_signed(self) -> bool:
        """Whether the statistic may be negative."""
        return self.minimum < 0

    @property
    def is_fraction(self) -> bool:
        """Whether the statistic is a fraction, from 0 to 1."""
        return self.maximum == 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSeries:
    """One row of the table of step series: a number per step, for the whole model."""

    name: str
    is_finite: bool = False
    """Whether non-finite values are refused."""
    scale: Scale


STATISTICS_TABLE: Mapping[str, Statistic] = MappingProxyType({
    row.name: row
    for row in (
        Statistic(
            name="grad_norm",
            kind=StatisticKind.GRADIENT,
            reduction=Reduction.NORM,
            scale=Scale.LOG,
            is_multiplied_by_loss_scale=True,
        ),
        Statistic(
            name="grad_abs_max",
            kind=StatisticKind.GRADIENT,
            reduction=Reduction.MAXIMUM,
            scale=Scale.LOG,
            is_multiplied_by_loss_scale=True,
        ),
        Statistic(
            name="grad_mean",
            kind=StatisticKind.GRADIENT,
            minimum=-math.inf,
            reduction=Reduction.MEAN_OF_ELEMENTS,
            scale=Scale.LOG,
            is_multiplied_by_loss_scale=True,
        ),
        Statistic(
            name="grad_zero_fraction",
            kind=StatisticKind.GRADIENT,
            maximum=1.0,
            reduction=Reduction.MEAN_OF_ELEMENTS,
            scale=Scale.LINEAR,
        ),
        Statistic(name="nonfinite_count", kind=StatisticKind.GRADIENT, reduction=Reduction.SUM, scale=Scale.COUNT),
        Statistic(name="weight_norm", kind=StatisticKind.WEIGHT, reduction=Reduction.NORM, scale=Scale.LOG),
        Statistic(name="update_norm", kind=StatisticKind.UPDATE, reduction=Reduction.NORM, scale=Scale.LOG),
        Statistic(
            name="activation_zero_fraction",
            kind=StatisticKind.ACTIVATION,
            maximum=1.0,
            reduction=Reduction.MEAN_OF_PROCESSES,
            scale=Scale.LINEAR,
        ),
        Statistic(
            name="activation_saturation",
            kind=StatisticKind.ACTIVATION,
            maximum=1.0,
            reduction=Reduction.MEAN_OF_PROCESSES,
            scale=Scale.LINEAR,
        ),
    )
})  # fmt: skip
"""Every statistic, by name, in the order of a watched run's columns."""

SERIES_TABLE: Mapping[str, NamedSeries] = MappingProxyType({
    row.name: row
    for row in (
        NamedSeries(name="loss", scale=Scale.LOG),
        NamedSeries(name="learning_rate", scale=Scale.LINEAR),
        NamedSeries(name="time", is_finite=True, scale=Scale.LINEAR),
        NamedSeries(name="loss_scale", scale=Scale.LOG),
        NamedSeries(name="clip_coefficient", scale=Scale.LINEAR),
        NamedSeries(name="output_gradient_norm", scale=Scale.LOG),
    )
})  # fmt: skip
"""Every step series with a fixed meaning, by name. Further numbers per step are metrics."""

STATISTICS = tuple(STATISTICS_TABLE)
"""The names of all statistics."""

SERIES = tuple(SERIES_TABLE)
"""The names of all step series with a fixed meaning."""


def statistics_of(*kinds: StatisticKind) -> tuple[str, ...]:
    """Return the names of the statistics of these kinds, in the order of the table.

    >>> statistics_of(StatisticKind.WEIGHT, StatisticKind.UPDATE)
    ('weight_norm', 'update_norm')
    """
    return tuple(name for name, row in STATISTICS_TABLE.items() if row.kind in kinds)


def columns_of(kind: StatisticKind) -> slice:
    """Return the columns of a table `[..., statistic]` of all statistics that hold the statistics of a kind.

    >>> columns_of(StatisticKind.GRADIENT)
    slice(0, 5, None)
    """
    names = statistics_of(kind)
    first = STATISTICS.index(names[0])
    return slice(first, first + len(names))


def statistics_drawn(scale: Scale) -> tuple[str, ...]:
    """Return the names of the statistics that are drawn on this scale, in the order of the table."""
    return tuple(name for name, row in STATISTICS_TABLE.items() if row.scale is scale)


def columns_reduced(reduction: Reduction) -> tuple[int, ...]:
    """Return the columns of a table `[..., statistic]` of all statistics that are reduced in this way.

    >>> columns_reduced(Reduction.NORM)
    (0, 5, 6)
    """
    return tuple(column for column, row in enumerate(STATISTICS_TABLE.values()) if row.reduction is reduction)


def columns_multiplied_by_loss_scale() -> tuple[int, ...]:
    """Return the columns of a table `[..., statistic]` of all statistics that a loss scaler multiplies.

    >>> columns_multiplied_by_loss_scale()
    (0, 1, 2)
    """
    return tuple(column for column, row in enumerate(STATISTICS_TABLE.values()) if row.is_multiplied_by_loss_scale)
