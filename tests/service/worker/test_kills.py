"""Whoever is killed with -9, or frozen, in the middle of a trial: nothing is lost, nothing is published twice."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from tests.service.worker.conftest import StartWorker, ended, is_gone, offered, running, setting, suspect
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer

import gradmedic
from gradmedic.exceptions import GradmedicError
from gradmedic.protocol.reruns import RerunDetail

Wait = Callable[[Callable[[], bool]], None]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]

LEASE = 5.0
"""Seconds; nobody who is neither killed nor frozen is silent for so long, on however slow a machine."""
PUBLISHED = ("done", "failed", "stopped", "not_applicable")


@dataclass
class Race:
    """A rerun whose control is under way."""

    client: gradmedic.Client
    rerun: RerunDetail
    launcher: psutil.Process
    script: psutil.Process

    def end(self) -> RerunDetail:
        """Wait for its end, and check that it is there once: as rows, and on the suspect run's diagnosis."""
        done = ended(self.client, self.rerun)
        for trial in done.trials:
            counts = Counter(attempt.status for attempt in trial.attempts)
            assert sum(counts[status] for status in PUBLISHED) == 1, trial
            assert [attempt.number for attempt in trial.attempts] == list(range(1, len(trial.attempts) + 1))
            assert len({attempt.run_id for attempt in trial.attempts}) == len(trial.attempts)
        tried = self.client.runs.diagnosis(done.run_id).tried
        assert [one.outcome.rerun_id for one in tried] == [done.id] * sum(
            c.outcome is not None for c in done.candidates
        )
        return done


@dataclass
class House:
    """What a race needs, until the end of the test."""

    stack: ExitStack
    serve: Any
    start_worker: StartWorker
    wait_until: Wait
    database_url: str

    def begin(self, pause: float = 0.03) -> Race:
        """Start service and worker, and a rerun; wait until its first trial is under way."""
        self.service = self.stack.enter_context(self.serve(self.database_url, "--port", str(free_port()), lease=LEASE))
        client = self.stack.enter_context(gradmedic.Client(self.service.url, attempts=20))
        self.worker = self.stack.enter_context(self.start_worker(self.service.url))
        self.wait_until(lambda: offered(client))
        asked = client.reruns.create(suspect(client, pause), remedies=[setting(how="learn")], seeds=1, steps=80)
        self.wait_until(lambda: running(client, asked) is not None)
        below = psutil.Process(self.worker.pid).children(recursive=True)
        launcher = next(one for one in below if "gradmedic_worker.attempt" in one.cmdline())
        script = next(one for one in below if any("train.py" in word for word in one.cmdline()))
        return Race(client, asked, launcher, script)

    def start_service(self) -> None:
        """Start the service again, at the same address."""
        port = self.service.url.rpartition(":")[2]
        self.service = self.stack.enter_context(self.serve(self.database_url, "--port", port, lease=LEASE))

    def start_other_worker(self) -> None:
        """Start a further worker."""
        self.stack.enter_context(self.start_worker(self.service.url))


@pytest.fixture
def house(serve: Any, database_url: str, start_worker: StartWorker, wait_until: Wait) -> Any:
    """A house on each database in turn."""
    with ExitStack() as stack:
        yield House(stack, serve, start_worker, wait_until, database_url)


def attempts_of(done: RerunDetail) -> list[list[str]]:
    """Return how each attempt at each trial ended."""
    return [[attempt.status for attempt in trial.attempts] for trial in done.trials]


def test_the_service_is_killed(house: House) -> None:
    """The service that comes after it finds the rerun as it was; the worker and its script have waited."""
    race = house.begin()
    house.service.process.kill()
    house.service.process.wait()
    house.start_service()
    done = race.end()
    assert (done.status, done.reason) == ("done", "1 of 1 candidates verified")
    assert all(one[-1] == "done" for one in attempts_of(done))


def test_the_database_is_killed(
    serve: Any, own_postgres: PostgresServer, start_worker: StartWorker, wait_until: Wait
) -> None:
    """Every process of PostgreSQL is killed, twice, and started on the same files: the rerun comes to its end."""
    with ExitStack() as stack:
        house = House(stack, serve, start_worker, wait_until, own_postgres.url)
        race = house.begin()

        def has_ended(candidate: int) -> bool:
            trials = race.client.reruns.get(race.rerun.id).trials
            return any(one.candidate == candidate and one.status == "done" for one in trials)

        def is_away() -> bool:
            try:
                with gradmedic.Client(house.service.url, attempts=1) as once:
                    once.reruns.get(race.rerun.id)
            except GradmedicError:
                return True
            return False

        for kill in range(2):
            if kill:
                wait_until(lambda: has_ended(0))
                wait_until(lambda: running(race.client, race.rerun) is not None)
            before = race.client.reruns.get(race.rerun.id)
            own_postgres.stop(signal.SIGKILL)
            wait_until(is_away)
            own_postgres.start()
            after = race.client.reruns.get(race.rerun.id)
            assert [one.id for one in after.trials][: len(before.trials)] == [one.id for one in before.trials]
            known = {attempt.run_id for trial in after.trials for attempt in trial.attempts}
            assert known >= {attempt.run_id for trial in before.trials for attempt in trial.attempts}
        done = race.end()
    assert (done.status, done.reason) == ("done", "1 of 1 candidates verified")
    assert all(one[-1] == "done" and set(one[:-1]) <= {"lost"} for one in attempts_of(done))


def test_the_worker_is_killed(house: House) -> None:
    """Its script ends with it, and another worker makes another attempt."""
    race = house.begin()
    house.worker.kill()
    house.worker.wait()
    house.wait_until(lambda: is_gone(race.script) and is_gone(race.launcher))
    house.start_other_worker()
    done = race.end()
    assert (done.status, done.reason) == ("done", "1 of 1 candidates verified")
    assert attempts_of(done) == [["lost", "done"], ["done"]]


@pytest.mark.parametrize("victim", ["launcher", "script"])
def test_the_trial_is_killed(house: House, victim: str) -> None:
    """That is how the trial ended: it is published as failed, and says by what."""
    race = house.begin(pause=1.0)  # it is not to have exploded by then, which would reproduce the failure
    os.kill((race.launcher if victim == "launcher" else race.script).pid, signal.SIGKILL)
    done = race.end()
    assert (done.status, attempts_of(done)) == ("failed", [["failed"]])
    assert ("signal 9" if victim == "script" else "launcher was killed") in (done.reason or "")


@pytest.mark.parametrize("wakes", ["early", "late"])
def test_a_frozen_worker_wakes_up(house: House, wakes: str) -> None:
    """Its trial was given to another worker, whether that still runs it or has published: it can change nothing."""
    race = house.begin()
    house.worker.send_signal(signal.SIGSTOP)
    house.start_other_worker()
    if wakes == "late":
        before = race.end()
    else:
        house.wait_until(lambda: len(race.client.reruns.get(race.rerun.id).trials[0].attempts) == 2)
    house.worker.send_signal(signal.SIGCONT)
    house.wait_until(lambda: is_gone(race.script) and is_gone(race.launcher))
    done = race.end()
    if wakes == "late":
        assert repr(done) == repr(before)  # NaN is not equal to itself
    assert (done.status, done.reason) == ("done", "1 of 1 candidates verified")
    assert attempts_of(done)[0] == ["lost", "done"]
