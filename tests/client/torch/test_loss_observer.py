"""What the first steps of a training show of its loss."""

# mypy: disable-error-code="no-untyped-call, no-any-return"
# Distributions and `backward` of torch have no types.

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import math
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import arrays
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn import functional
from torch.nn.functional import cross_entropy as imported_before_the_watch

import gradmedic
from gradmedic.protocol.runs import Loss, Objective
from gradmedic.torch.loss_observer import LossObserver, _OutputHook

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")

CLASSES, BATCH, STEPS = 4, 32, 8
SHARES = torch.tensor([0.6, 0.25, 0.1, 0.05])
ENTROPY = float(-(SHARES * SHARES.log()).sum())

LossOf = Callable[[nn.Module, Tensor], Tensor]


def network(*last: nn.Module) -> nn.Module:
    """Return a small classifier."""
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, CLASSES), *last)


def classes(size: int = BATCH) -> Tensor:
    """Return random classes of unequal shares."""
    return torch.multinomial(SHARES, size, replacement=True)


def values(*shape: int) -> Tensor:
    """Return random targets of a regression with mean 3 and variance 4."""
    return 3.0 + 2.0 * torch.randn(*(shape or (BATCH, CLASSES)))


def as_number(loss: Tensor) -> float:
    """Return the loss as a number of Python."""
    return float(loss.detach())


def observe(
    loss_of: LossOf,
    *,
    model: nn.Module | None = None,
    log: Callable[[Tensor], Any] = lambda loss: loss,
    scale: float = 1.0,
    steps: int = STEPS,
) -> Loss:
    """Return what is known of a loss after some steps of a training."""
    model = network() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        for _ in range(steps):
            loss = loss_of(model, torch.randn(BATCH, 6))
            (loss if scale == 1.0 else loss * scale).backward()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= scale
            optimizer.step()
            optimizer.zero_grad()
            recording.watch.finish_step(log(loss)).read()
            recording.sampler.advance()
        training = recording.watch.training()
    assert training is not None
    assert training.loss is not None
    return training.loss


WAYS_TO_LOG: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda loss: loss, "detached": lambda loss: loss.detach(), "float": as_number,
    "numpy": lambda loss: loss.detach().numpy(),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS_TO_LOG)
def test_the_graph_is_seen_however_the_loss_is_logged(way: str) -> None:
    """A loss that is logged as a number has the graph of the tensor of which gradients were computed."""
    loss = observe(lambda model, x: functional.cross_entropy(model(x), classes()), log=WAYS_TO_LOG[way])
    assert loss.kind == "cross_entropy"
    assert loss.operations == ["NllLoss", "LogSoftmax", "Addmm"]
    assert (loss.classes, loss.surrogate) == (CLASSES, False)
    assert loss.constant_level == pytest.approx(ENTROPY, rel=0.1)


def test_a_softmax_that_is_computed_twice_is_seen() -> None:
    """The operations end with the last one of the model."""
    loss = observe(lambda model, x: functional.cross_entropy(model(x), classes()), model=network(nn.Softmax(dim=1)))
    assert loss.operations == ["NllLoss", "LogSoftmax", "Softmax"]
    assert loss.kind == "cross_entropy"


@pytest.mark.parametrize(("shape", "broadcasts"), [((BATCH,), True), ((BATCH, 1), False), ((1,), False)])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_targets_that_broadcast_are_seen(shape: tuple[int, ...], broadcasts: bool) -> None:
    """Outputs `[n, 1]` and targets `[n]` broadcast to `[n, n]`; equal shapes, or one number for all, do not."""
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    loss = observe(lambda model, x: functional.mse_loss(model(x), values(*shape)), model=model)
    assert loss.broadcasts is broadcasts


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squares": lambda output, target: ((output - target) ** 2).mean(),
    "target first": lambda output, target: (target - output).square().mean(),
    "absolute": lambda output, target: 0.5 * (output - target).abs().sum() / BATCH,
    "logarithm": lambda output, target: torch.log(torch.cosh(output - target)).mean(),
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_targets_that_broadcast_in_a_formula_are_seen(formula: str) -> None:
    """A loss that the script writes itself warns of nothing: outputs `[n, 1]` less targets `[n]` are `[n, n]`."""
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    compute = FORMULAS[formula]
    assert observe(lambda model, x: compute(model(x), values(BATCH)), model=model).broadcasts is True
    for target in (values(BATCH, 1), values(1), values(1, BATCH // 2)):
        sound = functools.partial(lambda model, x, target: compute(model(x), target), target=target)
        assert observe(sound, model=model).broadcasts is None
    assert observe(lambda model, x: compute(model(x)[:, 0], values(BATCH)), model=model).broadcasts is None


def test_pairs_of_outputs_are_no_broadcast() -> None:
    """A loss over all pairs, of outputs or of outputs and quantiles, gives the outputs another shape for that."""
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    losses: tuple[LossOf, ...] = (
        lambda model, x: (model(x) - model(x).T).square().mean(),
        lambda model, x: (model(x).squeeze(1).unsqueeze(1) - values(BATCH)).abs().mean(),
    )
    for loss in losses:
        assert observe(loss, model=model).broadcasts is None


def test_an_output_that_is_a_view_shows_what_computed_it() -> None:
    """A model may reshape its probabilities at its end."""
    model = network(nn.Softmax(dim=1), nn.Unflatten(1, (CLASSES, 1)), nn.Flatten())
    loss = observe(lambda model, x: functional.cross_entropy(model(x), classes()), model=model)
    assert loss.operations[-1] == "Softmax"


def written_out(model: nn.Module, x: Tensor) -> Tensor:
    """Return a cross-entropy without torch's function."""
    return -model(x).log_softmax(1).gather(1, classes()[:, None]).mean()


def with_regularizer(model: nn.Module, x: Tensor) -> Tensor:
    """Return a cross-entropy and a penalty of the weights."""
    penalty = sum((p.square().sum() for p in model.parameters()), torch.zeros(()))
    return functional.cross_entropy(model(x), classes()) + 1e-3 * penalty


KINDS: dict[str, tuple[LossOf, str]] = {
    "cross-entropy, imported": (lambda m, x: imported_before_the_watch(m(x), classes()), "cross_entropy"),
    "cross-entropy, written out": (written_out, "cross_entropy"),
    "cross-entropy with weight decay": (with_regularizer, "cross_entropy"),
    "cross-entropy, masked": (
        lambda m, x: (functional.cross_entropy(m(x), classes(), reduction="none") * (x[:, 0] > 0)).sum() / BATCH,
        "cross_entropy",
    ),
    "nll of log_softmax": (lambda m, x: functional.nll_loss(m(x).log_softmax(1), classes()), "cross_entropy"),
    "categorical": (lambda m, x: -Categorical(logits=m(x)).log_prob(classes()).mean(), "cross_entropy"),
    "gaussian": (
        lambda m, x: -Normal(m(x)[:, 0], m(x)[:, 1].exp()).log_prob(values(BATCH)).mean(), "negative_log_likelihood"
    ),
    "binary": (
        lambda m, x: functional.binary_cross_entropy(m(x).sigmoid(), x[:, :4].sigmoid()), "binary_cross_entropy"
    ),
    "squared": (lambda m, x: functional.mse_loss(m(x), values()), "squared_error"),
    "squared, written out": (lambda m, x: (m(x) - values()).pow(2).mean(), "squared_error"),
    "absolute": (lambda m, x: functional.l1_loss(m(x), values()), "absolute_error"),
    "absolute, written out": (lambda m, x: (m(x) - values()).abs().sum(), "absolute_error"),
    "huber": (lambda m, x: functional.huber_loss(m(x), values()), "huber"),
    "smooth l1": (lambda m, x: functional.smooth_l1_loss(m(x), values()), "huber"),
    "divergence": (
        lambda m, x: functional.kl_div(m(x).log_softmax(1), values().softmax(1), reduction="batchmean"),
        "kl_divergence",
    ),
    "ctc": (
        lambda m, x: functional.ctc_loss(
            m(x).log_softmax(1).reshape(8, 4, CLASSES), torch.ones(4, 3).int(), torch.full((4,), 8), torch.full((4,), 3)
        ),
        "ctc",
    ),
    "margin": (lambda m, x: functional.multi_margin_loss(m(x), classes()), "margin"),
    "triplet": (lambda m, x: functional.triplet_margin_loss(m(x), m(x + 1), m(x + 2)), "margin"),
    "hinge, written out": (lambda m, x: (1 - m(x) * values().sign()).clamp(min=0).mean(), "margin"),
    "focal": (
        lambda m, x: (lambda p: (-((1 - p) ** 2) * p.log()).mean())(m(x).softmax(1).gather(1, classes()[:, None])),
        "other",
    ),
    "preference": (
        lambda m, x: -functional.logsigmoid(m(x).log_softmax(1)[:, 0] - m(x + 1).log_softmax(1)[:, 1]).mean(), "other"
    ),
    "two kinds": (
        lambda m, x: functional.mse_loss(m(x)[:, 0], x[:, 0]) + functional.cross_entropy(m(x), classes()), "other"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_kind_of_a_loss_is_seen(name: str, scale: float) -> None:
    """A loss has its kind if it is weighed, scaled, regularized or written out; several kinds are `other`."""
    loss_of, kind = KINDS[name]
    loss = observe(loss_of, log=as_number, scale=scale)
    assert loss.kind == kind
    assert loss.surrogate is not True


# --- constant predictors ----------------------------------------------------------------------------------------------


class Bias(nn.Module):
    """A predictor whose output is the same for every example."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Return the constant."""
        return self.bias.expand(len(x), CLASSES)


def with_ignored(x: Tensor) -> Tensor:
    """Return classes, a third of which are to be ignored."""
    return classes(len(x)).where(x[:, 0] > -0.4, -100)


def divided_by_count(m: nn.Module, x: Tensor) -> Tensor:
    """Return a cross-entropy that the script averages itself, over a number of examples that changes."""
    targets = with_ignored(x)
    return functional.cross_entropy(m(x), targets, reduction="sum") / (targets >= 0).sum()


WEIGHT = torch.tensor([1.0, 2.0, 5.0, 0.5])
LEVELS: dict[str, LossOf] = {
    "cross-entropy": lambda m, x: functional.cross_entropy(m(x), classes(len(x))),
    "sum": lambda m, x: functional.cross_entropy(m(x), classes(len(x)), reduction="sum"),
    "average of the script": lambda m, x: functional.cross_entropy(m(x), classes(len(x)), reduction="none").mean(),
    "average of the script over a changing number": divided_by_count,
    "class weights": lambda m, x: functional.cross_entropy(m(x), classes(len(x)), weight=WEIGHT),
    "class weights, sum": lambda m, x: functional.cross_entropy(m(x), classes(len(x)), WEIGHT, reduction="sum"),
    "label smoothing": lambda m, x: functional.cross_entropy(m(x), classes(len(x)), label_smoothing=0.2),
    "label smoothing and weights": lambda m, x: functional.cross_entropy(
        m(x), classes(len(x)), WEIGHT, label_smoothing=0.2
    ),
    "ignored targets": lambda m, x: functional.cross_entropy(m(x), with_ignored(x)),
    "probabilities": lambda m, x: functional.cross_entropy(m(x), (2 * values(len(x), 4)).softmax(1)),
    "probabilities with weights": lambda m, x: functional.cross_entropy(
        m(x), (2 * values(len(x), 4)).softmax(1), WEIGHT, label_smoothing=0.1
    ),
    "weighed loss": lambda m, x: 0.3 * functional.cross_entropy(m(x), classes(len(x))),
    "decisions": lambda m, x: functional.binary_cross_entropy_with_logits(
        m(x), (torch.rand(len(x), 4) < SHARES).float()
    ),
    "weighed decisions": lambda m, x: functional.binary_cross_entropy_with_logits(
        m(x), (torch.rand(len(x), 4) < SHARES).float(), weight=WEIGHT, pos_weight=WEIGHT.flip(0)
    ),
    "squared error": lambda m, x: functional.mse_loss(m(x), values(len(x), 4)),
    "sum of squared errors": lambda m, x: functional.mse_loss(m(x), values(len(x), 4), reduction="sum"),
    "absolute error": lambda m, x: functional.l1_loss(m(x), values(len(x), 4)),
    "huber": lambda m, x: functional.huber_loss(m(x), values(len(x), 4), delta=0.5),
    "smooth l1": lambda m, x: functional.smooth_l1_loss(m(x), values(len(x), 4), beta=3.0),
    "two kinds": lambda m, x: (
        functional.mse_loss(m(x)[:, 0], values(len(x))) + functional.cross_entropy(m(x), classes(len(x)))
    ),
}
"""Losses whose targets do not depend on the inputs, so that no predictor is better than the best constant."""
SUMS = {"sum", "class weights, sum", "sum of squared errors"}


@pytest.mark.parametrize("name", LEVELS)
def test_the_constant_level_is_what_a_trained_constant_gets(name: str) -> None:
    """A bias that is trained on many batches ends at the level that the first batches gave, in the loss's own units."""
    loss_of = LEVELS[name]
    level = observe(loss_of, log=as_number).constant_level
    assert level is not None
    bias = Bias()
    optimizer = torch.optim.Adam(bias.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    rows = 2_000
    for _ in range(150):
        optimizer.zero_grad()
        loss_of(bias, torch.randn(rows, 6)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        reached = sum(float(loss_of(bias, torch.randn(rows, 6))) for _ in range(20)) / 20
    if name in SUMS:
        reached *= BATCH / rows
    assert level == pytest.approx(reached, rel=0.1)


def test_a_batch_of_one_example_gives_a_level() -> None:
    """Batches are pooled: the spread of the targets is that between them."""

    def loss_of(model: nn.Module, x: Tensor) -> Tensor:
        return functional.mse_loss(model(x[:1]), values(1, CLASSES))

    assert observe(loss_of, log=as_number, steps=30).constant_level == pytest.approx(4.0, rel=0.3)


def test_accumulated_losses_are_pooled() -> None:
    """A loop logs the sum of the parts of a batch, of each of which it computed gradients."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        for _ in range(STEPS):
            optimizer.zero_grad()
            total = 0.0
            for _ in range(4):
                loss = functional.cross_entropy(model(torch.randn(BATCH, 6)), classes()) / 4
                loss.backward()
                total += loss.item()
            optimizer.step()
            recording.watch.finish_step(total).read()
    training = recording.watch.training()
    assert training is not None
    assert training.loss is not None
    assert training.loss.constant_level == pytest.approx(ENTROPY, rel=0.05)


UNTOLD: dict[str, LossOf] = {
    "written out": lambda m, x: (m(x) - values()).pow(2).mean(),
    "two outputs of one function": lambda m, x: (
        functional.mse_loss(m(x)[:, 0], values(BATCH)) + functional.mse_loss(m(x)[:, 1], 10 * values(BATCH))
    ),
    "a further term": lambda m, x: functional.mse_loss(m(x), values()) + m(x).exp().mean() * torch.rand(()),
    "targets of one class": lambda m, x: functional.cross_entropy(m(x), torch.zeros(BATCH).long()),
    "targets with a gradient": lambda m, x: functional.mse_loss(m(x), m(x + 1)),
    "no target": lambda m, x: functional.triplet_margin_loss(m(x), m(x + 1), m(x + 2)),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_a_level_that_cannot_be_told_is_none(name: str) -> None:
    """The level is in the units of the loss: it is unknown if the loss has other parts, or its targets are not seen."""
    assert observe(UNTOLD[name], log=as_number).constant_level is None


# --- surrogates -------------------------------------------------------------------------------------------------------


def reinforce(model: nn.Module, x: Tensor) -> Tensor:
    """Return the loss of a policy gradient whose rewards are all positive."""
    policy = Categorical(logits=model(x))
    loss: Tensor = -(policy.log_prob(policy.sample()) * torch.rand(BATCH)).mean()
    return loss


def stored_actions(model: nn.Module, x: Tensor) -> Tensor:
    """Return the loss of a policy gradient of stored actions, without a distribution of torch."""
    return -(model(x).log_softmax(1)[torch.arange(BATCH), classes()] * torch.randn(BATCH)).mean()


def weighed_cross_entropy(model: nn.Module, x: Tensor) -> Tensor:
    """Return the loss of a policy gradient by way of a cross-entropy."""
    return (functional.cross_entropy(model(x), classes(), reduction="none") * torch.randn(BATCH)).mean()


def clipped_ratio(model: nn.Module, x: Tensor) -> Tensor:
    """Return the loss of PPO, with an entropy bonus and the error of a value."""
    policy = Normal(model(x)[:, 0], model(x)[:, 1].exp())
    log_prob = policy.log_prob(torch.randn(BATCH))
    advantage = torch.randn(BATCH)
    ratio = (log_prob - log_prob.detach()).exp()
    clipped = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    value_error = functional.mse_loss(model(x)[:, 2], values(BATCH))
    return -clipped + 0.5 * value_error - 0.01 * policy.entropy().mean()


def critic(model: nn.Module, x: Tensor) -> Tensor:
    """Return the loss of a Wasserstein critic with a penalty of its gradient."""
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return model(x - 1).mean() - model(x).mean() + 10 * (gradient.norm(dim=1) - 1).square().mean()


def contrast(model: nn.Module, x: Tensor) -> Tensor:
    """Return the loss of a contrast between the examples of the batch."""
    first, second = functional.normalize(model(x)), functional.normalize(model(x + 0.1))
    return functional.cross_entropy(first @ second.T / 0.1, torch.arange(BATCH))


SURROGATES = {
    "own samples": reinforce, "stored actions": stored_actions, "weighed cross-entropy": weighed_cross_entropy,
    "clipped ratio": clipped_ratio, "critic": critic, "contrast": contrast,
}  # fmt: skip


@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate_is_seen(name: str) -> None:
    """A loss whose size measures no progress is marked, however it is logged."""
    for log in WAYS_TO_LOG.values():
        loss = observe(SURROGATES[name], log=log)
        assert loss.surrogate is True
        assert loss.kind == ("cross_entropy" if name == "contrast" else "other")


def autoencoder(model: nn.Module, x: Tensor) -> Tensor:
    """Return the loss of a variational autoencoder, whose latent sample has log-probabilities of both signs."""
    posterior, prior = Normal(model(x), 1.0), Normal(torch.zeros(CLASSES), 1.0)
    latent = posterior.rsample()
    divergence = (posterior.log_prob(latent) - prior.log_prob(latent)).sum(1).mean()
    return functional.mse_loss(latent, values()) + 0.1 * divergence


def temporal_difference(model: nn.Module, x: Tensor) -> Tensor:
    """Return the loss of temporal-difference learning."""
    with torch.no_grad():
        target = values(BATCH) + 0.9 * model(x + 1).max(dim=1).values
    return functional.mse_loss(model(x)[:, 0], target)


NO_SURROGATES: dict[str, tuple[LossOf, bool | None]] = {
    "classes": (lambda m, x: functional.cross_entropy(m(x), classes()), False),
    "masked classes": (
        lambda m, x: (functional.cross_entropy(m(x), classes(), reduction="none") * (x[:, 0] > 0)).mean(), False
    ),
    "smoothed and weighed classes": (
        lambda m, x: functional.cross_entropy(m(x), classes(), WEIGHT, label_smoothing=0.1), False
    ),
    "values": (lambda m, x: functional.mse_loss(m(x), values()), False),
    "values that the model computes": (lambda m, x: functional.mse_loss(m(x), m(x + 1)), None),
    "values that the model computes without a gradient": (temporal_difference, None),
    "distillation": (lambda m, x: -(values().softmax(1) * m(x).log_softmax(1)).sum(1).mean(), None),
    "likelihood": (lambda m, x: -(Categorical(logits=m(x)).log_prob(classes()) * torch.rand(BATCH)).mean(), None),
    "autoencoder": (autoencoder, False),
    "log-likelihood that the model returns": (lambda m, x: -m(x).mean(), None),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_SURROGATES)
def test_a_loss_that_measures_progress_is_no_surrogate(name: str) -> None:
    """A comparison with given targets measures progress; of others it is not known. None of these is a surrogate."""
    loss_of, expected = NO_SURROGATES[name]
    assert observe(loss_of, log=as_number).surrogate is expected


@pytest.mark.parametrize("are_apart", [False, True])
def test_networks_that_train_against_each_other_are_seen(are_apart: bool) -> None:
    """Two optimizers whose losses compare outputs with two constants belong to adversaries, in one watch or in two."""
    generator, discriminator = nn.Linear(3, 6), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in (generator, discriminator)]
    ones, zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
    compare = nn.BCEWithLogitsLoss()
    with contextlib.ExitStack() as stack:
        if are_apart:
            stack.enter_context(Recording(generator, optimizers[0]))
            recording = stack.enter_context(Recording(discriminator, optimizers[1]))
        else:
            networks = {"generator": generator, "discriminator": discriminator}
            recording = stack.enter_context(Recording(networks, optimizers))
        for _ in range(STEPS):
            real, fake = torch.randn(BATCH, 6), generator(torch.randn(BATCH, 3))
            loss = compare(discriminator(real), ones) + compare(discriminator(fake.detach()), zeros)
            optimizers[1].zero_grad()
            loss.backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            compare(discriminator(fake), ones).backward()
            optimizers[0].step()
            recording.watch.finish_step(loss.item()).read()
    training = recording.watch.training()
    assert training is not None
    assert training.loss is not None
    assert training.loss.surrogate is True


# --- what the observation leaves alone --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["own samples", "clipped ratio", "critic"])
def test_a_training_is_the_same_to_the_bit(name: str) -> None:
    """Weights and random state are those of a training without a watch."""

    def train(*, is_watched: bool) -> tuple[bytes, Tensor]:
        torch.manual_seed(3)
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recording = Recording(model, optimizer) if is_watched else None
        for _ in range(STEPS):
            loss = SURROGATES[name](model, torch.randn(BATCH, 6))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if recording is not None:
                recording.watch.finish_step(loss.item()).read()
        if recording is not None:
            recording.watch.close()
        return b"".join(array.tobytes() for array in arrays(model).values()), torch.get_rng_state()

    (weights, state), (same_weights, same_state) = train(is_watched=True), train(is_watched=False)
    assert weights == same_weights
    assert torch.equal(state, same_state)


def test_nothing_of_a_batch_or_a_graph_is_kept() -> None:
    """When the script forgets its tensors, they are gone, also while the first steps are observed.

    Only the newest targets are kept until the end of their step.
    """
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        policy = Categorical(logits=model(torch.randn(BATCH, 6)))
        action, target = policy.sample(), classes()
        output = model(torch.randn(BATCH, 6))
        loss = functional.cross_entropy(output, target) - (policy.log_prob(action) * torch.randn(BATCH)).mean()
        loss.backward()
        references = [weakref.ref(each) for each in (policy, action, target, output, loss)]
        del policy, action, target, output, loss
        gc.collect()
        assert [reference() for reference in references[:2] + references[3:]] == [None] * 4
        recording.log()
        gc.collect()
        assert references[2]() is None
        assert not recording.watch._loss_observer.is_over


def test_closing_leaves_torch_as_it_was() -> None:
    """After the last watch is closed, and in a copy of the model, nothing observes."""
    before = (dict(vars(functional)), Categorical.log_prob, Categorical.sample, torch.autograd.backward)
    models = [network(), network()]
    recordings = [Recording(model, torch.optim.SGD(model.parameters(), lr=0.1)) for model in models]
    assert torch.autograd.backward is not before[3]
    copy.deepcopy(models[0])(torch.ones(1, 6))
    pickle.loads(pickle.dumps(models[0]))(torch.ones(1, 6))  # noqa: S301  # this test wrote it
    recordings[0].watch.close()
    assert torch.autograd.backward is not before[3]
    foreign = torch.autograd.backward = functools.partial(torch.autograd.backward)
    recordings[1].watch.close()
    assert torch.autograd.backward is foreign  # what another library put there stays
    torch.autograd.backward = before[3]
    assert (dict(vars(functional)), Categorical.log_prob, Categorical.sample, torch.autograd.backward) == before
    assert not any(model._forward_hooks for model in models)


def test_the_first_steps_are_observed_and_no_others() -> None:
    """The hooks are gone after a few steps, or after many calls in a script that never logs; the facts stay.

    The losses over classes stay wrapped: their targets are remembered until the end of each step.
    """
    torch._dynamo.utils.counters.clear()
    model, backward, mse_loss = network(), torch.autograd.backward, functional.mse_loss
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        for _ in range(20):
            loss = functional.cross_entropy(model(torch.randn(1, 6)), classes(1))
            assert has_output_hook(model)
            assert torch.autograd.backward is not backward
            assert functional.mse_loss is not mse_loss
            loss.backward()
            recording.watch.finish_step(loss).read()
        assert not has_output_hook(model)
        assert torch.autograd.backward is backward
        assert functional.mse_loss is mse_loss
    with Recording(model, optimizer) as recording:
        for _ in range(300):
            functional.cross_entropy(model(torch.randn(1, 6)), classes(1)).backward()
        assert not has_output_hook(model)


def has_output_hook(model: nn.Module) -> bool:
    """Return whether the loss is observed at the model's output."""
    return any(isinstance(hook, _OutputHook) for hook in model._forward_hooks.values())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_model_may_call_a_loss_function() -> None:
    """`torch.jit.script` compiles torch's own functions while they are observed."""

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, CLASSES)

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return functional.cross_entropy(self.linear(x), target) + functional.mse_loss(x, x)

    model = WithLoss()
    with Recording(model, torch.optim.SGD(model.parameters(), lr=0.1)):
        scripted = torch.jit.script(model)
        assert as_number(scripted(torch.ones(2, 6), torch.tensor([0, 1]))) > 0


def test_arguments_of_all_kinds_are_passed_on() -> None:
    """An observed loss function takes positional and named arguments, and raises its own errors."""
    logits, target = torch.randn(3, CLASSES, requires_grad=True), torch.tensor([0, 1, 2])
    expected = functional.cross_entropy(logits, target, WEIGHT, ignore_index=1, reduction="sum")
    observer = LossObserver([network()], optimizers=1)
    try:
        seen = functional.cross_entropy(target=target, input=logits, weight=WEIGHT, ignore_index=1, reduction="sum")
        assert torch.equal(seen, expected)
        with pytest.raises(TypeError, match="target"):
            functional.cross_entropy(logits)  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="not a valid value for reduction"):
            functional.mse_loss(logits, logits.detach(), reduction="median")
    finally:
        observer.close()


def test_every_waiting_instance_measures_the_first_target() -> None:
    """Several watched models that train together all have the size of the first target."""
    observers = [LossObserver([nn.Linear(3, 1)], optimizers=1) for _ in range(4)]
    functional.mse_loss(torch.zeros(3, requires_grad=True), torch.full((3,), 2.0))
    assert [observer.target_rms for observer in observers] == [2.0] * 4
    for observer in observers:
        observer.close()


@pytest.mark.parametrize("logged", [None, "a text", [1.0]])
def test_without_a_logged_number_the_kind_is_known(logged: Any) -> None:
    """A script that logs no loss, or something else in its place, shows its loss when it computes gradients."""
    loss = observe(lambda m, x: functional.mse_loss(m(x), values()), log=lambda _loss: logged)
    assert (loss.kind, loss.constant_level) == ("squared_error", None)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_loss_is_unknown() -> None:
    """The graph of a compiled step is one operation, which shows no kind."""
    torch._dynamo.reset()
    model = network()

    @torch.compile(backend="aot_eager")
    def loss_of(model: nn.Module, x: Tensor) -> Tensor:
        return functional.cross_entropy(model(x), torch.zeros(BATCH).long())

    loss = observe(loss_of, model=model, log=as_number)
    torch._dynamo.reset()
    assert (loss.kind, loss.operations, loss.constant_level, loss.surrogate) == (None, ["CompiledFunction"], None, None)


def test_a_loss_that_is_not_finite_gives_no_level() -> None:
    """A run that starts with NaN has a kind, and no level that is not finite."""
    loss = observe(lambda m, x: functional.mse_loss(m(x), values() * math.nan), log=as_number)
    assert (loss.kind, loss.constant_level) == ("squared_error", None)


def test_the_service_has_the_loss_of_a_run(service_url: str, client: gradmedic.Client) -> None:
    """The facts are stored with the run, beside the objective that the script declared."""
    model = network(nn.Softmax(dim=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradmedic.init("loss", base_url=service_url, objective="maximize accuracy") as run:
        run.watch(model, optimizer)
        for _ in range(STEPS):
            loss = functional.cross_entropy(model(torch.randn(BATCH, 6)), classes())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(loss=loss.item(), accuracy=0.5)
    training = client.runs.get(run.id).training
    assert training is not None
    assert training.loss is not None
    assert training.loss.operations == ["NllLoss", "LogSoftmax", "Softmax"]
    assert (training.loss.kind, training.loss.classes, training.loss.surrogate) == ("cross_entropy", CLASSES, False)
    assert training.loss.constant_level == pytest.approx(ENTROPY, rel=0.1)
    assert training.objective == Objective(kind="metric", metric="accuracy", direction="maximize")
