"""Statistics of tensors, compared with an independent reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradmedic.torch.statistics import measure_gradients, measure_norms


def reference(values: NDArray[np.float64]) -> list[float]:
    """Return norm, largest, mean, share of zeros and number of non-finite elements, straight from their definitions."""
    with np.errstate(all="ignore"):
        scale = np.abs(values).max()
        norm = scale * np.sqrt(np.sum((values / scale) ** 2)) if scale and np.isfinite(scale) else np.abs(values).sum()
        return [
            float(norm),
            float(np.abs(values).max()),
            float(values.mean()),
            float(np.mean(values == 0)),
            float(np.sum(~np.isfinite(values))),
        ]


@settings(max_examples=200)
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=30),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_any_gradient_has_the_statistics_of_its_definition(numbers: list[float], dtype: torch.dtype) -> None:
    """Statistics are right for every floating-point dtype, from subnormal to the largest numbers, NaN and infinity."""
    tensor = torch.tensor(numbers).to(dtype)
    (row,) = measure_gradients([tensor]).read()
    exact = tensor.double().numpy()
    expected = reference(exact)
    np.testing.assert_allclose(row[[0, 1, 3, 4]], np.array(expected)[[0, 1, 3, 4]], rtol=1e-6)
    if np.isfinite(exact).all():
        np.testing.assert_allclose(row[2], expected[2], rtol=1e-5, atol=np.abs(exact).max() * 1e-6)
    else:
        assert not np.isfinite(row[2])


@pytest.mark.parametrize("size", [31, 4096, 32_768, 100_003, 3_000_000])
def test_norms_of_long_tensors_do_not_drift(size: int) -> None:
    """Statistics are right to 1e-6 at any length, where a plain sum in float32 is not."""
    tensor = torch.from_numpy(np.random.default_rng(0).normal(size=size).astype(np.float32))
    exact = np.linalg.norm(tensor.double().numpy())
    assert measure_norms([tensor]).read()[0] == pytest.approx(exact, rel=1e-6)
    assert measure_gradients([tensor]).read()[0, 0] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-20, 1e-12, 1.0, 1e15, 1e25, 1e38])
def test_norms_neither_overflow_nor_vanish(size: float) -> None:
    """The norm is right if the squares of the numbers are out of the range of float32."""
    tensor = torch.full((10,), size)
    exact = np.linalg.norm(tensor.double().numpy())
    assert measure_norms([tensor]).read()[0] == pytest.approx(exact, rel=1e-6)
    assert measure_gradients([tensor]).read()[0, 0] == pytest.approx(exact, rel=1e-6)


def test_a_norm_beyond_float64_is_infinite_with_no_element_that_is() -> None:
    """If only the norm overflows, the count of non-finite elements is zero."""
    row = measure_gradients([torch.full((4,), 1.5e308, dtype=torch.float64)]).read()[0]
    assert row[0] == np.inf
    assert row[4] == 0


def test_sparse_complex_empty_and_strided_gradients_are_measured() -> None:
    """Sparse gradients count their zeros, complex ones count as pairs, and repeated indices are summed."""
    indices, values = torch.tensor([[0, 2, 2]]), torch.tensor([[3.0], [1.0], [3.0]])
    sparse = torch.sparse_coo_tensor(indices, values, (5, 1), check_invariants=True)
    rows = measure_gradients([
        sparse,
        torch.tensor([3 + 4j, 0]),
        torch.zeros(0),
        torch.arange(12.0).reshape(3, 4).t(),
        sparse.to_dense(),
    ]).read()  # fmt: skip
    np.testing.assert_allclose(rows[0], [5.0, 4.0, 7 / 5, 3 / 5, 0])
    np.testing.assert_allclose(rows[0], rows[4])
    np.testing.assert_allclose(rows[1], [5.0, 4.0, 7 / 4, 2 / 4, 0])
    np.testing.assert_allclose(rows[2], 0)
    np.testing.assert_allclose(rows[3], reference(np.arange(12.0)))


def test_a_loss_scale_is_divided_out() -> None:
    """Scaled gradients have the statistics of unscaled ones."""
    gradient = torch.tensor([3.0, -4.0, 0.0, 0.0])
    scaled = measure_gradients([gradient * 1024], torch.tensor(1024.0)).read()
    np.testing.assert_allclose(scaled, measure_gradients([gradient]).read())


def test_measuring_changes_nothing() -> None:
    """A measurement changes neither the tensors nor the random generator."""
    tensor = torch.randn(100_000)
    before, state = tensor.clone(), torch.get_rng_state()
    measure_gradients([tensor])
    measure_norms([tensor])
    assert torch.equal(tensor, before)
    assert torch.equal(torch.get_rng_state(), state)
