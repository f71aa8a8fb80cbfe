"""The statistics that a `Watch` measures, and their columns in a table `[layer, statistic]`."""

from __future__ import annotations

from typing import Final

from gradmedic.protocol.statistics import (
    Reduction,
    StatisticKind,
    columns_multiplied_by_loss_scale,
    columns_of,
    columns_reduced,
    statistics_of,
)

GRADIENT_STATISTICS: Final = statistics_of(StatisticKind.GRADIENT)
"""What `gradmedic.torch.statistics.measure_gradients` returns, in order."""
ACTIVATION_STATISTICS: Final = statistics_of(StatisticKind.ACTIVATION)
"""What `gradmedic.torch.activations.ActivationMeter.read` returns, in order."""
WATCHED_STATISTICS: Final = statistics_of(StatisticKind.GRADIENT, StatisticKind.WEIGHT, StatisticKind.UPDATE)
"""What every watched run has, in order. If activations are measured, `ACTIVATION_STATISTICS` follow."""

NONFINITE_COUNT: Final = WATCHED_STATISTICS.index("nonfinite_count")

GRADIENT_COLUMNS: Final = columns_of(StatisticKind.GRADIENT)
WEIGHT_COLUMNS: Final = columns_of(StatisticKind.WEIGHT)
UPDATE_COLUMNS: Final = columns_of(StatisticKind.UPDATE)
ACTIVATION_COLUMNS: Final = columns_of(StatisticKind.ACTIVATION)

SCALED_COLUMNS: Final = columns_multiplied_by_loss_scale()
"""Statistics of gradients that a loss scaler multiplies."""
NORM_COLUMNS: Final = columns_reduced(Reduction.NORM)
"""Statistics whose squares add up over the parts of a layer."""
MAXIMUM_COLUMNS: Final = columns_reduced(Reduction.MAXIMUM)
"""Statistics of which the largest counts."""
SUM_COLUMNS: Final = columns_reduced(Reduction.SUM)
"""Counts, which add up."""
MEAN_COLUMNS: Final = columns_reduced(Reduction.MEAN_OF_ELEMENTS)
"""Statistics that are averages over the elements of a gradient."""
