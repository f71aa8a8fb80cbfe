"""A part is killed with -9 or suspended during a trial: no trial is lost, and none is published twice."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.processes import has_ended
from tests.support.services import Serve
from tests.support.workers import (
    StartWorker,
    WaitUntil,
    attempt_statuses,
    find_running_trial,
    has_trainables,
    hold_trials,
    set_parameters,
    stream_exploding_run,
    wait_for_end,
)

import gradmedic
from gradmedic.exceptions import GradmedicError
from gradmedic.protocol.reruns import RerunDetail

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]

LEASE = 5.0
"""Seconds. A worker that is neither killed nor suspended is never silent for so long, even on a slow machine."""
PUBLISHED_STATUSES = ("done", "failed", "stopped", "not_applicable")


@dataclass
class RunningRace:
    """A rerun whose control runs, and waits at a step."""

    client: gradmedic.Client
    rerun: RerunDetail
    launcher: psutil.Process
    script: psutil.Process
    release: Callable[[], None]
    """Lets the control continue."""

    def has_no_process(self) -> bool:
        """Whether launcher and script have ended."""
        return has_ended(self.script.pid) and has_ended(self.launcher.pid)

    def wait_for_end(self) -> RerunDetail:
        """Wait for the end. Check that each trial, and the outcome in the run's diagnosis, is published once."""
        rerun = wait_for_end(self.client, self.rerun)
        for trial in rerun.trials:
            counts = Counter(attempt.status for attempt in trial.attempts)
            assert sum(counts[status] for status in PUBLISHED_STATUSES) == 1, trial
            assert [attempt.number for attempt in trial.attempts] == list(range(1, len(trial.attempts) + 1))
            assert len({attempt.run_id for attempt in trial.attempts}) == len(trial.attempts)
        tried = self.client.runs.diagnosis(rerun.run_id).tried
        outcomes = [candidate.outcome for candidate in rerun.candidates if candidate.outcome is not None]
        assert [advice.outcome.rerun_id for advice in tried] == [rerun.id] * len(outcomes)
        return rerun


@dataclass
class Deployment:
    """A service and workers, which run until the end of the test."""

    stack: ExitStack
    serve: Serve
    start_worker: StartWorker
    wait_until: WaitUntil
    database_url: str
    folder: Path

    def start_race(self) -> RunningRace:
        """Start service, worker and a rerun, and wait until its first trial runs."""
        release = self.stack.enter_context(hold_trials(self.folder))
        self.service = self.stack.enter_context(self.serve(self.database_url, "--port", str(free_port()), lease=LEASE))
        client = self.stack.enter_context(gradmedic.Client(self.service.url, attempts=20))
        self.worker = self.stack.enter_context(self.start_worker(self.service.url))
        self.wait_until(lambda: has_trainables(client))
        remedies = [set_parameters(how="learn", pause=0.0)]
        rerun = client.reruns.create(stream_exploding_run(client, pause=0.03), remedies=remedies, seeds=1, steps=80)
        self.wait_until(lambda: find_running_trial(client, rerun) is not None)
        descendants = psutil.Process(self.worker.pid).children(recursive=True)
        launcher = next(process for process in descendants if "gradmedic_worker.attempt" in process.cmdline())
        script = next(process for process in descendants if any("train.py" in word for word in process.cmdline()))
        return RunningRace(client, rerun, launcher, script, release)

    def restart_service(self) -> None:
        """Start the service again, at the same address."""
        port = self.service.url.rpartition(":")[2]
        self.service = self.stack.enter_context(self.serve(self.database_url, "--port", port, lease=LEASE))

    def start_other_worker(self) -> None:
        """Start a further worker."""
        self.stack.enter_context(self.start_worker(self.service.url))


@pytest.fixture
def deployment(
    serve: Serve, database_url: str, start_worker: StartWorker, wait_until: WaitUntil, tmp_path: Path
) -> Any:
    """A deployment on the test's database."""
    with ExitStack() as stack:
        yield Deployment(stack, serve, start_worker, wait_until, database_url, tmp_path)


def test_the_service_is_killed(deployment: Deployment) -> None:
    """A restarted service finds the rerun as it was. The worker and its script have waited."""
    race = deployment.start_race()
    deployment.service.process.kill()
    deployment.service.process.wait()
    race.release()
    deployment.restart_service()
    rerun = race.wait_for_end()
    assert (rerun.status, rerun.reason) == ("done", "1 of 1 candidates verified")
    assert all(statuses[-1] == "done" for statuses in attempt_statuses(rerun))


def test_the_database_is_killed(
    serve: Serve, own_postgres: PostgresServer, start_worker: StartWorker, wait_until: WaitUntil, tmp_path: Path
) -> None:
    """The rerun ends although all processes of PostgreSQL are killed twice, and started on the same files."""
    with ExitStack() as stack:
        deployment = Deployment(stack, serve, start_worker, wait_until, own_postgres.url, tmp_path)
        release_candidate = stack.enter_context(hold_trials(tmp_path, "learn"))
        race = deployment.start_race()

        def has_done_trial(candidate: int) -> bool:
            trials = race.client.reruns.get(race.rerun.id).trials
            return any(trial.candidate == candidate and trial.status == "done" for trial in trials)

        def is_unreachable() -> bool:
            try:
                with gradmedic.Client(deployment.service.url, attempts=1) as client:
                    client.reruns.get(race.rerun.id)
            except GradmedicError:
                return True
            return False

        for release in (race.release, release_candidate):
            if release is release_candidate:
                wait_until(lambda: has_done_trial(0))
                wait_until(lambda: find_running_trial(race.client, race.rerun) is not None)
            before = race.client.reruns.get(race.rerun.id)
            own_postgres.stop(signal.SIGKILL)
            wait_until(is_unreachable)
            release()
            own_postgres.start()
            after = race.client.reruns.get(race.rerun.id)
            trial_ids = [trial.id for trial in before.trials]
            assert [trial.id for trial in after.trials][: len(trial_ids)] == trial_ids
            run_ids = {attempt.run_id for trial in after.trials for attempt in trial.attempts}
            assert run_ids >= {attempt.run_id for trial in before.trials for attempt in trial.attempts}
        rerun = race.wait_for_end()
    assert (rerun.status, rerun.reason) == ("done", "1 of 1 candidates verified")
    assert all(statuses[-1] == "done" and set(statuses[:-1]) <= {"lost"} for statuses in attempt_statuses(rerun))


@pytest.mark.parametrize("backend", ["postgresql"])
def test_the_worker_is_killed(deployment: Deployment) -> None:
    """The script ends with its worker, and another worker makes another attempt."""
    race = deployment.start_race()
    deployment.worker.kill()
    deployment.worker.wait()
    deployment.wait_until(race.has_no_process)
    race.release()
    deployment.start_other_worker()
    rerun = race.wait_for_end()
    assert (rerun.status, rerun.reason) == ("done", "1 of 1 candidates verified")
    assert attempt_statuses(rerun) == [["lost", "done"], ["done"]]


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("victim", ["launcher", "script"])
def test_the_trial_is_killed(deployment: Deployment, victim: str) -> None:
    """A trial whose launcher or script is killed is published as failed, with the reason."""
    race = deployment.start_race()
    os.kill((race.launcher if victim == "launcher" else race.script).pid, signal.SIGKILL)
    rerun = race.wait_for_end()
    assert (rerun.status, attempt_statuses(rerun)) == ("failed", [["failed"]])
    assert ("signal 9" if victim == "script" else "launcher was killed") in (rerun.reason or "")


@pytest.mark.parametrize(("resumed", "backend"), [("early", "sqlite"), ("late", "postgresql")])
def test_a_suspended_worker_is_resumed(deployment: Deployment, resumed: str) -> None:
    """A resumed worker changes nothing: another worker runs its trial (early), or has published it (late)."""
    race = deployment.start_race()
    deployment.worker.send_signal(signal.SIGSTOP)
    race.release()
    deployment.start_other_worker()
    if resumed == "late":
        before = race.wait_for_end()
    else:
        deployment.wait_until(lambda: len(race.client.reruns.get(race.rerun.id).trials[0].attempts) == 2)
    deployment.worker.send_signal(signal.SIGCONT)
    deployment.wait_until(race.has_no_process)
    rerun = race.wait_for_end()
    if resumed == "late":
        assert repr(rerun) == repr(before)  # `==` fails because NaN is not equal to itself
    assert (rerun.status, rerun.reason) == ("done", "1 of 1 candidates verified")
    assert attempt_statuses(rerun)[0] == ["lost", "done"]
