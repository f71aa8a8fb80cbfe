"""The dynamic scaling of losses, for scripts that scale none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradmedic.torch.remedies import AppliedRemedies, NotApplicable
from gradmedic.torch.remedies.gradients.loss_scale import GROWTH_INTERVAL, INITIAL_SCALE, LossScale

SCALE = remedy("scale_loss")


def squared(model: nn.Module) -> Tensor:
    """Return a loss that stays small."""
    value: Tensor = model(batch().to(next(model.parameters()).dtype)).float().square().mean()
    return value


def test_the_script_reads_unscaled_gradients() -> None:
    """In float32 a training with the remedy has the same gradients, accumulated and clipped, and the same weights."""
    results = []
    for is_scaled in (False, True):
        model = perceptron()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        applied = apply(model, optimizer, SCALE) if is_scaled else None
        norms = []
        for _ in range(5):
            optimizer.zero_grad()
            for part in (0.25, 0.75):
                (part * squared(model)).backward()  # type: ignore[no-untyped-call]
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
            optimizer.step()
        results.append((norms, [p.detach() for p in model.parameters()]))
        if applied is not None:
            assert "nothing is computed in float16" in str(applied.reason_to_end())
            applied.close()
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other)


def test_other_networks_and_inputs_have_unscaled_gradients() -> None:
    """Inputs, and networks that no watched optimizer updates, have the gradients that they have without the remedy."""
    results = []
    for is_scaled in (False, True):
        model, other = perceptron(), perceptron(nn.Tanh())
        head = nn.Linear(2, 6)
        if is_scaled:
            apply(model, sgd(model), SCALE)
        x = batch().requires_grad_()
        for _ in range(2):  # gradients add up
            other(head(model(x))).square().sum().backward()
            other(batch(2)).sum().backward()
        found = [x.grad, *(p.grad for each in (model, head, other) for p in each.parameters())]
        results.append([g.clone() for g in found if g is not None])
    for one, expected in zip(*results, strict=True):
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_inside_of_a_scaled_backward_pass(reentrant: bool) -> None:
    """The backward pass of a checkpoint, which runs inside a scaled one, is not scaled once more."""

    def gradients(*, is_scaled: bool) -> list[Tensor]:
        model = perceptron(nn.Tanh()).half()
        optimizer = sgd(model)
        applied = apply(model, optimizer, SCALE) if is_scaled else None
        out = checkpoint(model[2:], checkpoint(model[:2], x, use_reentrant=reentrant), use_reentrant=reentrant)
        (1e-4 * out.float().square().sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e6)
        if applied is not None:
            applied.close()
        return [g.clone().float() for p in model.parameters() if (g := p.grad) is not None]

    x = batch().half().requires_grad_()
    for one, expected in zip(gradients(is_scaled=True), gradients(is_scaled=False), strict=True):
        torch.testing.assert_close(one, expected, rtol=2e-2, atol=1e-6)


def test_a_static_scale_that_overflows_is_repaired() -> None:
    """In half precision with a static scale that is too large, the loss is NaN without the remedy and falls with it."""

    def train(*, has_remedy: bool) -> list[float]:
        model = perceptron(nn.Tanh(), width=32).half()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        applied = apply(model, optimizer, SCALE) if has_remedy else None
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = squared(model)
            (loss * 2.0**24).backward()  # type: ignore[no-untyped-call]
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(2.0**24)
            optimizer.step()
            losses.append(loss.item())
            if applied is not None:
                assert applied.reason_to_end() is None
        if applied is not None:
            applied.close()
        return losses

    assert train(has_remedy=False)[-1] != train(has_remedy=False)[-1]  # NaN
    losses = train(has_remedy=True)
    assert losses[-1] < 0.7 * losses[0]


def test_autocast_to_float16_counts() -> None:
    """A model with float32 parameters computes in float16 under float16 autocast."""
    model = perceptron()
    optimizer = sgd(model)
    applied = apply(model, optimizer, SCALE)

    def loss(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            out = model(batch())
        value: Tensor = out.float().square().mean()
        return value

    step(model, optimizer, loss)
    assert applied.reason_to_end() is None
    applied.close()


def test_steps_that_overflow_are_skipped_and_marked() -> None:
    """A step that overflows leaves weights and moments as they are, and is marked as skipped for a `Watch`."""
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters())
    applied = apply(model, optimizer, SCALE)
    step(model, optimizer, squared)
    before = [p.detach().clone() for p in model.parameters()]
    moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
    step(model, optimizer, lambda m: squared(m) * torch.inf)
    found: Any = optimizer
    assert float(found.found_inf) == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, optimizer.state.values(), strict=True))
    step(model, optimizer, squared)
    assert float(found.found_inf) == 0.0
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    applied.close()


def test_the_scale_falls_fast_and_rises_slowly() -> None:
    """Each overflow in a row halves the scale once more than the one before; a hundred finite steps double it."""
    scale = LossScale()
    bad, good = [torch.tensor(torch.inf)], [torch.tensor(1.0)]
    assert scale.update(bad)
    assert scale.update(bad)
    assert scale._next_value == INITIAL_SCALE / 2 / 4
    for _ in range(GROWTH_INTERVAL):
        assert not scale.update(good)
    assert scale._next_value == INITIAL_SCALE / 4


def test_two_watched_models_share_one_scale() -> None:
    """Losses are scaled once, for any number of watched models; after `close` torch has its own function again."""
    original = torch.autograd.backward
    one, other = perceptron(), perceptron()
    all_applied = [apply(model, sgd(model), SCALE) for model in (one, other)]
    loss = squared(one) + squared(other)
    loss.backward()  # type: ignore[no-untyped-call]
    for applied in all_applied:
        applied.close()
    assert torch.autograd.backward is original
    reference = perceptron()
    squared(reference).backward()  # type: ignore[no-untyped-call]
    for model in (one, other):
        for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, expected.grad)


def test_scripts_with_a_loss_scaler_are_refused() -> None:
    """A script with a loss scaler is refused: at once if watch() was given the scaler, else at the first step."""
    model = perceptron()
    with pytest.raises(NotApplicable, match="dynamically already"):
        AppliedRemedies(model, sgd(model), [SCALE], has_scaler=True)
    optimizer = sgd(model)
    applied = apply(model, optimizer, SCALE)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(squared(model)).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    assert "dynamically already" in str(applied.reason_to_end())
    applied.close()
