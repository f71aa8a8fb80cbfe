"""A trial whose service lacks steps is never compared: the worker sends the steps, or another attempt is made."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.services import Serve
from tests.support.workers import (
    SCRIPT,
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
from gradmedic.protocol.reruns import RerunDetail

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]

LEASE = 5.0
"""Seconds. A worker that runs is never silent for so long, even on a slow machine."""
STEPS = 80
AWAY = Fault(path="/steps")
"""The service does not take a block."""
IMPATIENT_SCRIPT = SCRIPT.replace("import gradmedic\n", "import gradmedic, gradmedic.run\n", 1).replace(
    "    run = gradmedic.init(",
    "    gradmedic.run.FINISH_SECONDS = gradmedic.run.DEFAULT_FINISH_TIMEOUT = 0.5\n    run = gradmedic.init(",
    1,
)
"""The script, with an SDK that waits for the service for half a second only."""
KILLED_SCRIPT = SCRIPT.replace("import gradmedic\n", "import gradmedic, gradmedic.run, os\n", 1).replace(
    "    run = gradmedic.init(",
    "    gradmedic.run.Uploader.close = lambda *_: os.kill(os.getpid(), 9)\n"
    "    run = gradmedic.init(flush_interval=3600.0, ",
    1,
)
"""The script, which is killed after its last step, before the last steps are sent."""


@dataclass
class ProxiedRace:
    """A rerun whose worker and scripts reach the service through a proxy."""

    client: gradmedic.Client
    proxy: FaultyProxy
    rerun: RerunDetail

    def read(self) -> RerunDetail:
        """Return the rerun as it is now."""
        return self.client.reruns.get(self.rerun.id)

    def check_end(self, *first_attempts: str) -> None:
        """Wait for the end, and check the attempts at the control and that each run that counts is complete."""
        rerun = wait_for_end(self.client, self.rerun)
        assert attempt_statuses(rerun) == [list(first_attempts), ["done"]]
        assert rerun.reason == "1 of 1 candidates verified"
        for trial in rerun.trials:
            assert (trial.step, trial.reason) == (STEPS - 1, None)
            assert self.client.runs.get(trial.attempts[-1].run_id).last_step == STEPS - 1


@contextmanager
def start_race(
    serve: Serve, database_url: str, start_worker: StartWorker, wait_until: WaitUntil, script: str
) -> Iterator[ProxiedRace]:
    """Start a rerun whose scripts cannot send steps."""
    with (
        serve(database_url, lease=LEASE) as service,
        gradmedic.Client(service.url) as client,
        FaultyProxy(service.url) as proxy,
        start_worker(proxy.url, script=script),
    ):
        wait_until(lambda: has_trainables(client))
        suspect = stream_exploding_run(client)
        proxy.permanent = AWAY
        rerun = client.reruns.create(suspect, remedies=[set_parameters(how="learn")], seeds=1, steps=STEPS)
        yield ProxiedRace(client, proxy, rerun)


def test_the_worker_sends_what_the_script_could_not(
    serve: Serve, sqlite_url: str, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    """A script that ends while the service is away has its steps sent by the worker, and the trial is done."""
    with start_race(serve, sqlite_url, start_worker, wait_until, IMPATIENT_SCRIPT) as race:
        trial = race.rerun.trials[0].id

        def has_given_up() -> bool:
            trials = race.read().trials
            return bool(trials[0].attempts) and "could not send" in race.client.reruns.output(trial)

        wait_until(has_given_up)
        race.proxy.permanent = None
        race.check_end("done")
        assert "steps sent" in race.client.reruns.output(trial)


def test_a_trial_that_lacks_steps_is_made_again(
    serve: Serve, sqlite_url: str, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    """If the steps do not arrive within a lease, the attempt is incomplete, and the next one counts."""
    with start_race(serve, sqlite_url, start_worker, wait_until, IMPATIENT_SCRIPT) as race:
        wait_until(lambda: len(race.read().trials[0].attempts) > 1)
        race.proxy.permanent = None
        (attempt, *_) = race.read().trials[0].attempts
        assert (attempt.status, attempt.exit_code) == ("incomplete", 0)
        assert attempt.reason == "the script has logged its steps up to 79, and the service has no step"
        race.check_end("incomplete", "done")


def test_a_script_that_is_killed_after_its_last_step_is_done(
    serve: Serve, sqlite_url: str, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    """The worker sends what a script has recorded that is killed with -9 after its last step."""
    with start_race(serve, sqlite_url, start_worker, wait_until, KILLED_SCRIPT) as race:
        race.proxy.permanent = None
        race.check_end("done")
        attempts = [trial.attempts[0] for trial in race.read().trials]
        assert [attempt.exit_code for attempt in attempts] == [-signal.SIGKILL] * 2
        assert all("steps sent" in race.client.reruns.output(trial.id) for trial in race.read().trials)


@pytest.mark.parametrize("is_killed", [False, True], ids=["suspended", "killed"])
def test_the_service_is_away_while_a_script_ends(
    serve: Serve, database_url: str, start_worker: StartWorker, wait_until: WaitUntil, is_killed: bool, tmp_path: Path
) -> None:
    """A script that ends while the service is suspended, or killed and started again, is complete."""
    options = ("--port", str(free_port()))
    with ExitStack() as stack:
        service = stack.enter_context(serve(database_url, *options, lease=LEASE))
        client = stack.enter_context(gradmedic.Client(service.url, attempts=20))
        release_trials = stack.enter_context(hold_trials(tmp_path))
        stack.enter_context(start_worker(service.url))
        wait_until(lambda: has_trainables(client))
        rerun = client.reruns.create(
            stream_exploding_run(client), remedies=[set_parameters(how="learn")], seeds=1, steps=STEPS
        )
        wait_until(lambda: find_running_trial(client, rerun) is not None)
        service.process.send_signal(signal.SIGKILL if is_killed else signal.SIGSTOP)
        release_trials()
        over = time.monotonic() + LEASE  # the script ends meanwhile
        wait_until(lambda: time.monotonic() >= over)
        if is_killed:
            service.process.wait(PATIENCE)
            stack.enter_context(serve(database_url, *options, lease=LEASE))
        else:
            service.process.send_signal(signal.SIGCONT)
        ended = wait_for_end(client, rerun)
        assert attempt_statuses(ended) == [["done"], ["done"]]
        assert [trial.step for trial in ended.trials] == [STEPS - 1] * 2
        assert ended.reason == "1 of 1 candidates verified"
