"""Gradients that the script clips while a `Watch` observes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import backward, norm, perceptron
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")


def by_imported_name() -> Callable[..., Tensor]:
    """Return the clipping function as a script has it that imported it before any run began."""
    return nn.utils.clip_grad_norm_


CLIP_IMPORTED_BEFORE = by_imported_name()


@pytest.mark.parametrize("clip", [lambda *a: nn.utils.clip_grad_norm_(*a), CLIP_IMPORTED_BEFORE], ids=["now", "before"])
def test_gradients_are_measured_before_they_are_clipped(clip: Callable[..., Tensor]) -> None:
    """The norm is that before clipping, and the coefficient that of clipping, also if it was imported before."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        for _ in range(3):
            optimizer.zero_grad()
            backward(model, scale=1e4)
            expected = {name: norm(p.grad) for name, p in model.named_parameters()}
            total = clip(model.parameters(), 1.0)
            clipped = {name: norm(p.grad) for name, p in model.named_parameters()}
            optimizer.step()
            measurement = recording.log()
            statistics = recording.by_layer(measurement)
            for name, numbers in statistics.items():
                assert numbers["grad_norm"] == pytest.approx(expected[name], rel=1e-6)
                assert numbers["update_norm"] == pytest.approx(0.1 * clipped[name], rel=1e-4)
            assert measurement.clip_coefficient == pytest.approx(1.0 / (float(total) + 1e-6), rel=1e-6)
        training = recording.watch.training()
        assert training is not None
        assert training.clips_gradients is True


def test_clipping_that_changes_nothing_has_the_coefficient_one() -> None:
    """Gradients below the limit have the coefficient 1."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        backward(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1e6)
        optimizer.step()
        assert recording.log().clip_coefficient == 1.0


def test_clipping_by_value_and_twice_counts_from_before_the_first() -> None:
    """With two kinds of clipping in one step, statistics are those before both."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        backward(model, scale=1e4)
        expected = {name: norm(p.grad) for name, p in model.named_parameters()}
        nn.utils.clip_grad_value_(model.parameters(), 0.5)
        nn.utils.clip_grad_norm_(list(model.parameters()), 0.1)
        optimizer.step()
        statistics = recording.statistics()
        assert {n: s["grad_norm"] for n, s in statistics.items()} == pytest.approx(expected, rel=1e-6)


def test_gradients_changed_after_clipping_are_measured_again() -> None:
    """What was measured before clipping is used only if nothing else has changed the gradient since."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        backward(model, scale=1e4)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        first = model.get_parameter("0.weight")
        assert first.grad is not None
        first.grad.mul_(3.0)
        expected = norm(first.grad)
        optimizer.step()
        assert recording.statistics()["0.weight"]["grad_norm"] == pytest.approx(expected, rel=1e-6)
        optimizer.zero_grad()
        backward(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.zero_grad()  # the script gives this step up
        backward(model)
        expected = norm(first.grad)
        optimizer.step()
        assert recording.statistics()["0.weight"]["grad_norm"] == pytest.approx(expected, rel=1e-6)


def test_closing_leaves_no_trace() -> None:
    """After the last `close`, torch has its own functions, and models and optimizers have no hooks."""
    originals = (nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_, nn.utils.clip_grad._clip_grads_with_norm_)
    models = [perceptron(), perceptron()]
    recordings = [Recording(m, torch.optim.SGD(m.parameters(), lr=0.1)) for m in models]
    assert nn.utils.clip_grad_value_ is not originals[1]
    recordings[0].watch.close()
    recordings[0].watch.close()
    assert nn.utils.clip_grad_value_ is not originals[1]
    recordings[1].watch.close()
    assert (
        nn.utils.clip_grad_norm_,
        nn.utils.clip_grad_value_,
        nn.utils.clip_grad._clip_grads_with_norm_,
    ) == originals
    assert not models[0]._forward_pre_hooks
    assert not recordings[0].watch.optimizers[0]._optimizer_step_pre_hooks
