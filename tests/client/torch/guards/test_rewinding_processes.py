"""Rewinds of trainings in several processes, over gloo: all of them go back to the same state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tests.client.torch.guards import rewinding_processes as trained
from tests.support.ranks import train_in_processes

SCRIPT = Path(__file__).with_name("rewinding_processes.py")

pytestmark = pytest.mark.slow


def train(kind: str, processes: int, folder: Path) -> list[dict[str, Any]]:
    """Train in processes; check that all went back once, to the same step, and train alike; return their answers."""
    answers, _ = train_in_processes(SCRIPT, kind, str(processes), str(folder / "meeting"), str(folder))
    for answer in answers:
        assert len(answer["rewinds"]) == 1, answer["log"]
        assert answer["rewinds"] == answers[0]["rewinds"]
        assert answer["weights"] == answers[0]["weights"]
        assert all(map(math.isfinite, answer["losses"][-10:]))
        assert not any("no longer" in message for message in answer["log"])
    return answers


@pytest.mark.parametrize(("kind", "processes"), [("ddp", 3), ("fsdp", 2)])
def test_all_processes_go_back_to_the_same_state(kind: str, processes: int, tmp_path: Path) -> None:
    """NaN in the weights, of all processes or in the part of one, is gone in all of them; the optimizers agree."""
    answers = train(kind, processes, tmp_path)
    (target,) = answers[0]["rewinds"]
    assert trained.TROUBLE - 3 <= target < trained.TROUBLE
    assert answers[0]["last_step"] < trained.STEPS - 1
    counts = answers[0]["adam_steps"]
    assert all(answer["adam_steps"] == counts for answer in answers)
    assert counts[-1][0] < trained.STEPS - 1


def test_a_verdict_that_one_process_hears_of_takes_all_of_them_back(tmp_path: Path) -> None:
    """Only the first process has the service's answer; all go back to before the first step of the verdict."""
    answers = train("verdict", 2, tmp_path)
    assert answers[0]["rewinds"][0] < trained.SINCE
    assert sum("The verdict is exploding since step 30" in message for message in answers[0]["log"]) == 1


def test_a_state_that_one_process_cannot_restore_is_left_out_by_all(tmp_path: Path) -> None:
    """They all take the next older one."""
    answers = train("refused", 2, tmp_path)
    assert answers[0]["rewinds"][0] < answers[1]["refused"][0] < trained.TROUBLE
