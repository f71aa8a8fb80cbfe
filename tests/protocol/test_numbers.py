"""The rules by which numbers travel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradmedic.protocol.numbers import CLIP_EPSILON, NONFINITE_NAMES, name_nonfinite, to_float32


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)))
def test_float32_keeps_finite_finite_and_nonzero_nonzero(numbers: list[float]) -> None:
    """Rounding to float32 never makes a finite number infinite or a nonzero one zero, and keeps NaN and signs."""
    values = np.array(numbers, dtype=np.float64)
    narrow = to_float32(values)
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(np.isfinite(narrow), np.isfinite(values))
    np.testing.assert_array_equal(np.isnan(narrow), np.isnan(values))
    np.testing.assert_array_equal(np.sign(narrow), np.sign(values).astype(np.float32))


@given(st.floats(width=32, allow_nan=False))
def test_float32_values_stay_as_they_are(number: float) -> None:
    """A number that float32 holds is not changed."""
    assert to_float32(np.array([number]))[0] == number


def test_every_nonfinite_name_is_read_by_python_as_its_number() -> None:
    """`float` reads each name back as the number that it stands for."""
    for number in (math.nan, math.inf, -math.inf):
        name = name_nonfinite(number)
        assert name in NONFINITE_NAMES
        np.testing.assert_equal(float(name), number)


def test_the_clip_epsilon_is_that_of_torch() -> None:
    """`torch.nn.utils.clip_grad_norm_` divides by the norm plus the epsilon."""
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    parameter.grad = torch.full((1,), 1e-6, dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_([parameter], 1e-7)
    assert float(parameter.grad) == pytest.approx(1e-6 * 1e-7 / (1e-6 + CLIP_EPSILON), rel=1e-9)
