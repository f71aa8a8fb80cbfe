"""Running statistics of normalizations when a step is not taken."""

from __future__ import annotations

import math

import pytest
import torch
from tests.client.torch.guards.guarding import SKIP, SKIP_NONFINITE, guard
from tests.client.torch.recording import Recording
from torch import Tensor, nn
from torch.nn import functional

from gradmedic.guard.spike_rule import FEWEST_NORMS
from gradmedic.torch.guards.running_statistics import RunningStatistics

pytestmark = pytest.mark.usefixtures("one_thread")


def normalized() -> nn.Sequential:
    """Return a model with a normalization that keeps running statistics."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> None:
    """Train on one batch."""
    optimizer.zero_grad()
    functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def read_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all buffers."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("value", [math.nan, 1e6])
def test_a_skipped_batch_leaves_nothing_in_them(value: float) -> None:
    """They are as after the last step that was taken, so that the evaluation stays what it was."""
    model = normalized()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        guard(recording, SKIP)
        for _ in range(FEWEST_NORMS + 1):
            step(model, optimizer, torch.randn(16, 4))
            assert not recording.log().skipped
        before = read_buffers(model)
        bad = torch.randn(16, 4)
        bad[0] = value
        bad_targets = bad.sum(dim=1, keepdim=True) * 1e6
        optimizer.zero_grad()
        functional.mse_loss(model(bad), bad_targets).backward()  # type: ignore[no-untyped-call]
        assert not torch.equal(model.get_buffer("1.running_mean"), before["1.running_mean"])
        optimizer.step()
        assert recording.log().skipped
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, before[name]), name
        step(model, optimizer, torch.randn(16, 4))
        assert not recording.log().skipped
    assert model.get_buffer("1.num_batches_tracked") == FEWEST_NORMS + 2
    assert model.eval()(torch.randn(16, 4)).isfinite().all()


def test_they_are_kept_before_the_first_step() -> None:
    """A bad batch at the very first step leaves them as they were made."""
    model = normalized()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        guard(recording, SKIP_NONFINITE)
        step(model, optimizer, torch.full((16, 4), math.nan))
        assert recording.log().skipped
    assert torch.equal(model.get_buffer("1.running_mean"), torch.zeros(8))
    assert model.get_buffer("1.num_batches_tracked") == 0


def test_a_backward_pass_that_is_still_to_come_works() -> None:
    """A graph that was built before the skipped step is still there for another optimizer."""
    model, head = normalized(), nn.Linear(1, 1)
    first, second = torch.optim.SGD(head.parameters(), lr=0.01), torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording({"model": model, "head": head}, [first, second]) as recording:
        guard(recording, SKIP_NONFINITE)
        outputs = model(torch.randn(16, 4))
        (head(outputs).sum() * math.nan).backward(inputs=list(head.parameters()), retain_graph=True)
        first.step()
        outputs.square().mean().backward()
        second.step()
        recording.log()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_only_normalizations_with_running_statistics_count() -> None:
    """What has no running statistics, or has been given others, is left alone."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True))
    statistics = RunningStatistics([model])
    model[0].register_buffer("running_mean", torch.ones(5))
    statistics.restore()
    assert torch.equal(model.get_buffer("0.running_mean"), torch.ones(5))
    statistics.keep()
    model.get_buffer("0.running_mean").fill_(math.nan)
    model.get_buffer("2.running_var").fill_(math.nan)
    statistics.restore()
    assert torch.equal(model.get_buffer("0.running_mean"), torch.ones(5))
    assert torch.equal(model.get_buffer("2.running_var"), torch.ones(3))
