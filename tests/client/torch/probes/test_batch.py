"""The batch of a step on which something is non-finite: non-finite inputs, and labels that the loss ignores."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import perceptron
from torch import Tensor, nn
from torch.nn import functional

from gradmedic.protocol.probes import name_metric
from gradmedic.recording.draft import Draft, complete_step
from gradmedic.recording.step import Step
from gradmedic.torch import loss_functions
from gradmedic.torch.probes import batch as probes_of_batch
from gradmedic.torch.step_measurement import StepMeasurement

INPUTS = name_metric("input_nonfinite_count")
LABELS = name_metric("ignored_label_share")
ORIGINAL = functional.cross_entropy

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")


def log(recording: Recording, loss: Tensor | float | None) -> Step:
    """Return the step that a run would send."""
    number = loss.item() if isinstance(loss, Tensor) else loss
    measurement = recording.watch.finish_step(loss)
    recording.sampler.advance()
    return complete_step(Draft(0, 0.0, number, None, {}, [measurement], None))


def train(
    batches: list[Tensor],
    loss_of: Callable[[Tensor], Tensor] = lambda output: output.square().mean(),
    *,
    log_freq: int = 1,
    model: nn.Module | None = None,
) -> list[Step]:
    """Train on some batches, and return the steps."""
    model = model or perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    steps = []
    with Recording(model, optimizer, log_freq=log_freq) as recording:
        for x in batches:
            optimizer.zero_grad()
            loss = loss_of(model(x))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps.append(log(recording, loss))
    return steps


def batch(*, nonfinite: int = 0) -> Tensor:
    """Return a batch with some NaN and infinite elements."""
    x = torch.randn(8, 6)
    x.view(-1)[:nonfinite] = math.nan
    x.view(-1)[: nonfinite // 2] = math.inf
    return x


@pytest.mark.parametrize("log_freq", [1, 100])
def test_non_finite_inputs_are_counted_on_the_step_that_they_break(log_freq: int) -> None:
    """A batch with five bad numbers is counted, on a sampled step and on one that is not due."""
    steps = train([*(batch() for _ in range(25)), batch(nonfinite=5)], log_freq=log_freq)
    assert not any(INPUTS in step.metrics for step in steps[:-1])
    assert steps[-1].metrics[INPUTS] == 5


def test_a_finite_input_of_a_broken_step_is_known_to_be_finite() -> None:
    """A loss that is NaN for another reason has a count of zero."""
    steps = train([batch()], lambda output: (output - output).log().mean() * 0)
    assert not steps[0].is_finite
    assert steps[0].metrics[INPUTS] == 0


def test_what_was_counted_on_an_ordinary_step_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device every step is counted, because it may not be ordinary; only a broken one is sent."""
    monkeypatch.setattr(StepMeasurement, "may_need_evidence", True)
    steps = train([batch(), batch(), batch(nonfinite=1)])
    assert [INPUTS in step.metrics for step in steps] == [False, False, True]


def test_other_processes_may_have_a_bad_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes train together, a count of zero clears this process alone, and is left out."""
    monkeypatch.setattr(probes_of_batch, "get_group_size", lambda: 2)
    assert INPUTS not in train([batch()], lambda output: output.mean() * math.nan)[0].metrics
    assert train([batch(nonfinite=4)])[0].metrics[INPUTS] == 4


def test_integers_are_finite() -> None:
    """A language model reads numbers of tokens: its input is known to be finite."""
    model = nn.Sequential(nn.Embedding(10, 6), perceptron())
    steps = train([torch.randint(10, (8,))], lambda output: output.mean() * math.nan, model=model)
    assert steps[0].metrics[INPUTS] == 0


def test_a_loss_without_a_step_is_examined() -> None:
    """Also a step is examined whose loss is NaN and whose update the script leaves out."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        loss = model(x := batch(nonfinite=2)).mean()
        assert log(recording, loss.item()).metrics[INPUTS] == 2
        assert x.isnan().any()


def test_an_input_that_the_script_changed_since_is_left_out() -> None:
    """A buffer that was overwritten after the call shows nothing of the call."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        x = batch()
        loss = model(x).mean()
        x.fill_(math.nan)
        assert INPUTS not in log(recording, loss.item() * math.nan).metrics


def test_a_batch_that_is_gone_is_not_cleared() -> None:
    """Of two batches of a step, the first is gone: a finite second one does not show that both were finite."""
    model = perceptron()
    with Recording(model, torch.optim.SGD(model.parameters(), lr=0.01)) as recording:
        for _ in range(2):
            model(batch()).sum().backward()
        assert INPUTS not in log(recording, math.nan).metrics
        model(batch()).sum().backward()
        assert log(recording, math.nan).metrics[INPUTS] == 0


def test_nothing_is_kept_of_a_batch_beyond_its_step() -> None:
    """The newest batch lives until the step ends; what an operation computed, and its graph, do not live for us."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        x = batch()
        plain = weakref.ref(x)
        model(x).sum().backward()
        del x
        gc.collect()
        assert plain() is not None
        computed = batch().requires_grad_() * 2
        reference = weakref.ref(computed)
        model(computed).sum().backward()
        del computed
        gc.collect()
        assert reference() is None
        assert plain() is None
        x = batch()
        plain = weakref.ref(x)
        model(x).sum().backward()
        optimizer.step()
        del x
        recording.log()
        gc.collect()
        assert plain() is None


def test_a_model_with_hooks_can_be_copied_and_closed() -> None:
    """A copy of the model shows no inputs, and closing the watch leaves no hook."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        copy.deepcopy(model)(batch(nonfinite=3)).sum().backward()
        assert INPUTS not in log(recording, math.nan).metrics
    assert not model._forward_pre_hooks


def classifier() -> nn.Module:
    """Return a model of four classes."""
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def ignoring(targets: Tensor, reduction: str = "mean", ignored: int = -100) -> Callable[[Tensor], Tensor]:
    """Return a cross-entropy with these targets."""
    return lambda output: functional.cross_entropy(output, targets, reduction=reduction, ignore_index=ignored)


@pytest.mark.parametrize(("reduction", "is_finite"), [("mean", False), ("sum", True)])
def test_the_share_of_ignored_labels_is_known_where_they_leave_no_signal(reduction: str, is_finite: bool) -> None:
    """All labels are ignored: the mean over none is NaN, their sum has no gradient. The share is one."""
    targets = torch.full((8,), -100)
    steps = train([batch()], ignoring(targets, reduction), model=classifier())
    assert steps[0].is_finite == is_finite
    assert steps[0].metrics[LABELS] == 1
    assert LABELS not in train([batch()], ignoring(torch.arange(8) % 4), model=classifier())[0].metrics


def test_labels_are_seen_during_the_whole_training() -> None:
    """A batch of padding after a hundred steps is seen; the log-likelihood and a value of the script's own count."""
    padding, good = torch.zeros(8, dtype=torch.int64), torch.arange(8) % 4
    targets = iter([*[good] * 100, padding])

    def loss_of(output: Tensor) -> Tensor:
        return nn.NLLLoss(ignore_index=0)(output.log_softmax(1), next(targets))  # type: ignore[no-any-return]

    steps = train([batch() for _ in range(101)], loss_of, model=classifier())
    assert steps[-1].metrics[LABELS] == 1
    assert not any(LABELS in step.metrics for step in steps[:-1])


def test_the_loss_functions_are_torchs_own_after_the_last_watch() -> None:
    """Two watches read labels; after the second one is closed, torch's functions are the originals."""
    models = [perceptron(), perceptron()]
    recordings = [Recording(model, torch.optim.SGD(model.parameters(), lr=0.01)) for model in models]
    assert functional.cross_entropy is not ORIGINAL
    recordings[0].watch.close()
    assert functional.cross_entropy is not ORIGINAL
    recordings[1].watch.close()
    assert functional.cross_entropy is ORIGINAL
    assert not loss_functions._replaced
