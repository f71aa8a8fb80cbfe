"""Updates of Adam that are clipped tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn
from torch.optim import Optimizer

from gradmedic.torch.remedies import AppliedRemedies, NotApplicable

pytestmark = pytest.mark.usefixtures("one_thread")

CLIP = remedy("clip_update", threshold=1.0)


def losses(spike: float) -> list[Callable[[nn.Module], Tensor]]:
    """Return the losses of a training in which the gradient jumps once."""
    scales = [1.0] * 20 + [spike] + [1.0] * 5
    return [lambda m, i=i, scale=scale: scale * m(batch(i)).square().mean() for i, scale in enumerate(scales)]  # type: ignore[misc]


def stable_adamw(model: nn.Module, all_losses: list[Callable[[nn.Module], Tensor]], **settings: float) -> None:
    """Train with StableAdamW as Wortsman et al. 2023 write it (algorithm 2), in float64."""
    rate, decay, epsilon = settings["lr"], settings["weight_decay"], settings["eps"]
    parameters = list(model.parameters())
    first = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    second = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for t, loss in enumerate(all_losses, start=1):
        gradients = torch.autograd.grad(loss(model), parameters)
        for p, g, v, u in zip(parameters, gradients, first, second, strict=True):
            g = g.double()
            v.mul_(0.9).add_(0.1 * g)
            u.mul_(0.99).add_(0.01 * g * g)
            corrected = u / (1 - 0.99**t)
            rms = float((g * g / corrected.clamp(min=epsilon**2)).mean().sqrt())
            eta = rate / max(1.0, rms)
            with torch.no_grad():
                wide = p.double()
                wide = wide - eta * decay * wide - eta * (v / (1 - 0.9**t)) / (corrected.sqrt() + epsilon)
                p.copy_(wide)


@pytest.mark.parametrize("fused", [False, True])
def test_the_updates_are_those_of_stable_adamw(fused: bool) -> None:
    """Weights after a spike are those of the paper's algorithm, decay included."""
    settings = {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-8}
    by_remedy, by_hand = perceptron(nn.Tanh()), perceptron(nn.Tanh())
    optimizer = torch.optim.AdamW(
        by_remedy.parameters(), lr=0.01, weight_decay=0.1, eps=1e-8, betas=(0.9, 0.99), fused=fused
    )
    apply(by_remedy, optimizer, CLIP)
    for loss in losses(1e3):
        step(by_remedy, optimizer, loss)
    stable_adamw(by_hand, losses(1e3), **settings)
    for one, other in zip(by_remedy.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam])
def test_updates_within_the_bound_stay_to_the_bit(make: Callable[..., Optimizer]) -> None:
    """With a bound that no update reaches, the weights are those without the remedy, to the bit."""
    results = []
    for given in ([], [remedy("clip_update", threshold=1e5)]):
        model = perceptron()
        optimizer = make(model.parameters(), lr=0.01, weight_decay=0.1)
        apply(model, optimizer, *given)
        for loss in losses(10.0):
            step(model, optimizer, loss)
        results.append(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_spike_moves_the_weights_less() -> None:
    """The step of a spike is at most a step of the rate, where Adam alone takes ten."""

    def distance(*given: object) -> float:
        model = perceptron()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.0, 0.999))
        apply(model, optimizer, *given)  # type: ignore[arg-type]
        for loss in losses(1e4)[:20]:
            step(model, optimizer, loss)
        before = model[0].weight.detach().clone()
        step(model, optimizer, losses(1e4)[20])
        return float((model[0].weight.detach() - before).square().mean().sqrt())

    assert distance(CLIP) < 0.011
    assert distance() > 0.03


def test_skipped_steps_and_closures() -> None:
    """A skipped step changes nothing, and a closure gets the same update."""
    plain, closed = perceptron(), perceptron()
    for model, is_closed in ((plain, False), (closed, True)):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        apply(model, optimizer, CLIP, remedy("skip_nonfinite_steps"))
        for loss in [*losses(1e3), lambda m: m(batch()).sum() * torch.nan]:

            def closure(loss: Callable[[nn.Module], Tensor] = loss, model: nn.Module = model) -> float:
                model.zero_grad()
                value = loss(model)
                value.backward()  # type: ignore[no-untyped-call]
                return value.item()

            if is_closed:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
    for one, other in zip(plain.parameters(), closed.parameters(), strict=True):
        assert torch.equal(one, other)
        assert bool(one.isfinite().all())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (sgd, "SGD keeps no second moment"),
        (lambda m: torch.optim.RMSprop(m.parameters()), "RMSprop keeps no second moment"),
    ],
)
def test_optimizers_without_a_second_moment(make: Callable[[nn.Module], Optimizer], reason: str) -> None:
    """An optimizer that keeps no second moment as Adam does is refused."""
    model = perceptron()
    with pytest.raises(NotApplicable, match=reason):
        AppliedRemedies(model, make(model), [CLIP])


class Renamed(torch.optim.Adam):
    """An optimizer with betas whose state has other names."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Do nothing."""


def test_an_optimizer_with_another_state_is_not_applicable() -> None:
    """An optimizer whose state has no second moment is found at the first step."""
    model = perceptron()
    optimizer = Renamed(model.parameters())
    applied = apply(model, optimizer, CLIP)
    assert applied.reason_to_end() is None
    step(model, optimizer, losses(1.0)[0])
    assert applied.reason_to_end() == "clip_update: Renamed keeps no second moment under the names of torch's Adam"
