"""The statistics of a layer and the series of a step."""

from __future__ import annotations

STATISTICS = (
    "grad_norm",
    "grad_abs_max",
    "grad_mean",
    "grad_zero_fraction",
    "nonfinite_count",
    "weight_norm",
    "update_norm",
    "activation_zero_fraction",
    "activation_saturation",
)
"""Every statistic there is: one number per layer per step."""


SERIES = ("loss", "learning_rate", "time", "loss_scale", "clip_coefficient")
"""Numbers of a step as a whole, one each per step; free-form ones go under `metrics`."""


SIGNED_STATISTICS = ("grad_mean",)
"""Those that may be negative; of the others NaN may mean anything, a number below 0 nothing."""


FRACTIONS = ("grad_zero_fraction", "activation_zero_fraction", "activation_saturation")
"""Those that are at most 1."""
