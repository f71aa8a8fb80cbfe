"""The contract of executors: the same tests for trials on this machine and on a Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.patience import PATIENCE
from tests.support.processes import has_ended
from tests.support.ray_trials import ExecutorUnderTest, TrainableFolder
from tests.support.workers import WaitUntil

from gradmedic.protocol.trial_report import TrialReport
from gradmedic_worker.executors.base import STOPPED, TIMEOUT, LostAttempt, TrialEnd, TrialProcess

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

StartTrial = Callable[..., TrialProcess]


def wait_for_end(trial: TrialProcess) -> TrialEnd:
    """Wait for the end of a trial."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        end = trial.wait(1.0)
        assert not isinstance(end, LostAttempt), end
        if end is not None:
            return end
    raise AssertionError(f"the trial did not end; it printed {trial.output()!r}")


def test_a_trial_streams_to_its_own_run(
    executor_under_test: ExecutorUnderTest, trainable_folder: TrainableFolder, wait_until: WaitUntil
) -> None:
    """A trial's steps are in the attempt's run, its report has the versions, and none of its files is left."""
    claimed = executor_under_test.claim("explode")
    trial = executor_under_test.executor.start(claimed)
    end = wait_for_end(trial)
    trial.close()
    assert (end.exit_code, end.reason) == (0, None)
    assert {"python", "numpy", "machine"} <= end.report.environment.keys()
    run = executor_under_test.user_client.runs.get(claimed.run_id)
    assert (run.last_step, run.verdict, run.parent_id) == (79, "exploding", claimed.parent_id)
    scratch = trainable_folder.folder / "scratch" / f"gradmedic-worker-{os.getuid()}"
    wait_until(lambda: not list(scratch.glob("*/*")))


@pytest.mark.parametrize(
    ("kind", "exit_code", "printed", "report"),
    [
        ("exit", 3, "going", TrialReport(not_applicable="there is nothing to clip")),
        ("signal", -signal.SIGSEGV, "", TrialReport()),
    ],
    ids=["code", "signal"],
)
def test_the_end_of_a_trial_has_its_exit_code_output_and_report(
    start_trial: StartTrial, kind: str, exit_code: int, printed: str, report: TrialReport
) -> None:
    """The end of a trial has the exit code or the signal, the last output and the script's report."""
    trial = start_trial(kind)
    end = wait_for_end(trial)
    assert (end.exit_code, end.report) == (exit_code, report)
    assert printed in trial.output()


def test_output_can_be_read_while_a_trial_runs(start_trial: StartTrial, wait_until: WaitUntil) -> None:
    """The output of a running trial can be read, with all of its characters."""
    trial = start_trial("print", pause=PATIENCE)
    wait_until(lambda: trial.output().startswith("naïve ✓"))
    assert trial.has_started
    assert trial.wait(0) is None


def test_output_is_bounded(start_trial: StartTrial) -> None:
    """Of a very long output, the start and the end are kept, and the gap is marked."""
    trial = start_trial("spam")
    assert wait_for_end(trial).exit_code == 0
    output = trial.output()
    assert len(output) < 64 * 1024
    assert output.startswith("first words")
    assert output.endswith("last words\n")
    assert "bytes are left out" in output


def test_a_trial_has_access_to_no_secret(
    executor_under_test: ExecutorUnderTest, start_trial: StartTrial, trainable_folder: TrainableFolder
) -> None:
    """A trial's environment and arguments hold neither the worker's key nor the cluster's token nor their paths."""
    trial = start_trial("environment")
    assert wait_for_end(trial).exit_code == 0
    first, second, folder, *_ = trial.output().split("\n")
    environment, arguments = json.loads(first), json.loads(second)
    assert executor_under_test.service.worker_key not in trial.output()
    assert trainable_folder.cluster.token not in trial.output()
    assert not [name for name in environment if name.startswith("RAY_")]
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["GRADMEDIC_BASE_URL"] == executor_under_test.service.url
    assert arguments[1:] == ["environment", "0.0"]
    assert Path(folder).name == "work"
    assert Path(folder).is_relative_to(trainable_folder.folder / "scratch")


def test_a_trial_is_killed_at_its_time_limit(start_trial: StartTrial) -> None:
    """A trial that ignores SIGTERM is killed soon after its time limit."""
    trial = start_trial("stubborn", seconds=10.0)
    end = wait_for_end(trial)
    assert (end.exit_code, end.reason) == (-signal.SIGKILL, TIMEOUT)
    assert has_ended(int(trial.output()))


@pytest.mark.parametrize("how", ["stop", "close"])
def test_no_descendant_of_a_trial_is_left(start_trial: StartTrial, wait_until: WaitUntil, how: str) -> None:
    """A stopped trial may clean up, a closed one may not. No daemon of either is left."""
    trial = start_trial("daemon")
    wait_until(lambda: len(trial.output().split()) == 2)
    pids = [int(pid) for pid in trial.output().split()]
    assert not any(has_ended(pid) for pid in pids)
    if how == "stop":
        trial.stop()
        end = wait_for_end(trial)
        assert end.reason == STOPPED
        assert "cleaned up" in trial.output()
    else:
        trial.close()
    wait_until(lambda: all(has_ended(pid) for pid in pids))
