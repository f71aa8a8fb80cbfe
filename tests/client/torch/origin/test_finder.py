"""The finder names the first operation that has no finite result, and only if the result reaches loss or gradients."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gradmedic.protocol.origins import Origin
from gradmedic.torch.origin.finder import OriginFinder

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*degrees of freedom")]

Loss = Callable[[Tensor], Tensor]


def find(loss: Loss, x: Tensor | None = None) -> Origin | None:
    """Return the origin in a forward and a backward pass over `[4, 3]` zeros, or another input."""
    x = torch.zeros(4, 3) if x is None else x
    x.requires_grad_()
    with OriginFinder() as finder:
        result = loss(x).sum()
        if not math.isfinite(result.item()):
            return finder.explain([result])
        result.backward()  # type: ignore[no-untyped-call]
    assert finder.failure is None
    assert x.grad is not None
    return finder.explain([x.grad])


def attend(x: Tensor, *, row_without_key: bool) -> Tensor:
    """Return attention with a causal mask; in the other case, one row has no allowed key."""
    mask = torch.ones(4, 4, dtype=torch.bool).triu(1)
    mask[2] |= row_without_key
    return torch.softmax((x @ x.T).masked_fill(mask, -math.inf), -1) @ x


class Doubled(torch.autograd.Function):
    """A custom function whose gradient is infinite."""

    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:
        """Return twice the input."""
        return x * 2

    @staticmethod
    def backward(_ctx: object, gradient: Tensor) -> Tensor:
        """Return an infinite gradient."""
        zero = gradient * 0
        return gradient / zero


FAULTS: dict[str, tuple[Loss, str, str, str | None]] = {
    "root": (lambda x: x.sqrt(), "sqrt", "backward", "zero"),
    "root of negative": (lambda x: (x - 1).sqrt(), "sqrt", "forward", "negative"),
    "logarithm": (lambda x: x.log(), "log", "forward", "zero"),
    "log1p": (lambda x: torch.log1p(x - 1), "log1p", "forward", "out_of_range"),
    "division": (lambda x: 1 / x, "division", "forward", "zero"),
    "branch": (lambda x: torch.where(x > 0, 1 / x, x), "division", "backward", "zero"),
    "root in branch": (lambda x: torch.where(x > 0, x.sqrt(), x), "sqrt", "backward", "zero"),
    "exponential": (lambda x: (x + 100).exp(), "exp", "forward", "overflow"),
    "angle": (lambda x: (x + 1).acos(), "acos", "backward", "at_boundary"),
    "angle outside": (lambda x: (x + 2).asin(), "asin", "forward", "out_of_range"),
    "power": (lambda x: (x - 1) ** 0.5, "pow", "forward", "negative"),
    "power of zero": (lambda x: x.pow(0.5), "pow", "backward", "zero"),
    "attention": (lambda x: attend(x, row_without_key=True), "softmax", "forward", "masked_row"),
    "spread": (lambda x: x[:1].std(0), "std", "forward", "single_element"),
    "mean": (lambda x: x[:0].mean(), "mean", "forward", "empty"),
    "labels": (
        lambda x: functional.cross_entropy(x, torch.full((4,), -100)), "cross_entropy", "forward", "ignored_labels"
    ),
    "alignment": (
        lambda x: functional.ctc_loss(
            x.log_softmax(-1)[:, None], torch.ones(1, 5, dtype=torch.long), torch.tensor([4]), torch.tensor([5])
        ),
        "ctc_loss", "forward", "impossible_alignment",
    ),
    "half": (lambda x: ((x + 300).half() ** 2).float(), "pow", "forward", "overflow"),
    "normalize": (lambda x: functional.normalize(x, eps=0.0), "normalize", "forward", "zero"),
    "difference": (lambda x: x + (torch.tensor([math.inf]) - torch.tensor([math.inf])), "subtraction", "forward", None),
    "in place": (lambda x: (x * 1).sqrt_(), "sqrt", "backward", "zero"),
    "checkpoint": (lambda x: checkpoint(torch.sqrt, x, use_reentrant=False), "sqrt", "backward", "zero"),
    "reentrant": (lambda x: checkpoint(lambda y: y.sqrt(), x, use_reentrant=True), "sqrt", "backward", "zero"),
    "custom": (lambda x: Doubled.apply(x), "division", "backward", None),  # type: ignore[no-untyped-call]
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_an_operation_without_a_finite_result_is_named(name: str) -> None:
    """Operation, pass, and what was special about the input are right, and so is the file."""
    loss, operation, direction, special = FAULTS[name]
    origin = find(loss)
    assert origin is not None
    assert (origin.operation, origin.direction, origin.kind) == (operation, direction, "numeric")
    assert origin.source is not None
    assert origin.source.file.endswith("test_finder.py")
    if special is not None:
        assert origin.input is not None
        assert origin.input.special == special


def test_the_line_is_that_of_the_operation() -> None:
    """The line and its code are those where the script calls the operation, not where the loss is computed."""

    def loss(x: Tensor) -> Tensor:
        y = x * 2
        z = y.sqrt()
        return z * 3

    origin = find(loss)
    assert origin is not None
    assert origin.source is not None
    assert origin.source.text == "z = y.sqrt()"
    assert origin.source.line == inspect.getsourcelines(loss)[1] + 2


def test_counts_name_the_rows_and_the_elements() -> None:
    """The description has the number of special rows or elements, and of all."""
    origin = find(lambda x: attend(x, row_without_key=True))
    assert origin is not None
    assert origin.input is not None
    assert (origin.input.count, origin.input.total, origin.input.unit) == (1, 4, "row")
    assert origin.input.text == "all entries were -inf in 1 of 4 rows"
    x = torch.ones(4, 3)
    x[1, 2] = 0
    origin = find(lambda x: x.sqrt(), x)
    assert origin is not None
    assert origin.input is not None
    assert (origin.input.count, origin.input.total, origin.input.shape) == (1, 12, [4, 3])


def test_a_branch_that_is_not_taken_is_told() -> None:
    """The sentence contains that the gradient which arrives is zero there."""
    origin = find(lambda x: torch.where(x > 0, x.sqrt(), x))
    assert origin is not None
    assert origin.input is not None
    assert origin.input.text is not None
    assert "not taken" in origin.input.text
    taken = find(lambda x: x.sqrt())
    assert taken is not None
    assert taken.input is not None
    assert "not taken" not in (taken.input.text or "")


FINITE: dict[str, Loss] = {
    "mask": lambda x: attend(x, row_without_key=False),
    "replaced": lambda x: torch.where(x.detach().log().isfinite(), x, x * 2),
    "double where": lambda x: torch.where(x > 0, 1 / torch.where(x > 0, x, torch.ones_like(x)), x),
    "maximum": lambda x: x.masked_fill(torch.eye(4, 3, dtype=torch.bool), -math.inf).amax(-1),
    "logsumexp": lambda x: torch.logsumexp(x.masked_fill(torch.eye(4, 3, dtype=torch.bool), -math.inf), -1),
    "uninitialized": lambda x: torch.empty(4, 3).copy_(x),
}


@pytest.mark.parametrize("name", FINITE)
def test_an_infinity_that_disappears_is_not_accused(name: str) -> None:
    """Nothing is named where loss and gradients are finite."""
    assert find(FINITE[name]) is None


@pytest.mark.parametrize("name", ["mask", "replaced", "maximum", "logsumexp"])
def test_a_later_fault_is_named_in_place_of_an_infinity_that_disappears(name: str) -> None:
    """The operation that fails is the origin, although an earlier one had an infinite result."""

    def loss(x: Tensor) -> Tensor:
        return FINITE[name](x).sum() + (x - 1).log().sum()

    origin = find(loss)
    assert origin is not None
    assert (origin.operation, origin.input and origin.input.special) == ("log", "negative")


def test_an_earlier_overflow_is_named_in_place_of_the_nan_that_it_becomes() -> None:
    """Infinity minus infinity is NaN, but the exponential overflowed."""
    origin = find(lambda x: (x + 100).exp() - (x + 100).exp())
    assert origin is not None
    assert (origin.operation, origin.value) == ("exp", math.inf)


def test_nan_in_the_data_is_told_apart() -> None:
    """A batch that has NaN is the data's fault, not that of the operation that reads it."""
    data = torch.tensor([1.0, math.nan, 2.0])
    origin = find(lambda x: x * data)
    assert origin is not None
    assert origin.kind == "data"
    assert origin.input is not None
    assert (origin.input.count, origin.input.total) == (1, 3)


def test_the_module_is_the_innermost_one_that_called() -> None:
    """The path is that of the module whose code runs, also of torch's own modules, and in the backward pass."""

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    linear = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(linear, nn.Sequential(nn.Identity(), Inner()))
    nn.init.zeros_(linear.weight)
    modules = dict(model.named_modules())
    with OriginFinder(modules) as finder:
        model(torch.ones(2, 3)).sum().backward()
    assert linear.weight.grad is not None
    origin = finder.explain([linear.weight.grad])
    assert origin is not None
    assert (origin.operation, origin.module, origin.direction) == ("sqrt", "1.1", "backward")


def test_the_checks_change_nothing() -> None:
    """Loss and gradients are equal to the bit, and no random number is drawn."""
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    state, x = torch.get_rng_state(), torch.randn(4, 3)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def run() -> list[Tensor]:
        torch.set_rng_state(state)
        model.load_state_dict(buffers, strict=False)
        model.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return [
            loss.detach(),
            torch.get_rng_state(),
            *(p.grad.clone() for p in model.parameters() if p.grad is not None),
        ]

    plain = run()
    with OriginFinder(dict(model.named_modules())):
        checked = run()
    assert len(plain) == len(checked) == 8
    assert all(torch.equal(one, other) for one, other in zip(plain, checked, strict=True))
