"""Operations that are guarded at numbers where their slopes are infinite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

GUARDED = remedy("guard_operations")
Function = Callable[[Tensor], Tensor]

SINGULAR: dict[str, tuple[Function, list[float], list[float]]] = {
    "sqrt": (torch.sqrt, [0.0, -1e-9, 4.0], [0.0, 0.0, 2.0]),
    "method": (lambda x: x.sqrt(), [0.0, 9.0], [0.0, 3.0]),
    "power": (lambda x: x**0.5, [0.0, 16.0], [0.0, 4.0]),
    "negative power": (lambda x: x.pow(-2), [0.0, 2.0], [0.0, 0.25]),
    "rsqrt": (torch.rsqrt, [0.0, 4.0], [0.0, 0.5]),
    "reciprocal": (torch.reciprocal, [0.0, 4.0], [0.0, 0.25]),
    "number over": (lambda x: 3.0 / x, [0.0, 4.0], [0.0, 0.75]),
    "quotient": (lambda x: x / (2 * x), [0.0, 4.0], [0.0, 0.5]),
    "log": (torch.log, [0.0, 1.0], [-18.420681, 0.0]),
    "log1p": (lambda x: torch.log1p(-x), [1.0, 0.0], [-15.942385, 0.0]),
    "exp": (torch.exp, [1000.0, 0.0], [torch.finfo(torch.float32).max ** 0.9, 1.0]),
    "acos": (torch.acos, [1.0, 0.0], [0.0014142, 1.5707964]),
}
"""Functions, with arguments and the guarded results."""


@pytest.mark.parametrize("name", SINGULAR)
def test_results_and_gradients_are_finite(name: str) -> None:
    """At a singular argument the result is finite and the gradient zero; elsewhere both are torch's, to the bit."""
    function, values, expected = SINGULAR[name]
    x, plain = (torch.tensor(values, requires_grad=True) for _ in range(2))
    function(plain)[-1:].sum().backward()  # type: ignore[no-untyped-call]
    applied = apply(nn.Linear(1, 1), None, GUARDED)
    result = function(x)
    result.sum().backward()  # type: ignore[no-untyped-call]
    applied.close()
    torch.testing.assert_close(result.detach(), torch.tensor(expected), rtol=1e-4, atol=2e-5)
    assert x.grad is not None
    assert plain.grad is not None
    assert torch.equal(x.grad[:-1], torch.zeros(len(values) - 1))
    assert torch.equal(x.grad[-1:], plain.grad[-1:])
    assert torch.equal(result[-1:], function(plain)[-1:])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.softmax(x, -1),
        lambda x: torch.softmax(x, dim=-1),
        lambda x: x.softmax(-1),
        lambda x: nn.functional.softmax(x, dim=-1),
        nn.Softmax(dim=-1),
    ],
    ids=["function", "named", "method", "functional", "module"],
)
def test_a_row_that_is_masked_as_a_whole_has_no_weights(function: Function) -> None:
    """Its softmax and its gradient are 0; other rows have torch's own, to the bit."""
    values = [[-torch.inf, -torch.inf, -torch.inf], [-torch.inf, 1.0, 2.0], [0.5, 1.0, 2.0]]
    x, plain = (torch.tensor(values, requires_grad=True) for _ in range(2))
    weights = torch.tensor([1.0, 2.0, 4.0])
    (function(plain)[1:] * weights).sum().backward()  # type: ignore[no-untyped-call]
    applied = apply(nn.Linear(1, 1), None, GUARDED)
    result = function(x)
    (result * weights).sum().backward()  # type: ignore[no-untyped-call]
    applied.close()
    assert torch.equal(result[0], torch.zeros(3))
    assert torch.equal(result[1:], function(plain)[1:])
    assert x.grad is not None
    assert plain.grad is not None
    assert torch.equal(x.grad, plain.grad.nan_to_num(0.0))


def test_a_training_through_a_root_of_zero_stays_finite() -> None:
    """A distance between an example and itself breaks a training, and none whose root is guarded."""

    def distances(model: nn.Module) -> Tensor:
        made = model(batch())
        value: Tensor = ((made[:, None] - made) ** 2).sum(-1).sqrt().mean()
        return value

    for given in ([], [GUARDED]):
        model = perceptron()
        optimizer = sgd(model)
        applied = apply(model, optimizer, *given)
        for _ in range(2):
            step(model, optimizer, distances)
        assert applied.reason_to_end() is None
        applied.close()
        assert all(bool(p.isfinite().all()) for p in model.parameters()) is bool(given)


def test_a_training_without_singular_numbers_is_the_controls() -> None:
    """Where no argument is singular, the weights are the control's to the bit, with a checkpoint too."""

    def loss(model: nn.Module) -> Tensor:
        out = checkpoint(model, batch(), use_reentrant=False)
        assert isinstance(out, Tensor)
        return (out.square() + 1).sqrt().mean() / out.exp().mean()

    trained = []
    for given in ([], [GUARDED]):
        model = perceptron()
        optimizer = sgd(model)
        applied = apply(model, optimizer, *given)
        for _ in range(3):
            step(model, optimizer, loss)
        applied.close()
        trained.append(list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*trained, strict=True))


def test_what_is_no_singularity_stays() -> None:
    """Integers, results in place, and computations without gradients are torch's."""
    applied = apply(nn.Linear(1, 1), None, GUARDED)
    zeros = torch.zeros(2)
    with torch.no_grad():
        assert bool(torch.log(zeros).isinf().all())
    assert bool(zeros.clone().log_().isinf().all())
    assert bool((torch.ones(2) / torch.zeros(2, dtype=torch.long)).isinf().all())
    assert torch.equal(torch.tensor([0.0, 2.0]) ** 2, torch.tensor([0.0, 4.0]))
    applied.close()
    assert bool(torch.log(zeros).isinf().all())
    assert torch._C._len_torch_function_stack() == 0


def test_a_script_without_such_operations_has_no_place() -> None:
    """A script that computes no such operation is not applicable after the first step."""
    model = perceptron()
    optimizer = sgd(model)
    applied = apply(model, optimizer, GUARDED)
    step(model, optimizer, lambda m: m(batch()).square().mean())
    assert "computes no root" in str(applied.reason_to_end())


def test_two_watches_share_one_guard() -> None:
    """A script that watches two models has one guard, which names what it guards."""
    first, second = perceptron(), perceptron()
    both = [apply(first, one := sgd(first), GUARDED), apply(second, other := sgd(second), GUARDED)]
    assert torch._C._len_torch_function_stack() == 1
    step(first, one, lambda m: m(batch()).square().sum().sqrt())
    step(second, other, lambda m: m(batch()).square().sum().sqrt())
    assert [applied.reason_to_end() for applied in both] == [None, None]
    assert both[0].places["guard_operations"] == ["sqrt"]
