"""Trainings of several processes over gloo that do not all watch, or not all the time. None may wait for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.ranks import train_in_processes

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("unequal_processes.py")
MIXED, NEVER, ALWAYS = "clips now and then", "clips never", "clips always"

Answers = dict[str, dict[str, Any]]


def train(
    kind: str, processes: int, folder: Path, scenarios: list[str], clippings: tuple[str, ...] = ()
) -> list[Answers]:
    """Return what each process prints; fail if one of them waits for ever.

    Every scenario clips now and then: a collective operation that one process leaves out may be one of a step that
    clips, or of one that does not. "no process" and "every process" also train with other clippings.
    """
    names = [f"{scenario}, {MIXED}" for scenario in scenarios]
    names += [f"{scenario}, {clipping}" for clipping in clippings for scenario in ("no process", "every process")]
    answers: list[Answers]
    answers, _ = train_in_processes(SCRIPT, kind, str(processes), str(folder / "meeting"), *names)
    return answers


def sampled(answers: Answers, scenario: str) -> list[int]:
    """Return the sampled steps."""
    steps: list[int] = answers[f"{scenario}, {MIXED}"]["sampled"]
    return steps


def warnings(answers: Answers, scenario: str) -> str:
    """Return the warnings as one text."""
    return "\n".join(answers[f"{scenario}, {MIXED}"]["warnings"])


def check_weights(processes: list[Answers]) -> None:
    """Assert that a watch changes no weight, in any choice of the processes that watch."""
    for answers in processes:
        for key, answer in answers.items():
            scenario, clipping = key.split(", ")
            if scenario != "two optimizers":  # they are others
                assert answer["weights"] == answers[f"no process, {clipping}"]["weights"], key


def test_processes_that_do_not_all_watch_a_sharded_model_train_on(tmp_path: Path) -> None:
    """Under FSDP2 the processes agree on the steps that they sample, or sample none and are told what to do."""
    scenarios = [
        "no process", "every process", "only the first", "only the second", "late", "too late", "log in the first",
        "close in one", "fail in one", "watch again", "watch again in the first", "two optimizers",
    ]  # fmt: skip
    first, second = train("fsdp", 2, tmp_path, scenarios, (NEVER, ALWAYS))
    check_weights([first, second])
    remedy = "this model is sharded over 2 processes, and 1 of them watch it: call run.watch() with the same arguments"

    everybody = sampled(first, "every process")
    assert everybody[:20] == list(range(20))
    assert 2 <= len(everybody[20:]) <= 5
    for clipping in (NEVER, ALWAYS):
        answer = first[f"every process, {clipping}"]
        assert (answer["sampled"], answer["warnings"]) == (everybody, [])
    assert warnings(first, "every process") == warnings(second, "every process") == ""

    for scenario, told, other in (("only the first", first, second), ("only the second", second, first)):
        assert sampled(told, scenario) == []
        assert warnings(told, scenario).count(remedy) == 1
        assert warnings(other, scenario) == ""

    assert sampled(first, "late")[:10] == list(range(3, 13))
    assert sampled(first, "too late") == []
    assert remedy in warnings(first, "too late")
    assert "call it before the first step" in warnings(second, "too late")

    assert sampled(first, "log in the first") == everybody
    for scenario in ("close in one", "fail in one"):
        assert sampled(first, scenario) == list(range(5))
        assert "another process has stopped watching" in warnings(first, scenario)
    assert "no longer watched" in warnings(second, "fail in one")
    assert warnings(second, "close in one") == ""

    again = sampled(first, "watch again")
    assert again[:10] == list(range(10))
    assert again[10:30] == list(range(15, 35))
    assert sampled(first, "watch again in the first") == list(range(5))
    assert remedy in warnings(first, "watch again in the first")
    assert sampled(first, "two optimizers")[:20] == list(range(20))


def test_processes_of_a_mesh_of_two_dimensions_agree(tmp_path: Path) -> None:
    """Under hybrid sharding too, whichever process does not watch, all train on."""
    scenarios = ["no process", "every process", "only the first", "late", "log in the first", "close in one"]
    first, *others = train("hybrid", 4, tmp_path, scenarios)
    check_weights([first, *others])
    assert sampled(first, "every process")[:20] == sampled(first, "log in the first")[:20] == list(range(20))
    assert sampled(first, "only the first") == []
    assert "sharded over 4 processes, and 1 of them watch it" in warnings(first, "only the first")
    assert sampled(first, "late")[:10] == list(range(3, 13))
    assert sampled(first, "close in one") == list(range(5))


def test_one_process_watches_replicas(tmp_path: Path) -> None:
    """Under DDP, where gradients are the same everywhere, the first process may watch alone."""
    first, second = train("ddp", 2, tmp_path, ["no process", "only the first", "log in the first", "close in one"])
    check_weights([first, second])
    for scenario in ("only the first", "log in the first", "close in one"):
        assert sampled(first, scenario)[:20] == list(range(20))
        assert warnings(first, scenario) == ""
