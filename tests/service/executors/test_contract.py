"""What every executor keeps: one suite over trials on this machine and on a Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.service.executors.conftest import Hosting, Workshop
from tests.support.patience import PATIENCE

from gradmedic_worker.executors.base import STOPPED, TIMEOUT, HostedTrial, Lost, TrialEnd

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

Start = Callable[..., HostedTrial]
Wait = Callable[[Callable[[], bool]], None]


def end_of(trial: HostedTrial) -> TrialEnd:
    """Wait for the end of a trial."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended = trial.wait(1.0)
        assert not isinstance(ended, Lost), ended
        if ended is not None:
            return ended
    raise AssertionError(f"the trial did not end; it printed {trial.output()!r}")


def is_gone(pid: int) -> bool:
    """Whether a process has ended, or only waits to be collected."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_trial_streams_to_its_own_run(hosting: Hosting, workshop: Workshop, wait_until: Wait) -> None:
    """Its steps are in the run that the attempt was promised, versions are told, and nothing of it stays on disk."""
    claimed = hosting.claim("explode")
    trial = hosting.executor.start(claimed)
    ended = end_of(trial)
    trial.close()
    assert (ended.exit_code, ended.reason) == (0, None)
    environment = ended.report["environment"]
    assert isinstance(environment, dict)
    assert {"python", "numpy", "machine"} <= environment.keys()
    run = hosting.person.runs.get(claimed.run_id)
    assert (run.last_step, run.verdict, run.parent_id) == (79, "exploding", claimed.parent_id)
    scratch = workshop.folder / "scratch" / f"gradmedic-worker-{os.getuid()}"
    wait_until(lambda: not list(scratch.glob("*/*")))


@pytest.mark.parametrize(
    ("kind", "expected", "said", "report"),
    [("exit", 3, "going", {"not_applicable": "there is nothing to clip"}), ("signal", -signal.SIGSEGV, "", {})],
    ids=["code", "signal"],
)
def test_ends_are_told_as_they_are(
    start: Start, kind: str, expected: int, said: str, report: dict[str, object]
) -> None:
    """Exit codes and signals arrive, with what was printed last and what remedies had to say."""
    trial = start(kind)
    ended = end_of(trial)
    assert (ended.exit_code, ended.report) == (expected, report)
    assert said in trial.output()


def test_output_is_seen_while_it_runs(start: Start, wait_until: Wait) -> None:
    """What a trial prints can be read before it ends, whatever characters it has."""
    trial = start("print", pause=PATIENCE)
    wait_until(lambda: trial.output().startswith("naïve ✓"))
    assert trial.has_started
    assert trial.wait(0) is None


def test_output_is_bounded(start: Start) -> None:
    """Of very much output the beginning and the end arrive, and the gap is told."""
    trial = start("spam")
    assert end_of(trial).exit_code == 0
    kept = trial.output()
    assert len(kept) < 64 * 1024
    assert kept.startswith("first words")
    assert kept.endswith("last words\n")
    assert "bytes are left out" in kept


def test_a_trial_finds_nothing_that_is_not_for_it(hosting: Hosting, start: Start, workshop: Workshop) -> None:
    """Neither the worker's key nor the cluster's token nor where it lies is in its environment, arguments or folder."""
    trial = start("environment")
    assert end_of(trial).exit_code == 0
    first, second, folder, *_ = trial.output().split("\n")
    environment, arguments = json.loads(first), json.loads(second)
    assert hosting.guarded.worker not in trial.output()
    assert workshop.cluster.token not in trial.output()
    assert not [name for name in environment if name.startswith("RAY_")]
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["GRADMEDIC_BASE_URL"] == hosting.guarded.url
    assert arguments[1:] == ["environment", "0.0"]
    assert Path(folder).name == "work"
    assert Path(folder).is_relative_to(workshop.folder / "scratch")


def test_a_script_that_does_not_end_is_ended_in_time(start: Start) -> None:
    """Beyond its seconds a trial is killed, even if it ignores being asked."""
    trial = start("stubborn", seconds=10.0)
    ended = end_of(trial)
    assert (ended.exit_code, ended.reason) == (-signal.SIGKILL, TIMEOUT)
    assert is_gone(int(trial.output()))


@pytest.mark.parametrize("how", ["stop", "close"])
def test_nothing_is_left_of_what_it_started(start: Start, wait_until: Wait, how: str) -> None:
    """A trial that is stopped may clean up; one that is let go of may not; of neither a daemon is left."""
    trial = start("daemon")
    wait_until(lambda: len(trial.output().split()) == 2)
    pids = [int(pid) for pid in trial.output().split()]
    assert not any(is_gone(pid) for pid in pids)
    if how == "stop":
        trial.stop()
        ended = end_of(trial)
        assert ended.reason == STOPPED
        assert "cleaned up" in trial.output()
    else:
        trial.close()
    wait_until(lambda: all(is_gone(pid) for pid in pids))
