"""Going back to an earlier state of a training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradmedic
from gradmedic.protocol.guards import GuardAction
from gradmedic.recording.events import VerdictEvent
from gradmedic.recording.step import Rewind
from gradmedic.torch.guards import rewinding, snapshots_room
from gradmedic.torch.guards.rewinding import MARGIN
from gradmedic.torch.guards.rewinding_signs import LASTING_STEPS, NONFINITE_IN_A_ROW, Signs
from gradmedic.upload.journal import Journal, list_sessions

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = torch.arange(8.0)[:, None] / 8
"""What the models have to learn."""


@pytest.fixture
def state_of_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a state after each step, whatever it costs: the newest one does not depend on time then."""
    monkeypatch.setattr("gradmedic.torch.guards.snapshots_ring.TIME_SHARE", 1e9)
    monkeypatch.setattr("gradmedic.torch.guards.snapshots_ring.SHORTEST_INTERVAL", 1)


def make_model() -> nn.Sequential:
    """Return a model with a normalization."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))


class Averaging(nn.Module):
    """Subtracts the running average of its inputs, in a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.average: Tensor
        self.register_buffer("average", torch.zeros(8))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs less their average."""
        self.average = 0.99 * self.average + 0.01 * inputs.mean(dim=0)
        return inputs - self.average


def make_averaging_model() -> nn.Sequential:
    """Return a model that a NaN among its inputs spoils for ever."""
    return nn.Sequential(Averaging(), *make_model())


class Loop:
    """A training loop as users write them.

    Args:
        on_unhealthy: the argument of `init`.
        model: the model.
        optimizer: the optimizer; by default Adam.
        init: further arguments of `init`.
    """

    def __init__(
        self,
        on_unhealthy: str = "rewind",
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **init: Any,
    ) -> None:
        self.model = make_model() if model is None else model
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2) if optimizer is None else optimizer
        self.run = gradmedic.init(**{"mode": "offline", "on_unhealthy": on_unhealthy, **init})
        self.run.watch(self.model, self.optimizer)
        self.rewinds: list[int] = []
        self.run.on_rewind(self.rewinds.append)
        self.losses: list[float] = []
        self.numbers: list[int] = []
        """Number of the run's last step after each step of the loop."""

    def train(self, steps: int, spoil: Callable[[int, Tensor], None] = lambda *_: None, **log: Any) -> None:
        """Train on.

        Args:
            steps: number of steps.
            spoil: function that takes the number of the loop's step and its inputs, which it may change.
            log: further arguments of `log`.
        """
        for step in range(len(self.losses), len(self.losses) + steps):
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(32, 8, generator=generator)
            targets = inputs @ WEIGHTS
            spoil(step, inputs)
            self.optimizer.zero_grad()
            loss = functional.mse_loss(self.model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.losses.append(float(loss.detach()))
            self.run.log(loss=loss, **log)
            self.numbers.append(self.run._last_step)

    def finish(self) -> None:
        """End the run."""
        self.run.finish()

    @property
    def final_loss(self) -> float:
        """The mean of the last losses."""
        return sum(self.losses[-20:]) / 20

    @property
    def is_finite(self) -> bool:
        """Whether weights and buffers are finite."""
        return all(bool(each.isfinite().all()) for each in self.model.state_dict().values())


def read_actions(run: gradmedic.Run, directory: Path) -> list[GuardAction]:
    """Return the guard actions that the journal of a finished offline run has, in order."""
    (session,) = list_sessions(directory / str(run.id))
    journal = Journal.open(session, 2**40)
    assert journal is not None
    entries = [entry for _, entry in journal.read(0, 100_000)]
    journal.close()
    return [
        action
        for entry in entries
        for action in ([entry.guard_action] if isinstance(entry, Rewind) else entry.guard_actions)
        if action is not None
    ]


def put_nan_into_weights(model: nn.Module) -> None:
    """Make one weight NaN."""
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = math.nan


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_a_bad_batch_that_reaches_the_buffers_is_undone(tmp_path: Path) -> None:
    """Skipping the step leaves NaN in a buffer of the model; going back does not, and it learns on."""

    def spoil(step: int, inputs: Tensor) -> None:
        if step == 60:
            inputs[0, 0] = math.nan

    losses = {}
    for reaction in ("warn", "skip", "rewind"):
        loop = Loop(reaction, make_averaging_model())
        loop.train(150, spoil)
        losses[reaction] = loop.final_loss
        assert loop.is_finite == (reaction == "rewind")
        assert len(loop.rewinds) == (reaction == "rewind")
        loop.finish()
    clean = Loop(model=make_averaging_model())
    clean.train(150)
    clean.finish()
    assert math.isnan(losses["warn"])
    assert math.isnan(losses["skip"])
    assert losses["rewind"] < 2 * clean.final_loss
    (skip, rewind) = read_actions(loop.run, tmp_path / "unsent")
    assert (skip.action, skip.reason, skip.step) == ("skip", "nonfinite_gradient", 60)
    assert (rewind.action, rewind.reason, rewind.step) == ("rewind", "nonfinite_weights", 60)
    assert rewind.numbers["to_step"] == loop.rewinds[0] < 60
    assert rewind.explanation == (
        "The weights or what belongs to them were not finite at step 60: the training went back to its state after "
        f"step {loop.rewinds[0]}."
    )


def test_a_bad_batch_leaves_nothing_in_a_normalization() -> None:
    """The skipped step sets running statistics back, so that the training need not go back."""

    def spoil(step: int, inputs: Tensor) -> None:
        if step == 60:
            inputs[0, 0] = math.nan

    loop = Loop()
    loop.train(150, spoil)
    loop.finish()
    assert loop.is_finite
    assert loop.rewinds == []
    assert loop.final_loss < 1.0


def test_a_jump_of_the_learning_rate_is_undone() -> None:
    """The loss jumps with the rate and falls slowly; the training goes back to before the rate has jumped."""
    losses = {}
    for reaction in ("skip", "rewind"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        loop = Loop(reaction, model, torch.optim.Adam(model.parameters(), lr=3e-3))
        loop.train(200)
        for group in loop.optimizer.param_groups:
            group["lr"] *= 100
        loop.train(3)
        for group in loop.optimizer.param_groups:
            group["lr"] /= 100
        loop.train(40)
        losses[reaction] = loop.final_loss
        loop.finish()
        assert bool(loop.rewinds) == (reaction == "rewind")
    assert 180 <= loop.rewinds[0] < 200
    assert losses["rewind"] < losses["skip"] / 3


@pytest.mark.usefixtures("state_of_each_step")
def test_the_newest_finite_state_is_taken() -> None:
    """A state that was kept when a weight was NaN already is left out, and the one before it is restored."""
    loop = Loop()
    loop.train(30)
    put_nan_into_weights(loop.model)
    ring = loop.run._guards._rewinder._ring  # type: ignore[union-attr]
    ring.take(30)
    good = ring.steps[-2]
    loop.run._last_step = 30
    loop.train(1)
    assert loop.rewinds == [good]
    assert loop.is_finite
    loop.train(20)
    assert loop.rewinds == [good]
    loop.finish()


@pytest.mark.usefixtures("state_of_each_step")
def test_an_unhealthy_verdict_goes_back_to_before_its_onset() -> None:
    """The state is from before the first step of the verdict, and the optimizer and the run go on from there."""
    loop = Loop()
    loop.train(100)
    before = loop.run._guards._rewinder._ring.steps  # type: ignore[union-attr]
    loop.run._reactions.events.append(
        VerdictEvent(run_id=loop.run.id, verdict="exploding", since_step=70, summary="It explodes.")
    )
    loop.train(1)
    (target,) = loop.rewinds
    assert target == max(step for step in before if step < 70 - MARGIN)
    assert loop.run._last_step == target
    assert float(loop.optimizer.state[next(loop.model.parameters())]["step"]) == target + 1
    assert loop.run.verdict == "undetermined"
    loop.finish()


@pytest.mark.usefixtures("state_of_each_step")
def test_a_verdict_of_vanishing_does_not_go_back() -> None:
    """Going back cannot help there: an earlier state has the same structure, and the steps would be lost."""
    loop = Loop()
    loop.train(100)
    loop.run._reactions.events.append(
        VerdictEvent(run_id=loop.run.id, verdict="vanishing", since_step=70, summary="It vanishes.")
    )
    loop.train(20)
    assert loop.rewinds == []
    assert loop.run._last_step == 119
    assert loop.run.verdict == "vanishing"
    loop.finish()


@pytest.mark.usefixtures("state_of_each_step")
def test_weights_that_were_thrown_away_come_back(tmp_path: Path) -> None:
    """A step that no gradient showed throws the weights away: they come back, and so does the rate."""
    last = nn.Linear(16, 1)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), last)
    loop = Loop(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.02))
    loop.train(150)
    before = loop.losses[-1]
    with torch.no_grad():
        last.bias.add_(1e4)
    loop.optimizer.param_groups[0]["lr"] = 1e-9
    loop.train(LASTING_STEPS + 10)
    assert len(loop.rewinds) == 1
    assert 80 < loop.rewinds[0] < 150 - MARGIN
    assert loop.losses[-1] < 2 * before
    assert loop.optimizer.param_groups[0]["lr"] == 0.02
    loop.finish()
    action = read_actions(loop.run, tmp_path / "unsent")[-1]
    assert (action.action, action.reason) == ("rewind", "gradient_spike")


@pytest.mark.usefixtures("state_of_each_step")
def test_steps_that_stay_bad_are_left_by_going_back(tmp_path: Path) -> None:
    """Where the loss is NaN and the weights are not, the training goes back after some steps, and not before."""
    loop = Loop(model=nn.Linear(8, 1))
    loop.train(30)

    def spoil(_: int, inputs: Tensor) -> None:
        inputs.fill_(math.nan)

    loop.train(NONFINITE_IN_A_ROW - 1, spoil)
    assert loop.rewinds == []
    loop.train(1, spoil)
    assert loop.rewinds == [29]
    loop.finish()
    action = read_actions(loop.run, tmp_path / "unsent")[-1]
    assert (action.action, action.reason, action.numbers["onset"]) == ("rewind", "nonfinite_loss", 30.0)


@pytest.mark.usefixtures("state_of_each_step")
def test_spikes_that_go_on_are_left_by_going_back(tmp_path: Path) -> None:
    """After as many skipped spikes as may be, the next one is taken; the training goes back to before the first.

    Then the next ones are spikes again, and are skipped.
    """
    loop = Loop(model=nn.Linear(8, 1), optimizer=None)
    loop.train(60)

    def spoil(_: int, inputs: Tensor) -> None:
        inputs *= 1e4

    loop.train(9, spoil)
    loop.train(40)
    assert len(loop.rewinds) == 1
    assert loop.rewinds[0] < 60 - MARGIN
    assert loop.final_loss < loop.losses[59] * 2
    loop.finish()
    actions = [(each.action, each.reason) for each in read_actions(loop.run, tmp_path / "unsent")]
    skip, rewind = ("skip", "gradient_spike"), ("rewind", "gradient_spike")
    assert actions == [skip] * 5 + [rewind] + [skip] * 3


@pytest.mark.parametrize("seed", range(3))
def test_a_clean_training_is_the_same_to_the_bit(seed: int) -> None:
    """Keeping states changes nothing: weights, buffers and random numbers are those of a run without guards."""
    ends = []
    for reaction in ("warn", "rewind"):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 1))
        loop = Loop(reaction, model)
        torch.manual_seed(seed)
        loop.train(120)
        loop.finish()
        assert loop.rewinds == []
        ends.append([*model.state_dict().values(), torch.rand(3)])
    assert all(map(torch.equal, *ends))


# --- trouble that comes again -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("state_of_each_step")
def test_trouble_that_comes_again_lowers_the_rate_until_the_stretch_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each further rewind goes further back and halves the rate of each step; the script sees its own rate."""
    monkeypatch.setattr(rewinding, "STRETCH", 20)
    loop = Loop()
    loop.train(40)
    rates = []
    for _ in range(3):
        put_nan_into_weights(loop.model)
        loop.train(1)
        loop.train(2)
        rates.append(loop.run._guards._rewinder._rate.factor)  # type: ignore[union-attr]
        assert loop.optimizer.param_groups[0]["lr"] == 1e-2
    assert rates == [1.0, 0.5, 0.25]
    assert loop.rewinds == sorted(loop.rewinds, reverse=True)
    assert len(set(loop.rewinds)) == 3
    loop.train(80)
    assert loop.run._guards._rewinder._rate.factor == 1.0  # type: ignore[union-attr]
    put_nan_into_weights(loop.model)
    loop.train(3)
    assert len(loop.rewinds) == 4
    assert loop.run._guards._rewinder._rate.factor == 1.0  # type: ignore[union-attr]
    loop.finish()
    actions = [each for each in read_actions(loop.run, tmp_path / "unsent") if each.action != "skip"]
    assert [each.action for each in actions] == ["rewind", "rewind", "lower_rate", "rewind", "lower_rate", "rewind"]
    assert [each.numbers["factor"] for each in actions if each.action == "lower_rate"] == [0.5, 0.25]


@pytest.mark.usefixtures("state_of_each_step")
def test_a_lowered_rate_is_used_and_recorded(tmp_path: Path) -> None:
    """The steps after the second rewind move the weights by half the rate, and the run has this rate."""
    model = nn.Linear(8, 1)
    loop = Loop(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.02))
    loop.train(30)
    for _ in range(2):
        put_nan_into_weights(model)
        loop.train(1)
    before = model.weight.detach().clone()
    loop.train(1)
    assert model.weight.grad is not None
    assert torch.allclose(model.weight.detach(), before - 0.01 * model.weight.grad)
    loop.finish()
    (session,) = list_sessions(tmp_path / "unsent" / str(loop.run.id))
    journal = Journal.open(session, 2**40)
    assert journal is not None
    last = journal.read(0, 1000)[-1][1]
    journal.close()
    assert last.learning_rate == 0.01  # type: ignore[union-attr]


@pytest.mark.usefixtures("state_of_each_step")
def test_after_five_rewinds_in_a_stretch_the_guard_gives_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The sixth trouble is left to the script: it is reported, and the training goes on without states."""
    loop = Loop()
    loop.train(40)
    for _ in range(8):
        put_nan_into_weights(loop.model)
        loop.train(1)
    assert len(loop.rewinds) == rewinding.MOST_REWINDS
    assert not loop.is_finite
    assert "5 rewinds did not help, so the guard does not go back any more" in caplog.text
    loop.finish()
    assert read_actions(loop.run, tmp_path / "unsent")[-1].action in ("give_up", "skip")
    assert [each.action for each in read_actions(loop.run, tmp_path / "unsent")].count("give_up") == 1


# --- the run and the script -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("state_of_each_step")
def test_steps_without_a_number_go_on_behind_the_state() -> None:
    """The step after a rewind has the number after the last one that stayed."""
    loop = Loop()
    loop.train(31)
    put_nan_into_weights(loop.model)
    loop.train(3)
    assert loop.numbers[-4:] == [30, 30, 31, 32]
    loop.finish()


@pytest.mark.usefixtures("state_of_each_step")
def test_steps_with_a_number_keep_the_scripts_count(tmp_path: Path) -> None:
    """A script that counts its steps itself may go on counting: the steps that were given up are missing."""
    loop = Loop()
    for step in range(40):
        if step == 30:
            put_nan_into_weights(loop.model)
        loop.train(1, step=step)
    loop.finish()
    assert loop.rewinds == [29]
    (session,) = list_sessions(tmp_path / "unsent" / str(loop.run.id))
    journal = Journal.open(session, 2**40)
    assert journal is not None
    entries = [entry for _, entry in journal.read(0, 1000)]
    journal.close()
    place = next(i for i, entry in enumerate(entries) if isinstance(entry, Rewind))
    assert entries[place - 1].number == 30  # type: ignore[union-attr]
    assert entries[place].step == 29  # type: ignore[union-attr]
    assert entries[place + 1].number == 31  # type: ignore[union-attr]


@pytest.mark.usefixtures("state_of_each_step")
def test_a_script_that_counts_back_logs_its_steps_again() -> None:
    """A loop that sets its counter back in on_rewind() logs the same numbers once more."""
    loop = Loop()
    loop.train(31)
    counter = 31

    @loop.run.on_rewind
    def set_back(step: int) -> None:
        nonlocal counter
        counter = step + 1

    put_nan_into_weights(loop.model)
    loop.train(1, step=counter)
    assert counter == 31
    loop.train(1, step=counter)
    assert loop.run._last_step == 31
    loop.finish()


@pytest.mark.usefixtures("state_of_each_step")
def test_a_script_that_resumes_drops_the_states_of_later_steps() -> None:
    """A state of steps that the script has given up is not one to go back to."""
    loop = Loop()
    loop.train(20)
    loop.run.rewind(9)
    assert all(step <= 9 for step in loop.run._guards._rewinder._ring.steps)  # type: ignore[union-attr]
    loop.train(1)
    assert loop.run._last_step == 10
    loop.finish()


@pytest.mark.usefixtures("state_of_each_step")
def test_a_callback_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The other callbacks are called all the same."""
    loop = Loop()

    @loop.run.on_rewind
    def fail(_: int) -> None:
        raise ValueError("no")

    later: list[int] = []
    loop.run.on_rewind(later.append)
    loop.train(10)
    put_nan_into_weights(loop.model)
    loop.train(1)
    assert later == loop.rewinds == [9]
    assert "a callback of on_rewind() failed" in caplog.text
    loop.finish()


@pytest.mark.usefixtures("state_of_each_step")
def test_a_step_in_accumulation_goes_back() -> None:
    """A rewind between two micro-batches forgets the gradients that were added up for the old weights."""
    loop = Loop(model=nn.Linear(8, 1))
    loop.train(10)
    put_nan_into_weights(loop.model)
    loss = loop.model(torch.ones(2, 8)).mean()
    loss.backward()
    loop.run.log(loss=loss)  # no step: gradients are added up
    assert loop.rewinds == [9]
    loop.model(torch.ones(2, 8)).mean().backward()
    loop.optimizer.step()
    assert loop.is_finite
    loop.finish()


@pytest.mark.usefixtures("state_of_each_step")
def test_several_optimizers_and_watches_go_back_together() -> None:
    """The models of all watch() calls of a run are one state."""
    generator, critic = nn.Linear(8, 8), nn.Linear(8, 1)
    optimizers = [torch.optim.Adam(each.parameters(), lr=1e-3) for each in (generator, critic)]
    run = gradmedic.init(mode="offline", on_unhealthy="rewind")
    run.watch(generator, optimizers[0], prefix="generator.")
    run.watch(critic, optimizers[1], prefix="critic.")
    rewinds: list[int] = []
    run.on_rewind(rewinds.append)
    expected: list[Tensor] = []
    for step in range(20):
        if step == 15:
            expected = [each.detach().clone() for each in (*generator.parameters(), *critic.parameters())]
            put_nan_into_weights(critic)
        loss = critic(generator(torch.randn(4, 8))).square().mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        run.log(loss=loss)
        if step == 15:
            assert rewinds == [14]
            assert all(map(torch.equal, expected, (*generator.parameters(), *critic.parameters())))
    run.finish()
    assert rewinds == [14]


@pytest.mark.usefixtures("state_of_each_step")
def test_a_loss_scaler_works_on_after_a_rewind() -> None:
    """Steps that the scaler leaves out are no reason to go back; NaN in the weights is."""
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=5)
    run = gradmedic.init(mode="offline", on_unhealthy="rewind")
    run.watch(model, optimizer, scaler=scaler)
    rewinds: list[int] = []
    run.on_rewind(rewinds.append)
    for step in range(40):
        if step == 30:
            put_nan_into_weights(model)
        optimizer.zero_grad()
        factor = math.inf if step in (5, 20) else 1.0
        loss = model(torch.randn(4, 8)).square().mean()
        scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        run.log(loss=loss)
    run.finish()
    assert rewinds == [29]
    assert all(bool(each.isfinite().all()) for each in model.parameters())
    assert scaler.get_scale() >= 2.0**10


@pytest.mark.usefixtures("state_of_each_step")
@pytest.mark.parametrize("as_logged", [float, lambda loss: loss.detach().numpy(), lambda loss: loss.reshape(1), str])
def test_a_loss_of_every_kind_is_read(as_logged: Callable[[Any], Any]) -> None:
    """A number, an array or a tensor of one element shows a jump of the loss; something else is left out."""
    loop = Loop(model=nn.Linear(8, 1))
    for _ in range(60):
        loop.run.log(loss=as_logged(torch.tensor(1.0)))
    for _ in range(LASTING_STEPS):
        loop.run.log(loss=as_logged(torch.tensor(1e3)))
    assert len(loop.rewinds) == (as_logged is not str)
    loop.finish()


def test_a_trial_never_goes_back() -> None:
    """A trial must be what its rerun describes, so its configuration has no guard."""
    from gradmedic.configuration import as_trial, resolve_configuration

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADMEDIC_RUN_ID", str(gradmedic.init(mode="disabled").id))
        patch.setenv("GRADMEDIC_PROJECT", "p")
        assert as_trial(resolve_configuration(on_unhealthy="rewind"), {}).on_unhealthy == "warn"


# --- faults -----------------------------------------------------------------------------------------------------------


def test_without_room_steps_are_still_skipped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once that no state is kept, and once that the training cannot go back; it goes on."""
    monkeypatch.setattr(snapshots_room, "find_free_memory", lambda: 0)
    monkeypatch.setattr(snapshots_room, "_find_free_disk", lambda _: 0)
    loop = Loop(model=make_averaging_model())

    def spoil(step: int, inputs: Tensor) -> None:
        if step in (20, 25):
            inputs[0, 0] = math.nan

    loop.train(40, spoil)
    assert all(bool(each.isfinite().all()) for each in loop.model.parameters())
    messages = [record.message for record in caplog.records]
    assert sum("no further state of this training is kept" in each for each in messages) == 1
    assert sum("but the training cannot go back" in each for each in messages) == 1
    loop.finish()


@pytest.mark.usefixtures("state_of_each_step")
def test_a_model_that_has_changed_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A layer that was added since the last state makes a rewind impossible: that is logged, and nothing raises."""
    loop = Loop(model=nn.Sequential(nn.Linear(8, 1)))
    loop.train(10)
    assert isinstance(loop.model, nn.Sequential)
    loop.model.append(nn.Linear(1, 1))
    put_nan_into_weights(loop.model)
    loop.train(2)
    assert loop.rewinds == []
    assert "the training cannot go back: 1.weight was added to the model since then (logged once)" in caplog.text
    loop.finish()


@pytest.mark.usefixtures("state_of_each_step")
def test_an_error_of_the_rewinder_ends_it_and_not_the_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and the steps go on being recorded."""
    loop = Loop()
    loop.train(5)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("of its own")

    monkeypatch.setattr(Signs, "end_step", fail)
    loop.train(5)
    assert loop.run._last_step == 9
    messages = [each.message for each in caplog.records if each.levelno >= logging.WARNING]
    assert messages == ["gradmedic: this training is no longer rewound: ZeroDivisionError('of its own')"]
    loop.finish()


def test_states_on_disk_are_gone_after_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are in the run's folder while it trains."""
    monkeypatch.setattr(snapshots_room, "find_free_memory", lambda: 0)
    loop = Loop(dir=tmp_path / "states")
    loop.train(10)
    assert list((tmp_path / "states").glob("states-*/*.pt"))
    loop.finish()
    assert not list((tmp_path / "states").glob("states-*"))
