"""Standardized inputs and targets, compared with scripts that standardize them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn
from torch.nn import functional

from gradmedic.torch.remedies import AppliedRemedies

INPUTS, TARGETS = remedy("standardize_inputs"), remedy("standardize_targets")
UNITS = torch.tensor([1.0, 10.0, 100.0, 0.01, 5.0, 3.0])
Error = Callable[[Tensor, Tensor], Tensor]

SQUARED: dict[str, Error] = {
    "mse_loss": functional.mse_loss,
    "module": lambda o, y: nn.MSELoss()(o, y),
    "difference": lambda o, y: ((o - y) ** 2).mean(),
    "reversed": lambda o, y: (y - o).pow(2).mean(),
    "product": lambda o, y: ((d := o.squeeze(1) - y.squeeze(1)) * d).mean(),
    "square": lambda o, y: torch.square(torch.sub(y, o)).mean(),
}
ABSOLUTE: dict[str, Error] = {
    "l1_loss": functional.l1_loss,
    "difference": lambda o, y: (o - y).abs().mean(),
}


def regression() -> nn.Sequential:
    """Return a model with one output, always the same."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))


def raw_inputs(seed: int = 1) -> Tensor:
    """Return inputs in units of their own, far from zero."""
    return batch(seed, rows=16) * UNITS + 7 * UNITS


def raw_targets(seed: int = 2) -> Tensor:
    """Return targets in hundreds."""
    return 300 + 80 * batch(seed, rows=16, columns=1)


def test_inputs_are_those_of_the_first_batch_standardized() -> None:
    """The model gets (x - mean) / deviation with the moments of the first batch, also later and in evaluation."""
    model, reference = regression(), regression()
    applied = apply(model, None, INPUTS)
    first = raw_inputs(1)
    mean, deviation = first.mean(0), first.std(0, unbiased=False)
    for seed in (1, 2, 3):
        x = raw_inputs(seed)
        torch.testing.assert_close(model(x), reference((x - mean) / deviation), rtol=1e-4, atol=1e-5)
        model.eval()
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(raw_inputs(5)), model(raw_inputs(5)), rtol=0, atol=0)
    assert applied.reason_to_end() is None


@pytest.mark.parametrize(
    ("first", "shape", "reduced"),
    [
        (nn.Linear(6, 2), (5, 4, 6), (0, 1)),
        (nn.Conv2d(3, 2, 1), (5, 3, 4, 4), (0, 2, 3)),
        (nn.Conv1d(3, 2, 1), (5, 3, 4), (0, 2)),
    ],
    ids=["over time", "images", "signals"],
)
def test_the_moments_are_those_of_each_feature_or_channel(
    first: nn.Module, shape: tuple[int, ...], reduced: tuple[int, ...]
) -> None:
    """Moments are those of each feature over time, and of each channel in a convolution."""
    x = 50 + 9 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    reference = copy.deepcopy(first)
    apply(first, None, INPUTS)
    standard = (x - x.mean(reduced, keepdim=True)) / x.std(reduced, unbiased=False, keepdim=True)
    torch.testing.assert_close(first(x), reference(standard), rtol=1e-3, atol=1e-4)


def test_constant_features_and_keywords() -> None:
    """A constant feature is only centred, and an input may be given by name."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, *, flags: Tensor, values: Tensor) -> Tensor:
            assert flags.dtype == torch.long
            return values * self.weight

    model = Named()
    apply(model, None, INPUTS)
    values = torch.tensor([[4.0, 10.0], [4.0, 30.0]])
    answer = model(flags=torch.ones(2, dtype=torch.long), values=values)
    torch.testing.assert_close(answer.detach(), torch.tensor([[0.0, -1.0], [0.0, 1.0]]))


@pytest.mark.parametrize(
    ("model", "x", "reason"),
    [
        (lambda: nn.Embedding(9, 3), torch.tensor([1, 2]), "not of floating point"),
        (regression, batch(rows=64), "standardized already"),
    ],
    ids=["tokens", "standard"],
)
def test_inputs_that_cannot_be_standardized_are_refused_with_a_reason(
    model: Callable[[], nn.Module], x: Tensor, reason: str
) -> None:
    """Tokens, and inputs that are standardized already, are refused."""
    made = model()
    applied = apply(made, optimizer := sgd(made), INPUTS)
    step(made, optimizer, lambda m: m(x).sum())
    assert reason in str(applied.reason_to_end())


class Masked(nn.Module):
    """Takes tokens, and a mask of those that count."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of those that count."""
        out: Tensor = (self.embedding(tokens) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return out


def test_the_mask_of_tokens_is_unchanged() -> None:
    """Tokens and a mask of zeros and ones are not standardized."""
    model = Masked()
    applied = apply(model, optimizer := sgd(model), INPUTS)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert torch.equal(model(tokens, mask), model.forward(tokens, mask))
    step(model, optimizer, lambda m: m(tokens, mask).sum())
    assert "not of floating point" in str(applied.reason_to_end())


def test_one_example_has_no_moments() -> None:
    """One example without gradients is ignored; training on one example, or on infinite inputs, ends the trial."""
    model = regression()
    applied = apply(model, optimizer := sgd(model), INPUTS)
    with torch.no_grad():
        model(raw_inputs()[:1])
    step(model, optimizer, lambda m: m(raw_inputs()).sum())
    assert applied.reason_to_end() is None
    for x, reason in ((raw_inputs()[:1], "has one example"), (raw_inputs() / 0.0, "not finite")):
        model = regression()
        applied = apply(model, optimizer := sgd(model), INPUTS)
        step(model, optimizer, lambda m, x=x: m(x).sum())  # type: ignore[misc]
        assert reason in str(applied.reason_to_end())


def compare_trainings(loss: Error, degree: int) -> tuple[AppliedRemedies, list[float], list[float]]:
    """Train with the remedy on raw targets, and by hand on standardized ones, and compare the weights."""
    model, reference = regression(), regression()
    optimizer, other = sgd(model, 0.01), sgd(reference, 0.01)
    applied = apply(model, optimizer, TARGETS)
    with_remedy, by_hand = [], []
    for seed in range(2, 8):
        x, y = batch(seed, rows=16), raw_targets(seed)
        seen = torch.cat([raw_targets(each) for each in range(2, seed + 1)])
        mean, deviation = seen.mean(), seen.std(unbiased=False)
        with_remedy.append(step(model, optimizer, lambda m, x=x, y=y: loss(m(x), y)))  # type: ignore[misc]
        scaled = (y - mean) / deviation
        by_hand.append(step(reference, other, lambda m, x=x, y=scaled: loss(m(x), y)) * float(deviation) ** degree)  # type: ignore[misc]
        assert applied.reason_to_end() is None
    for one, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-3, atol=1e-5)
    x = batch(9, rows=16)
    torch.testing.assert_close(model.eval()(x), reference(x) * deviation + mean, rtol=1e-3, atol=1e-2)
    return applied, with_remedy, by_hand


@pytest.mark.parametrize("name", SQUARED)
def test_a_squared_error_of_raw_targets_trains_as_on_standardized_ones(name: str) -> None:
    """The weights are those of standardized targets, and the loss has the script's units from the first step."""
    _, with_remedy, by_hand = compare_trainings(SQUARED[name], degree=2)
    assert with_remedy == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.parametrize("name", ABSOLUTE)
def test_an_absolute_error_of_raw_targets_trains_as_on_standardized_ones(name: str) -> None:
    """The same holds for absolute errors, whose gradient has another scale."""
    _, with_remedy, by_hand = compare_trainings(ABSOLUTE[name], degree=1)
    assert with_remedy == pytest.approx(by_hand, rel=1e-3)


def test_both_together_learn_what_neither_does() -> None:
    """A regression in its own units does not learn; with both remedies its loss falls to a tenth."""
    for remedies, learns in (((), False), ((INPUTS, TARGETS), True)):
        model = regression()
        optimizer = sgd(model, 0.02)
        if remedies:
            apply(model, optimizer, *remedies)
        losses = []
        for seed in range(60):
            x = raw_inputs(seed)
            y = 300 + 80 * (x / UNITS - 7).sum(1, keepdim=True)
            losses.append(step(model, optimizer, lambda m, x=x, y=y: functional.mse_loss(m(x), y)))  # type: ignore[misc]
        assert (losses[-1] < 0.1 * losses[0]) is learns


class Functional(nn.Module):
    """Calls an activation as a function, in the module whose output is compared."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the prediction."""
        out: Tensor = self.b(torch.tanh(self.a(x)))
        return out


@pytest.mark.parametrize("is_cast", [False, True], ids=["as it is", "cast"])
def test_targets_far_from_zero_under_autocast(is_cast: bool) -> None:
    """Predictions of ten thousand are scaled in single precision, because bfloat16 would round them to 64."""
    model = regression()
    applied = apply(model, optimizer := sgd(model, 0.01), TARGETS)
    y = 1e4 + batch(2, rows=16, columns=1)

    def loss(model: nn.Module) -> Tensor:
        out = model(batch(rows=16))
        return functional.mse_loss(out.to(torch.float32) if is_cast else out, y)

    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            step(model, optimizer, loss)
    assert applied.reason_to_end() is None
    with torch.autocast("cpu", torch.bfloat16):
        assert float((model(batch(rows=16)) - y).detach().abs().max()) < 10
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_targets_together_with_changed_functions() -> None:
    """The remedy works together with one that changes functions of the model."""
    model, reference = Functional(), regression()
    reference[1] = nn.ELU()
    both = (remedy("replace_activation", activation="ELU"), TARGETS)
    applied = apply(model, optimizer := sgd(model, 0.01), *both)
    applied_to_reference = apply(reference, other := sgd(reference, 0.01), TARGETS)
    for seed in range(2, 5):
        losses = [
            step(trained_model, of, lambda m, s=seed: functional.mse_loss(m(batch(s, rows=16)), raw_targets(s)))  # type: ignore[misc]
            for trained_model, of in ((model, optimizer), (reference, other))
        ]
        assert losses[0] == pytest.approx(losses[1])
        assert applied.reason_to_end() is applied_to_reference.reason_to_end() is None
    assert torch._C._len_torch_function_stack() == 0


def test_the_moments_are_those_of_many_batches() -> None:
    """A first batch without the rare large targets does not set their scale; after a hundred losses it stays."""
    model = regression()
    applied = apply(model, optimizer := sgd(model, 1e-3), TARGETS)
    for index in range(120):
        y = raw_targets(index)
        if index % 3 == 1 or index > 110:
            y[0] = 40_000.0
        loss = step(model, optimizer, lambda m, y=y: functional.mse_loss(m(batch(rows=16)), y))  # type: ignore[misc]
        assert loss < 40_000.0**2
        assert applied.reason_to_end() is None
    assert torch._C._len_torch_function_stack() == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    seen = []
    for index in range(100):
        seen.append(raw_targets(index))
        if index % 3 == 1:
            seen[-1][0] = 40_000.0
    torch.testing.assert_close(model(batch())[0, 0], torch.cat(seen).mean(), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("choose", ["index", "gather"])
def test_targets_of_chosen_outputs(choose: str) -> None:
    """The value of an action, which is one of a row of outputs, is compared with raw targets."""
    torch.manual_seed(3)
    model = nn.Linear(6, 3)
    action, rows = torch.arange(16) % 3, torch.arange(16)

    def loss(m: nn.Module) -> Tensor:
        out = m(batch(rows=16))
        chosen = out[rows, action] if choose == "index" else out.gather(1, action[:, None]).squeeze(1)
        return functional.mse_loss(chosen, raw_targets().squeeze(1))

    applied = apply(model, optimizer := sgd(model, 0.1), TARGETS)
    losses = []
    for _ in range(60):
        losses.append(step(model, optimizer, loss))
        assert applied.reason_to_end() is None
    variance = float(raw_targets().var(correction=0))
    assert losses[0] < 10 * variance
    assert losses[-1] < 0.5 * variance


def test_models_that_wait_for_their_losses_together() -> None:
    """Two models may be called before either has its loss; after the step, no function mode is left."""
    models = {name: regression() for name in "ab"}
    optimizer = torch.optim.SGD([p for m in models.values() for p in m.parameters()], lr=0.01)
    applied = AppliedRemedies(models, optimizer, [TARGETS])
    applied.attach_before_measurement()
    applied.attach_after_measurement()
    outputs = [m(batch(rows=16)) for m in models.values()]
    sum(functional.mse_loss(o, raw_targets()) for o in outputs).backward()  # type: ignore[union-attr]
    optimizer.step()
    assert applied.reason_to_end() is None
    assert applied.places["standardize_targets"] == ["a", "b"]
    assert torch._C._len_torch_function_stack() == 0


def test_scripts_that_call_parts_are_refused() -> None:
    """A script that calls only parts of the model is refused."""
    for standardize in (INPUTS, TARGETS):
        first, second, third = model = regression()
        applied = apply(model, optimizer := sgd(model), standardize)
        step(model, optimizer, lambda _: functional.mse_loss(third(second(first(raw_inputs()))), raw_targets()))  # noqa: B023
        assert "calls parts of the model" in str(applied.reason_to_end())


class Pair(nn.Module):
    """Returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output twice."""
        out = self.layer(x)
        return out, out


@pytest.mark.parametrize(
    ("model", "loss", "reason"),
    [
        (perceptron, lambda m: functional.cross_entropy(m(batch()), torch.zeros(8, dtype=torch.long)), "was seen"),
        (regression, lambda m: functional.huber_loss(m(batch(rows=16)), raw_targets()), "has a threshold"),
        (regression, lambda m: functional.mse_loss(m(batch(rows=16)), batch(rows=16, columns=1)), "already"),
        (Pair, lambda m: functional.mse_loss(m(batch(rows=16))[0], raw_targets()), "something else than one tensor"),
    ],
    ids=["classes", "threshold", "standard", "two outputs"],
)
def test_targets_that_cannot_be_standardized_are_refused_with_a_reason(
    model: Callable[[], nn.Module], loss: Callable[[nn.Module], Tensor], reason: str
) -> None:
    """Other losses, several outputs and standardized targets are refused; after the step, no function mode is left."""
    made = model()
    applied = apply(made, optimizer := sgd(made), TARGETS)
    step(made, optimizer, loss)
    assert reason in str(applied.reason_to_end())
    assert torch._C._len_torch_function_stack() == 0
