"""Statistics that are measured on a device, against float64 references on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.client.torch.recording import Recording
from torch import Tensor, nn

SIZES = (1, 7, 300, 5_000, 300_000)
"""Elements of the layers: of short tensors, of whole pieces and of several chunks."""

Optimizers = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizers] = {
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


class Weights(nn.Module):
    """Layers of some sizes, whose gradients a test sets."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.layers = nn.ParameterList(torch.randn(size, device=device).to(dtype) for size in SIZES)

    def forward(self) -> None:
        """Compute nothing."""


def to_numpy(tensor: Tensor) -> NDArray[np.float64]:
    """Return a copy on the host in float64."""
    return tensor.detach().to("cpu", torch.float64).numpy().copy()


def norm(array: NDArray[np.float64]) -> float:
    """Return the L2 norm, scaled so that no square overflows or vanishes."""
    largest = float(np.abs(array).max())
    return largest * float(np.linalg.norm(array / largest)) if 0 < largest < np.inf else largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_statistics_are_those_of_float64(device: torch.device, dtype: torch.dtype, name: str) -> None:
    """Gradients and weights agree to 1e-5, and updates with what the optimizer did to float32 weights."""
    model = Weights(dtype, device)
    optimizer = OPTIMIZERS[name](model.parameters())
    with Recording(model, optimizer) as recording:
        for _ in range(4):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter) * (torch.rand_like(parameter) > 0.3)
            gradients = {key: to_numpy(p.grad) for key, p in model.named_parameters() if p.grad is not None}
            before = {key: to_numpy(p) for key, p in model.named_parameters()}
            optimizer.step()
            after = {key: to_numpy(p) for key, p in model.named_parameters()}
            statistics = recording.statistics()
            assert statistics.keys() == gradients.keys()
            for key, numbers in statistics.items():
                gradient = gradients[key]
                assert numbers["grad_norm"] == pytest.approx(norm(gradient), rel=1e-5)
                assert numbers["grad_abs_max"] == pytest.approx(np.abs(gradient).max(), rel=1e-5)
                assert numbers["grad_mean"] == pytest.approx(gradient.mean(), rel=1e-4, abs=1e-6)
                assert numbers["grad_zero_fraction"] == pytest.approx((gradient == 0).mean(), abs=1e-6)
                assert numbers["nonfinite_count"] == 0
                assert numbers["weight_norm"] == pytest.approx(norm(before[key]), rel=1e-5)
                if dtype == torch.float32:
                    rounding = torch.finfo(dtype).eps * norm(before[key])
                    moved = norm(after[key] - before[key])
                    assert numbers["update_norm"] == pytest.approx(moved, rel=1e-3, abs=rounding)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_norms_neither_overflow_nor_vanish(device: torch.device, scale: float) -> None:
    """Gradients whose squares float32 cannot hold have the right norm."""
    model = Weights(torch.float32, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recording(model, optimizer) as recording:
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * scale
        expected = {key: norm(to_numpy(p.grad)) for key, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        for key, numbers in recording.statistics().items():
            assert numbers["grad_norm"] == pytest.approx(expected[key], rel=1e-4)
            assert numbers["nonfinite_count"] == 0


def test_elements_that_are_not_finite_are_counted_exactly(device: torch.device) -> None:
    """NaN and infinities of both signs count, wherever they are."""
    model = Weights(torch.float32, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recording(model, optimizer) as recording:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad[0] = float("nan")
            parameter.grad[-1] = float("-inf")
            parameter.grad[parameter.numel() // 2] = float("inf")
        optimizer.step()
        counts = [numbers["nonfinite_count"] for numbers in recording.statistics().values()]
    assert counts == [min(3, size) for size in SIZES]


def test_numbers_that_are_not_due_are_found_when_they_are_not_finite(device: torch.device) -> None:
    """A non-finite gradient on a step that is not sampled is reported with its layer."""
    model = Weights(torch.float32, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recording(model, optimizer, log_freq=50) as recording:
        for step in range(30):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            if step == 27:
                layer = model.layers[2].grad
                assert layer is not None
                layer[:] = float("nan")
            optimizer.step()
            statistics = recording.statistics()
            if step == 27:
                assert statistics["layers.2"]["nonfinite_count"] >= 1
            elif step > 25:
                assert not statistics
