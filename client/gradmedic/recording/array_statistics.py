"""Measures gradients that come as arrays: numpy arrays, or anything that numpy can read.

Everything is computed in float64, so that no norm of float32 gradients overflows, underflows or drifts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradmedic.protocol.statistics import StatisticKind, statistics_of

ARRAY_STATISTICS = statistics_of(StatisticKind.GRADIENT)
"""The statistics that `measure_gradient` returns, in order."""


def measure_gradient(gradient: Any) -> tuple[float, float, float, float, float]:
    """Return the ARRAY_STATISTICS of one gradient of any shape; a complex one counts as pairs of real numbers.

    Raises:
        TypeError, ValueError: `gradient` cannot be read as an array of numbers.

    >>> measure_gradient([3.0, -4.0, 0.0, 0.0])
    (5.0, 4.0, -0.25, 0.5, 0.0)
    """
    array = np.asarray(gradient)
    if np.iscomplexobj(array):
        array = np.stack([array.real, array.imag])
    values = array.astype(np.float64).ravel()
    if values.size == 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        abs_max = float(np.max(np.abs(values)))
        # Squares of numbers beyond 1e154 or below 1e-154 leave float64: scale by a power of two first, which is exact.
        exponent = math.frexp(abs_max)[1] if math.isfinite(abs_max) else 0
        scaled = np.ldexp(values, -exponent)
        norm = float(np.ldexp(np.sqrt(np.dot(scaled, scaled)), exponent))
        mean = float(np.mean(values))
    nonfinite = 0 if math.isfinite(abs_max) else values.size - int(np.count_nonzero(np.isfinite(values)))
    zero_fraction = 1.0 - int(np.count_nonzero(values)) / values.size
    return norm, abs_max, mean, zero_fraction, float(nonfinite)
