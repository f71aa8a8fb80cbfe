"""The statistics that a `Watch` measures, and their columns in a table `[layer, statistic]`."""

from __future__ import annotations

from typing import Final

GRADIENT_STATISTICS: Final = ("grad_norm", "grad_abs_max", "grad_mean", "grad_zero_fraction", "nonfinite_count")
"""What `gradmedic.torch.statistics.measure_gradients` returns, in order."""
ACTIVATION_STATISTICS: Final = ("activation_zero_fraction", "activation_saturation")
"""What `gradmedic.torch.activations.ActivationMeter.read` returns, in order."""
WATCHED_STATISTICS: Final = (*GRADIENT_STATISTICS, "weight_norm", "update_norm")
"""What every watched run has, in order. If activations are measured, `ACTIVATION_STATISTICS` follow."""

ABS_MAX: Final = WATCHED_STATISTICS.index("grad_abs_max")
NONFINITE_COUNT: Final = WATCHED_STATISTICS.index("nonfinite_count")

GRADIENT_COLUMNS: Final = slice(0, len(GRADIENT_STATISTICS))
WEIGHT_NORM_COLUMN: Final = slice(len(GRADIENT_STATISTICS), len(GRADIENT_STATISTICS) + 1)
UPDATE_NORM_COLUMN: Final = slice(len(GRADIENT_STATISTICS) + 1, len(WATCHED_STATISTICS))
ACTIVATION_COLUMNS: Final = slice(len(WATCHED_STATISTICS), len(WATCHED_STATISTICS) + len(ACTIVATION_STATISTICS))

SCALED_COLUMNS: Final = slice(0, GRADIENT_STATISTICS.index("grad_mean") + 1)
"""Statistics of gradients that a loss scaler multiplies."""
NORM_COLUMNS: Final = tuple(WATCHED_STATISTICS.index(name) for name in ("grad_norm", "weight_norm", "update_norm"))
"""Statistics whose squares add up over the parts of a layer."""
MEAN_COLUMNS: Final = tuple(WATCHED_STATISTICS.index(name) for name in ("grad_mean", "grad_zero_fraction"))
"""Statistics that are averages over the elements of a gradient."""
