"""Guards of trainings in several processes, over gloo: all of them decide alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.client.torch.guards import guarded_processes as trained
from tests.support.ranks import train_in_processes

SCRIPT = Path(__file__).with_name("guarded_processes.py")

pytestmark = pytest.mark.slow


def train(kind: str, processes: int, folder: Path) -> list[dict[str, Any]]:
    """Train in processes; return the answer of each."""
    answers, _ = train_in_processes(SCRIPT, kind, str(processes), str(folder / "meeting"), str(folder))
    return answers


@pytest.mark.parametrize(("kind", "processes"), [("ddp", 3), ("fsdp", 2)])
def test_all_processes_leave_out_the_same_steps(kind: str, processes: int, tmp_path: Path) -> None:
    """One process has a NaN and a spike; no process takes these steps, also where each holds a part of the weights."""
    answers = train(kind, processes, tmp_path)
    for answer in answers:
        unmoved = [step for step, distance in enumerate(answer["moved"]) if distance == 0.0]
        assert unmoved == [trained.NONFINITE, trained.SPIKE], answer["log"]
        assert answer["weights"] == answers[0]["weights"]
        assert not any("no longer" in message for message in answer["log"])
    assert any("is not finite" in message for message in answers[0]["log"])
    assert any("far above the usual ones" in message for message in answers[0]["log"])


def test_all_processes_clip_from_the_same_step_on(tmp_path: Path) -> None:
    """The first process is told the norm; all of them clip to it from its next step on."""
    answers = train("clip", 2, tmp_path)
    first, second = answers
    assert first["moved"] == pytest.approx(second["moved"], rel=1e-12)
    later = first["moved"][trained.CLIPPED :]
    assert later == pytest.approx([0.01 * 1e-3] * len(later), rel=1e-3)
    assert first["moved"][trained.CLIPPED - 1] > 2e-5


def test_all_processes_are_stopped_at_the_same_step(tmp_path: Path) -> None:
    """One process has a NaN; `log()` raises in every one, before the weights are harmed."""
    answers = train("stop", 2, tmp_path)
    for answer in answers:
        assert len(answer["moved"]) == trained.NONFINITE + 1
        assert answer["moved"][-1] == 0.0
        assert answer["weights"] == answers[0]["weights"]


def test_no_process_waits_for_one_that_does_not_guard(tmp_path: Path) -> None:
    """If only the first process watches, no step is left out; the training ends, with one sentence about the reason."""
    answers = train("alone", 2, tmp_path)
    assert answers[0]["moved"][trained.SPIKE] > 0.0
    assert sum("1 of 2 processes call run.watch()" in message for message in answers[0]["log"]) == 1


@pytest.mark.parametrize("kind", ["failing", "failing-later"])
def test_an_error_in_one_process_ends_the_guards_of_all(kind: str, tmp_path: Path) -> None:
    """The others learn it in the same or the next step: all take the later steps, and none waits."""
    answers = train(kind, 2, tmp_path)
    for answer in answers:
        assert answer["moved"][trained.NONFINITE] == 0.0
        assert answer["moved"][trained.SPIKE] > 0.0
        assert answer["weights"] == answers[0]["weights"]
    assert any("no longer guard" in message for message in answers[0]["log"])
