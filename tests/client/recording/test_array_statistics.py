"""Statistics of gradients that come as arrays."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmedic.recording.array_statistics import measure_gradient

floats = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(st.lists(floats, min_size=1, max_size=20))
def test_statistics_equal_exact_arithmetic(numbers: list[float]) -> None:
    """The statistics equal those of exact rational arithmetic, from 1e-308 to 1e308."""
    norm, abs_max, mean, zero_fraction, nonfinite = measure_gradient(np.array(numbers))
    squares = sum(Fraction(n) ** 2 for n in numbers)
    assert abs_max == max(map(abs, numbers))
    assert zero_fraction == pytest.approx(numbers.count(0.0) / len(numbers))
    assert nonfinite == 0
    exact_norm = math.ldexp(math.sqrt(squares / Fraction(2) ** (2 * (e := math.frexp(abs_max)[1]))), 0)
    try:
        expected_norm = math.ldexp(exact_norm, e)
    except OverflowError:
        expected_norm = math.inf
    assert norm == pytest.approx(expected_norm, rel=1e-12, abs=1e-320)
    if abs_max < 1e300:
        assert mean == pytest.approx(float(sum(map(Fraction, numbers)) / len(numbers)), rel=1e-6, abs=abs_max * 1e-12)


def test_nonfinite_elements_are_counted_and_not_hidden() -> None:
    """NaN and Inf elements are counted, and the norm is not finite."""
    norm, abs_max, _, zero_fraction, nonfinite = measure_gradient(np.array([math.nan, math.inf, 0.0, 1.0]))
    assert nonfinite == 2
    assert zero_fraction == 0.25
    assert not math.isfinite(norm)
    assert not math.isfinite(abs_max)
    assert measure_gradient(np.array([math.inf, 1.0]))[0] == math.inf


def test_float32_gradients_neither_overflow_nor_vanish() -> None:
    """A float32 gradient of 1e30 or 1e-30 has that norm, although its square is no float32."""
    for size in (1e30, 1e-30):
        assert measure_gradient(np.full(4, size, dtype=np.float32))[0] == pytest.approx(2 * size, rel=1e-6)


def test_complex_empty_and_integer_gradients_have_statistics() -> None:
    """A complex gradient counts as pairs, an empty one as nothing, integers as numbers."""
    assert measure_gradient(np.array([3 + 4j]))[0] == 5.0
    assert measure_gradient(np.zeros((0, 3))) == (0.0, 0.0, 0.0, 0.0, 0.0)
    assert measure_gradient([[3], [4]])[0] == 5.0
