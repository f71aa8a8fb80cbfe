"""Leases outlive a worker and a service that do not run for a while."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from tests.support.patience import PATIENCE
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

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]

LEASE = 8.0
"""Seconds."""
LEARN_AT_ONCE = set_parameters(how="learn", pause=0.0)
"""The candidate that learns, and does not pause: what happens to leases is tested during the control."""


def wait_for_seconds(seconds: float, wait_until: WaitUntil) -> None:
    """Wait until this time has passed: what is tested is what a pause of this length does."""
    over = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= over)


@pytest.mark.parametrize(
    ("suspended", "leases", "backend"),
    [
        (["worker"], 0.5, "sqlite"),
        (["service"], 1.7, "postgresql"),
        (["service", "worker"], 2.0, "sqlite"),
        (["service", "worker"], 2.0, "postgresql"),
    ],
    ids=["worker", "service", "both, sqlite", "both, postgresql"],
)
def test_no_trial_is_lost_while_processes_are_suspended(
    serve: Serve,
    database_url: str,
    start_worker: StartWorker,
    wait_until: WaitUntil,
    suspended: list[str],
    leases: float,
    tmp_path: Path,
) -> None:
    """A worker may be suspended for less than a lease; a service, alone or with the worker, also for longer."""
    with (
        serve(database_url, lease=LEASE) as service,
        gradmedic.Client(service.url) as client,
        hold_trials(tmp_path) as release_trials,
        start_worker(service.url) as worker,
    ):
        wait_until(lambda: has_trainables(client))
        rerun = client.reruns.create(
            stream_exploding_run(client, pause=0.1), remedies=[LEARN_AT_ONCE], seeds=1, steps=80
        )
        wait_until(lambda: find_running_trial(client, rerun) is not None)
        processes = {"service": service.process, "worker": worker}
        for name in suspended:
            processes[name].send_signal(signal.SIGSTOP)
        release_trials()
        wait_for_seconds(leases * LEASE, wait_until)
        for name in suspended:
            processes[name].send_signal(signal.SIGCONT)
        rerun = wait_for_end(client, rerun)
        assert attempt_statuses(rerun) == [["done"], ["done"]]


def test_a_worker_that_ends_gives_its_trial_back(
    serve: Serve, database_url: str, start_worker: StartWorker, wait_until: WaitUntil, tmp_path: Path
) -> None:
    """A trial of a worker that ends is queued again at once, long before its lease expires."""
    with serve(database_url, lease=3600.0) as service, gradmedic.Client(service.url) as client:
        with hold_trials(tmp_path), start_worker(service.url) as worker:
            wait_until(lambda: has_trainables(client))
            rerun = client.reruns.create(stream_exploding_run(client), remedies=[LEARN_AT_ONCE], seeds=1, steps=80)
            wait_until(lambda: find_running_trial(client, rerun) is not None)
            worker.send_signal(signal.SIGTERM)
            wait_until(lambda: "draining" in (tmp_path / "worker.log").read_text())
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(PATIENCE) == 0
        wait_until(lambda: client.reruns.get(rerun.id).trials[0].status == "queued")
        with start_worker(service.url):
            rerun = wait_for_end(client, rerun)
        assert attempt_statuses(rerun) == [["lost", "done"], ["done"]]
