"""Which steps are sampled."""

from __future__ import annotations

import random

import pytest

from gradmedic.recording.sampler import ALARM_STEPS, FIRST_STEPS, START_SECONDS, STEPS_AS_ONE, Sampler
from gradmedic.recording.sampling_cost import LADDER


class Training:
    """A training whose steps and samples take given times on its own clock."""

    def __init__(self, step_seconds: float, sample_seconds: float, log_freq: int | None = None) -> None:
        self.now = 0.0
        self.step_seconds, self.sample_seconds = step_seconds, sample_seconds
        self.sampler = Sampler(log_freq, clock=lambda: self.now)
        self.spent = 0.0
        self.begun = 0.0

    def run(self, steps: int) -> list[bool]:
        """Do steps and return which were sampled."""
        sampled = []
        for _ in range(steps):
            sampled.append(self.sampler.is_sampling)
            self.now += self.step_seconds
            cost = self.sample_seconds if self.sampler.is_sampling else 2e-5
            self.now += cost
            self.spent += cost
            self.sampler.add_cost(cost)
            self.sampler.advance()
        return sampled

    def step(self, *optimizers: str) -> list[bool]:
        """Do one step of each optimizer, without a log(), and return which were sampled."""
        sampled = []
        for optimizer in optimizers:
            sampled.append(self.sampler.is_sampling or self.sampler.completes_sample(optimizer))
            self.now += self.step_seconds
            cost = self.sample_seconds if sampled[-1] else 2e-6
            self.now += cost
            self.spent += cost
            self.sampler.add_cost(cost)
            self.sampler.end_optimizer_step(optimizer)
        return sampled

    def share(self) -> float:
        """Return the share of the time that sampling took since the last call."""
        share = self.spent / (self.now - self.begun)
        self.spent, self.begun = 0.0, self.now
        return share


@pytest.mark.parametrize("sample_seconds", [0.0001, 0.00035, 0.0005, 0.0011, 0.003, 0.02])
def test_a_short_training_is_sampled_throughout(sample_seconds: float) -> None:
    """Every step is sampled as long as all samples together take half a second, and not for more than two seconds."""
    training = Training(0.001, sample_seconds)
    steps = START_SECONDS / sample_seconds
    assert all(training.run(int(steps / 2)))
    assert not all(training.run(int(1.5 * steps) + 5))


def test_the_start_of_a_large_one_is_sampled() -> None:
    """The first twenty steps are sampled if that takes less than a second, or is within the share."""
    assert all(Training(1.0, 0.049).run(FIRST_STEPS))
    assert all(Training(100.0, 1.0).run(FIRST_STEPS))


@pytest.mark.parametrize(("step_seconds", "sample_seconds", "first"), [(0.1, 0.124, 8), (1.0, 0.4, 3), (9.0, 30.0, 3)])
def test_the_start_ends_early_if_samples_are_expensive(step_seconds: float, sample_seconds: float, first: int) -> None:
    """Fewer of the first steps are sampled if that would take more than a second, but three are; the share holds."""
    training = Training(step_seconds, sample_seconds)
    sampled = training.run(FIRST_STEPS)
    assert sampled.index(False) == first
    assert sum(sampled) <= first + 1
    training.share()
    training.run(20_000)
    assert training.share() < 0.015


@pytest.mark.parametrize("cost", [0.006, 0.035, 0.16, 0.6])
def test_a_noisy_clock_does_not_change_which_steps_are_sampled(cost: float) -> None:
    """Estimates that differ by 40 %, and single steps that take ten times as long, leave the schedule as it is."""
    schedules = set()
    for seed in range(10):
        generator = random.Random(seed)
        training = Training(1.0, cost)
        sampled: list[bool] = []
        for _ in range(600):
            slowness = 10.0 if generator.random() < 0.05 else 1.0 + 0.1 * generator.random()
            training.step_seconds = slowness * (1.0 + 0.2 * (seed % 2) if len(sampled) > 100 else 1.0)
            sampled += training.run(1)
        schedules.add(tuple(sampled))
    assert len(schedules) == 1


def test_a_lasting_change_of_the_cost_changes_the_interval_by_rungs_of_the_ladder() -> None:
    """An interval stays until the cost has changed by two rungs, in two estimates; then it moves to the new rung."""
    training = Training(1.0, 0.05)
    training.run(100)
    assert training.sampler.interval == 4
    for sample_seconds, interval in ((0.065, 4), (0.075, 4), (0.2, 16), (0.15, 16), (0.05, 4)):
        training.sample_seconds = sample_seconds
        training.run(24 * training.sampler.interval)
        training.run(24 * training.sampler.interval)
        assert training.sampler.interval == interval
        assert interval in LADDER


def test_the_cost_stays_below_its_share() -> None:
    """After the start the cost is bounded, for cheap and expensive samples, and when a step's duration changes."""
    for step_seconds, sample_seconds in ((0.5, 0.03), (0.05, 0.01), (0.001, 0.0005), (0.02, 0.2), (1.0, 0.001)):
        training = Training(step_seconds, sample_seconds)
        training.run(int(max(FIRST_STEPS, 2 * START_SECONDS / sample_seconds)) + 5)
        training.share()
        sampled = training.run(20_000)
        assert training.share() < 0.015 + 2e-5 / step_seconds
        assert any(sampled)
        training.step_seconds *= 3
        training.run(2_000)
        training.share()
        training.run(10_000)
        assert training.share() < 0.015 + 2e-5 / step_seconds


def test_cheap_samples_are_taken_at_every_step() -> None:
    """A step that takes a thousand times as long as its sample is always sampled."""
    training = Training(1.0, 0.001)
    training.run(2_000)
    assert all(training.run(100))


def test_an_evaluation_pays_for_a_few_samples_only() -> None:
    """After a long pause, few of the next steps are sampled."""
    training = Training(0.1, 0.02)
    training.run(500)
    training.now += 3600.0
    assert sum(training.run(100)) < 20


def test_an_alarm_samples_every_step_and_is_paid_back() -> None:
    """After an alarm the next steps are sampled; over many alarms the share still holds, and no gap is long."""
    training = Training(0.1, 0.02)
    training.run(500)
    training.sampler.sample_every_step()
    training.run(1)
    assert all(training.run(ALARM_STEPS - 2))
    after = training.run(400)
    assert 5 < sum(after) < 60
    training.run(3000)
    training.share()
    longest = 0
    for _ in range(200):
        training.sampler.sample_every_step()
        sampled = training.run(100)
        longest = max(longest, max(len(gap) for gap in "".join("x" if s else "." for s in sampled).split("x")))
    assert training.share() < 0.02
    assert longest < 60


def test_a_number_samples_each_multiple_of_it() -> None:
    """The first twenty steps and each seventh step are sampled, even if samples are expensive."""
    training = Training(0.1, 10.0, log_freq=7)
    assert [i for i, sampled in enumerate(training.run(50)) if sampled] == [*range(20), 21, 28, 35, 42, 49]


@pytest.mark.parametrize("steps_per_log", [10, 500, None])
@pytest.mark.parametrize(("step_seconds", "sample_seconds"), [(0.01, 0.005), (0.001, 0.0015), (0.1, 0.02)])
def test_the_cost_stays_below_its_share_however_seldom_log_is_called(
    steps_per_log: int | None, step_seconds: float, sample_seconds: float
) -> None:
    """A script that calls log() once for many optimizer steps, or never, has some of these steps sampled."""
    training = Training(step_seconds, sample_seconds)

    def run(steps: int) -> list[bool]:
        sampled = []
        for i in range(steps):
            sampled += training.step("adam")
            if steps_per_log is not None and i % steps_per_log == steps_per_log - 1:
                training.sampler.advance()
        return sampled

    run(int(max(2 * FIRST_STEPS, 2 * START_SECONDS / sample_seconds)) + 500)
    training.share()
    sampled = run(20_000)
    assert training.share() < 0.015 + 2e-6 / step_seconds
    assert sum(sampled) > 20


def test_seldom_logged_steps_are_sampled_all_the_same() -> None:
    """Of 500 optimizer steps between two calls of log(), some are sampled in nearly every one of them."""
    training = Training(0.01, 0.02)
    with_samples = [any(training.step(*["adam"] * 500) + training.run(1)) for _ in range(60)]
    assert sum(with_samples) > 50


def test_a_few_optimizer_steps_are_sampled_as_one_step() -> None:
    """The five steps of a critic and that of its generator are all sampled, or none is; two optimizers are as good."""
    for optimizers in (["critic"] * 5 + ["generator"], ["a", "b"], ["a", "b"] * (STEPS_AS_ONE - 1)):
        training = Training(0.01, 0.02)
        kinds = set()
        for _ in range(300):
            sampled = training.step(*optimizers)
            training.sampler.advance()
            assert len(set(sampled)) == 1
            kinds.add(sampled[0])
        assert kinds == {False, True}


def test_a_sample_of_many_critic_steps_has_the_generator_too() -> None:
    """Of 25 steps of a critic and one of its generator, a log() has samples of both, or of none."""
    training = Training(0.01, 0.02)
    kinds = set()
    for _ in range(300):
        *critic, generator = training.step(*["critic"] * 25, "generator")
        training.sampler.advance()
        assert any(critic) == generator
        kinds.add(generator)
    assert kinds == {False, True}


def test_a_number_bounds_the_optimizer_steps_of_one_log() -> None:
    """With a number, one of so many optimizer steps is sampled where log() is never called."""
    training = Training(0.01, 0.02, log_freq=10)
    assert 90 <= sum(training.step(*["adam"] * 1000)) <= 140


def test_optimizer_steps_leave_the_alarm_to_whole_steps() -> None:
    """After an alarm, each of the next steps begins sampled, however many optimizer steps it has."""
    training = Training(0.1, 0.006)
    training.run(500)
    training.sampler.sample_every_step()
    training.sampler.advance()
    begun = []
    for _ in range(ALARM_STEPS - 1):
        begun.append(training.step(*["adam"] * 30)[0])
        training.sampler.advance()
    assert all(begun)


class Leader:
    """Samples every third step."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    @property
    def is_sampling(self) -> bool:
        """Whether the next step is sampled."""
        return self._sampler._count % 3 == 0


def test_a_leader_decides_instead_of_the_sampler() -> None:
    """A sampler samples what its leaders do, whatever it costs, and decides again when they are gone."""
    training = Training(0.1, 0.5)
    leader = Leader(training.sampler)
    training.sampler.follow(leader)
    assert training.run(31)[1:] == [i % 3 == 0 for i in range(1, 31)]
    training.sampler.unfollow(leader)
    assert sum(training.run(100)) < 20
