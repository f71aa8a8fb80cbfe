"""When probes are measured, what they cost, and how they reach a step."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import perceptron

from gradmedic.protocol.probes import name_metric
from gradmedic.torch.probes import ProbeContext, ProbeMeter, ProbeValues, probing
from gradmedic.torch.probes.schedule import FIRST_PROBES, MIN_INTERVAL, SHARE, ProbeSchedule
from gradmedic.torch.statistics import HostArray

NAME = name_metric("unchanged_share")


class CountingMeter(ProbeMeter):
    """Measures how often it was called."""

    fails = False
    closed = 0

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.calls = 0

    def after_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the call."""
        assert not torch.is_grad_enabled()
        if self.fails:
            raise RuntimeError("no such thing")
        self.calls += 1

    def finish_step(self) -> Sequence[ProbeValues]:
        """Return the number of calls."""
        calls, self.calls = self.calls, 0
        return (ProbeValues((NAME,), HostArray(np.array([calls]))),) if calls else ()

    def close(self) -> None:
        """Count the call."""
        type(self).closed += 1


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> type[CountingMeter]:
    """The only meter of the test's watches."""
    kind = type("Meter", (CountingMeter,), {})
    monkeypatch.setattr(probing, "PROBE_METERS", (kind,))
    return kind


def train(recording: Recording, model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[bool]:
    """Train, and return which steps were probed."""
    probed = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
        probed.append(NAME in recording.log().probes)
    return probed


@pytest.mark.usefixtures("one_thread", "no_warning", "meter")
def test_a_few_steps_are_probed_at_the_start_and_then_one_in_some_samples() -> None:
    """The first steps are probed; between later ones there are at least three samples that are not."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        probed = train(recording, model, optimizer, 20)
    steps = [step for step, is_probed in enumerate(probed) if is_probed]
    assert steps[:FIRST_PROBES] == list(range(FIRST_PROBES))
    distances = np.diff(steps[FIRST_PROBES - 1 :])
    assert all(distance >= MIN_INTERVAL for distance in distances)


@pytest.mark.usefixtures("one_thread")
def test_an_error_of_a_meter_ends_the_probes_and_not_the_watch(
    meter: type[CountingMeter], caplog: pytest.LogCaptureFixture
) -> None:
    """The meters are closed with one warning; statistics are measured on."""
    meter.fails = True
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with caplog.at_level(logging.WARNING), Recording(model, optimizer) as recording:
        assert not any(train(recording, model, optimizer, 5))
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
        assert recording.log().row is not None
    assert [record.message for record in caplog.records if "inside of the model" in record.message]
    assert len(caplog.records) == 1
    assert meter.closed == 1


class Clock:
    """A clock that is set by hand, and a sampler that samples every step."""

    is_sampling = True
    now = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


def test_probes_of_a_trial_follow_no_clock() -> None:
    """Without a clock, the first sampled steps are probed and then one in `MIN_INTERVAL`; their cost does not count."""
    schedule = ProbeSchedule(Clock(), None)
    probed = []
    for step in range(40):
        if schedule.is_probing:
            probed.append(step)
            schedule.add_cost(100.0)
        schedule.finish_step()
    first = list(range(FIRST_PROBES))
    assert probed == [*first, *range(first[-1] + MIN_INTERVAL, 40, MIN_INTERVAL)]


@pytest.mark.parametrize(("cost", "longest_share"), [(1e-4, 1.0), (0.03, 1.5 * SHARE), (1.0, 1.5 * SHARE)])
def test_probes_keep_to_their_share_of_the_time(cost: float, longest_share: float) -> None:
    """Cheap probes are as frequent as may be; dear ones are so rare that they take their share."""
    clock = Clock()
    schedule = ProbeSchedule(clock, clock)
    probes = 0
    for step in range(100_000):
        clock.now += 0.1
        if schedule.is_probing:
            probes += step >= 1_000
            clock.now += cost
            schedule.add_cost(cost)
        schedule.finish_step()
    share = probes * cost / (0.1 * 99_000)
    assert share <= longest_share
    if cost < 1e-3:
        assert probes == pytest.approx(99_000 / MIN_INTERVAL, rel=0.01)
    else:
        assert share >= 0.4 * SHARE
