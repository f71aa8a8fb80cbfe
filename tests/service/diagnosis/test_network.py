"""Running averages over the layers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradmedic_diagnosis.network import BASELINE_HORIZON, NetworkAverages

LAYERS = 7


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 130), idle=st.sets(st.integers(0, LAYERS - 1)))
def test_averages_of_a_block_at_once_are_those_of_its_rows(seed: int, rows: int, idle: set[int]) -> None:
    """Steady layers may be averaged at once: outliers are cut, and layers that take no part stay, as one by one."""
    random = np.random.default_rng(seed)
    values = random.normal(-2, 0.6, (rows, LAYERS))  # beyond half a decade about as often as not
    is_idle = np.isin(np.arange(LAYERS), list(idle))
    values[:, is_idle] = 0.0
    known = np.tile(~is_idle, (rows, 1))
    counts = BASELINE_HORIZON + np.cumsum(known, axis=0)
    smooth, baseline = random.normal(-2, 1, (2, LAYERS))
    at_once, one_by_one = (NetworkAverages(smooth=smooth, baseline=baseline) for _ in range(2))
    found = at_once._average_steadily(values, is_idle)
    expected = one_by_one._average_one_by_one(values, known, counts)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    np.testing.assert_allclose(at_once.smooth, one_by_one.smooth, rtol=0, atol=1e-12)
    np.testing.assert_allclose(at_once.baseline, one_by_one.baseline, rtol=0, atol=1e-12)
