"""The metric that `init(objective=...)` names."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from tests.client.runs import start

import gradmedic
from gradmedic.protocol.runs import Objective
from gradmedic.recording.objective_check import PATIENCE_STEPS, ObjectiveCheck
from gradmedic.recording.one_time_warnings import OneTimeWarnings

REWARD = Objective(kind="metric", metric="reward", direction="maximize")


def test_a_metric_that_no_step_has_gives_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The warning comes after a hundred steps, names the metric, and is not repeated at the end."""
    check = ObjectiveCheck(REWARD, OneTimeWarnings())
    for _ in range(PATIENCE_STEPS - 1):
        check.note_step({"rewards": 1.0})
    assert not caplog.records
    for _ in range(PATIENCE_STEPS):
        check.note_step({})
    check.finish()
    (record,) = caplog.records
    assert f"'reward' of the objective was not logged in the first {PATIENCE_STEPS} steps" in record.getMessage()


def test_a_short_run_warns_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """A run of fewer steps that lacks the metric warns when it ends."""
    check = ObjectiveCheck(REWARD, OneTimeWarnings())
    check.note_step({})
    check.finish()
    (record,) = caplog.records
    assert "was not logged by this run" in record.getMessage()


@pytest.mark.parametrize(
    "objective", [None, Objective(kind="none"), Objective(kind="loss", direction="minimize"), REWARD]
)
def test_nothing_is_missing(objective: Objective | None, no_warning: None) -> None:
    """A metric that is logged once is enough; other objectives need none."""
    check = ObjectiveCheck(objective, OneTimeWarnings())
    for step in range(2 * PATIENCE_STEPS):
        check.note_step({"reward": 1.0} if step == PATIENCE_STEPS - 1 else {})
    check.finish()


@pytest.fixture
def no_warning(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail if anything is logged."""
    with caplog.at_level(logging.WARNING, "gradmedic"):
        yield
    assert not caplog.records


def test_a_run_without_torch_has_an_objective(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The service stores it with the run; a metric that is never logged gives one warning at the end."""
    with start(service_url, objective="maximize reward") as run:
        run.log(1.0, gradients={"w": [1.0]}, rewrad=2.0)
    stored = client.runs.get(run.id).training
    assert stored is not None
    assert stored.objective == REWARD
    assert caplog.text.count("'reward' of the objective was not logged") == 1
