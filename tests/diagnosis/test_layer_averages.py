"""Running averages over the layers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradmedic_diagnosis.layer_averages import BASELINE_HORIZON, LayerAverages

LAYERS = 7


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 130), idle=st.sets(st.integers(0, LAYERS - 1)))
def test_averages_of_a_block_at_once_are_those_of_its_rows(seed: int, rows: int, idle: set[int]) -> None:
    """Steady layers are averaged at once with the result of row by row: outliers are clipped, idle layers unchanged."""
    random = np.random.default_rng(seed)
    values = random.normal(-2, 0.6, (rows, LAYERS))  # beyond half a decade about as often as not
    is_idle = np.isin(np.arange(LAYERS), list(idle))
    values[:, is_idle] = 0.0
    known = np.tile(~is_idle, (rows, 1))
    counts = BASELINE_HORIZON + np.cumsum(known, axis=0)
    smoothed, baseline = random.normal(-2, 1, (2, LAYERS))
    at_once, by_row = (LayerAverages(smoothed_log_rms=smoothed, baseline_log_rms=baseline) for _ in range(2))
    found = at_once._average_steady_layers(values, is_idle)
    expected = by_row._average_row_by_row(values, known, counts)
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(at_once.smoothed_log_rms, by_row.smoothed_log_rms, rtol=0, atol=1e-12)
    np.testing.assert_allclose(at_once.baseline_log_rms, by_row.baseline_log_rms, rtol=0, atol=1e-12)
