"""Replaced activations, compared with models that are written with the other activation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gradmedic.protocol.remedies import REMEDIES
from gradmedic.protocol.remedy_kind import Choice

TO_ELU = remedy("replace_activation", activation="ELU")
_CHOICE = REMEDIES["replace_activation"].parameters["activation"]
assert isinstance(_CHOICE, Choice)


class Functional(nn.Module):
    """Calls activations as functions, in every style, and ends in one."""

    def __init__(self, act: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(7))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities."""
        act = self.act
        x = act(self.layers[0](x)) if act else torch.tanh(self.layers[0](x))
        x = act(self.layers[1](x)) if act else self.layers[1](x).sigmoid()
        x = act(self.layers[2](x)) if act else functional.relu(self.layers[2](x), inplace=True)
        x = self.layers[3](x)
        if act:
            x = act(x)
        else:
            x.tanh_()  # the result is not looked at
        x = act(self.layers[4](x)) if act else functional.tanh(self.layers[4](x))
        x = act(self.layers[5](x)) if act else torch.exp(self.layers[5](x))
        return torch.sigmoid(self.layers[6](x))


class Gated(nn.Module):
    """Has a gated cell that is written by hand, and a squeeze-and-excitation."""

    def __init__(self, inner: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(6, 6) for _ in range(5))
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return one step of the cell."""
        update, candidate = torch.sigmoid(self.a(x)), torch.tanh(self.b(x))
        state = (1 - update) * x + update * candidate
        excited = torch.sigmoid(self.d(self.inner(self.c(state))))
        out: Tensor = self.e(state * excited)
        return out


class Shared(nn.Module):
    """Calls one activation module behind two layers, and optionally behind the last one too."""

    def __init__(self, *, is_output: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        self.act = nn.Tanh()
        self.is_output = is_output

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        out: Tensor = self.c(self.act(self.b(self.act(self.a(x)))))
        return self.act(out) if self.is_output else out


class Loop(nn.Module):
    """Computes hidden layers and output with one line of code."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return x


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the gradients of the squared output."""
    model.zero_grad()
    (model(x) ** 2).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_computes_as(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Compare outputs and gradients of two models with the same weights, in two calls."""
    for _ in range(2):
        torch.testing.assert_close(model(x), other(x), rtol=0, atol=0)
        for one, reference in zip(gradients(model, x), gradients(other, x), strict=True):
            torch.testing.assert_close(one, reference, rtol=0, atol=0)


@pytest.mark.parametrize("name", _CHOICE.values)
def test_modules_become_the_other_activation(name: str) -> None:
    """A Sequential with one activation computes, to the bit, what it would with the other."""
    model = perceptron(nn.Sigmoid())
    apply(model, None, remedy("replace_activation", activation=name))
    assert_computes_as(model, perceptron(getattr(nn, name)()), batch())


def test_functions_become_the_other_activation_and_the_output_stays() -> None:
    """Functions, methods, in-place calls and exponentials are replaced, but not the activation at the end."""
    model = Functional()
    applied = apply(model, None, TO_ELU)
    assert_computes_as(model, Functional(functional.elu), batch())
    assert len(applied.places["replace_activation"]) == 6


class Own(nn.Module):
    """Calls an activation of its own behind each hidden layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, whose last product is no activation."""
        x = self.function(self.b(self.function(self.a(x))))
        out: Tensor = self.c(x)
        return out * out


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x,
        lambda x: torch.mul(x, x),
        lambda x: x**3,
        lambda x: x.clamp(min=0),
        lambda x: torch.clamp_min(input=x, min=0),
        torch.sin,
        torch.sinh,
        torch.expm1,
        torch.abs,
    ],
    ids=["x*x", "mul", "cube", "clamp", "clamp_min", "sin", "sinh", "expm1", "abs"],
)
def test_functions_of_the_script_itself_become_the_other_activation(function: Callable[[Tensor], Tensor]) -> None:
    """What a script computes between two layers, element by element, is an activation."""
    model = Own(function)
    applied = apply(model, None, TO_ELU)
    assert_computes_as(model, Own(functional.elu), batch())
    assert applied.places["replace_activation"]


@pytest.mark.parametrize(
    "function", [lambda x: x * 2.0, lambda x: x**1, lambda x: x * x.detach()], ids=["scaled", "power 1", "two tensors"]
)
def test_a_product_of_something_else_is_no_activation(function: Callable[[Tensor], Tensor]) -> None:
    """A scaled signal, and the product of two tensors, stay."""
    model = Own(function)
    optimizer = sgd(model)
    applied = apply(model, optimizer, TO_ELU)
    model(batch()).sum().backward()
    optimizer.step()
    assert applied.reason_to_end() is not None


def test_gates_stay() -> None:
    """An activation that is multiplied with another signal stays; the hidden activation beside it is replaced."""
    model = Gated()
    applied = apply(model, None, TO_ELU)
    assert_computes_as(model, Gated(functional.elu), batch())
    assert len(applied.places["replace_activation"]) == 1


def test_a_shared_activation_is_replaced_where_it_is_hidden_everywhere() -> None:
    """A module behind two hidden layers is replaced at both; one that also ends the model stays, with a reason."""
    model, reference = Shared(is_output=False), Shared(is_output=False)
    reference.act = nn.ELU()  # type: ignore[assignment]
    apply(model, None, TO_ELU)
    assert_computes_as(model, reference, batch())
    model = Shared(is_output=True)
    optimizer = sgd(model)
    applied = apply(model, optimizer, TO_ELU)
    model(batch()).sum().backward()
    optimizer.step()
    assert "act uses one activation for several purposes" in str(applied.reason_to_end())


def test_calls_of_one_line_of_code_are_distinguished() -> None:
    """If one line of a loop computes hidden layers and output, only the calls for hidden layers are replaced."""
    model = Loop()
    apply(model, None, TO_ELU)
    x = batch()
    hidden = x
    for layer in list(model.layers)[:-1]:
        hidden = functional.elu(layer(hidden))
    torch.testing.assert_close(model(x), torch.sigmoid(model.layers[-1](hidden)), rtol=0, atol=0)


def test_a_transformers_hidden_activation() -> None:
    """In torch's encoder layer the hidden activation is replaced, also in evaluation, where torch has a fast path."""
    torch.manual_seed(3)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    reference = copy.deepcopy(model)
    for layer in reference.layers:
        layer.activation = functional.elu
        layer.activation_relu_or_gelu = 0
    apply(model, None, TO_ELU)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    assert_computes_as(model, reference, x)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), reference(x))


def test_a_transformer_with_padding_in_evaluation() -> None:
    """With padding in evaluation, the layers get padded tensors in place of nested ones, and the other activation."""
    torch.manual_seed(3)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    reference = copy.deepcopy(model)
    reference.use_nested_tensor = False
    for layer in reference.layers:
        layer.activation = functional.elu
        layer.activation_relu_or_gelu = 0
    apply(model, None, TO_ELU)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    model(x, src_key_padding_mask=padding)
    for each in (model, copy.deepcopy(model)):
        with torch.no_grad():
            answer, expected = (m.eval()(x, src_key_padding_mask=padding) for m in (each, reference))
        torch.testing.assert_close(answer[~padding], expected[~padding])


def bend(x: Tensor) -> Tensor:
    """Return what a script's own function makes of hidden units and of outputs."""
    return torch.tanh(x)


class Head(nn.Module):
    """The last part of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        return bend(self.layer(x))


class Headed(nn.Module):
    """Calls a function, and a module that calls the same function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.head = nn.Linear(6, 6), Head()

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        out: Tensor = self.head(bend(self.layer(x)))
        return out


def test_a_function_that_modules_share_is_replaced_where_it_is_hidden() -> None:
    """Of a function that a model and a part of it call, only the hidden calls are replaced."""
    model = Headed()
    applied = apply(model, None, TO_ELU)
    expected = torch.tanh(model.head.layer(functional.elu(model.layer(batch()))))
    for _ in range(2):
        torch.testing.assert_close(model(batch()), expected)
    assert applied.places["replace_activation"] == ["forward"]


class Masked(nn.Module):
    """Multiplies hidden units with a mask, which is an argument."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.activation = nn.Linear(6, 6), nn.Linear(6, 2), activation

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the output."""
        out: Tensor = self.b(self.activation(self.a(x)) * mask.float()[:, None])
        return out


def test_a_mask_is_no_gate() -> None:
    """An activation that is multiplied with an input is replaced, unless its values are between 0 and 1."""
    model, mask = Masked(), torch.ones(8)
    applied = apply(model, None, TO_ELU)
    torch.testing.assert_close(model(batch(), mask), Masked(functional.elu)(batch(), mask))
    assert applied.places["replace_activation"] == ["forward"]
    gated = Masked(torch.sigmoid)
    applied = apply(gated, optimizer := sgd(gated), TO_ELU)
    step(gated, optimizer, lambda m: m(batch(), mask).sum())
    assert "is a gate" in str(applied.reason_to_end())


class Blocks(nn.Module):
    """Recomputes modules, or one of its own functions, in the backward pass."""

    def __init__(self, *, of_modules: bool, reentrant: bool) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(6, 6), perceptron(nn.Tanh(), width=6), nn.Linear(2, 2)
        self.of_modules, self.reentrant = of_modules, reentrant

    def inner(self, x: Tensor) -> Tensor:
        """Return the hidden units."""
        return torch.tanh(self.block[0](x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        x = self.first(x)
        if self.of_modules:
            out: Tensor = self.last(checkpoint(self.block, x, use_reentrant=self.reentrant))
            return out
        hidden: Tensor = checkpoint(self.inner, x, use_reentrant=self.reentrant)
        last: Tensor = self.last(self.block[-1](hidden))
        return last


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_modules_have_exact_gradients(reentrant: bool) -> None:
    """A module that a checkpoint recomputes has the gradients of the replaced activation."""
    torch.manual_seed(3)
    model = Blocks(of_modules=True, reentrant=reentrant)
    reference = copy.deepcopy(model)
    for i in (1, 3, 5):
        reference.block[i] = nn.ELU()
    apply(model, None, TO_ELU)
    assert_computes_as(model, reference, batch().requires_grad_())


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_functions_are_refused_with_a_reason(reentrant: bool) -> None:
    """A function that is recomputed outside of its module is refused: its gradients would be wrong."""
    torch.manual_seed(3)
    model = Blocks(of_modules=False, reentrant=reentrant)
    plain = copy.deepcopy(model)
    optimizer = sgd(model)
    applied = apply(model, optimizer, TO_ELU)
    assert_computes_as(model, plain, batch().requires_grad_())
    optimizer.step()
    assert "recomputed by a checkpoint" in str(applied.reason_to_end())


class Nested(nn.Module):
    """A block that calls another of its own kind."""

    def __init__(self, inner: nn.Module | None) -> None:
        super().__init__()
        self.layer, self.inner = nn.Linear(6, 6), inner

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        if self.inner is None:
            return torch.tanh(self.layer(x))  # the model's output in the innermost block
        out: Tensor = self.inner(torch.tanh(self.layer(x)))
        return out


def test_nested_blocks_of_one_class_are_distinguished() -> None:
    """Each call of the same code is changed for its own module, also when one module calls another."""
    torch.manual_seed(3)
    model = Nested(Nested(Nested(None)))
    applied = apply(model, None, TO_ELU)
    x = batch()
    a, b, c = (m.layer for m in model.modules() if isinstance(m, Nested))
    expected = torch.tanh(c(functional.elu(b(functional.elu(a(x))))))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert applied.places["replace_activation"] == ["forward", "inner"]


def test_an_error_in_forward_leaves_no_mode_behind() -> None:
    """After the script's forward has raised, functions outside of the model are unchanged."""
    model = Functional()
    apply(model, None, TO_ELU)
    model(batch())
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.ones(2, 3))
    assert torch.equal(torch.tanh(torch.ones(1)), torch.ones(1).tanh())
    assert float(torch.relu(torch.tensor(-1.0))) == 0.0
    assert_computes_as(model, Functional(functional.elu), batch())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), "no hidden activation"),
        (lambda: perceptron(nn.ELU()), "every hidden activation is ELU already"),
        (lambda: nn.Sequential(nn.Linear(6, 2), nn.Sigmoid()), "no hidden activation"),
    ],
    ids=["linear", "the same", "output only"],
)
def test_models_without_a_place_are_refused_with_a_reason(model: Callable[[], Any], reason: str) -> None:
    """A model without another hidden activation is refused after the first step."""
    made = model()
    optimizer = sgd(made)
    applied = apply(made, optimizer, TO_ELU)
    assert applied.reason_to_end() is None
    made(batch()).sum().backward()
    optimizer.step()
    assert reason in str(applied.reason_to_end())
