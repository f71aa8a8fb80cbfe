"""A supervisor between a real service and an executor that starts slowly."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.support.patience import PATIENCE
from tests.support.services import Serve
from tests.support.workers import WaitUntil, set_parameters, stream_exploding_run, wait_for_end, write_trainable

import gradmedic
from gradmedic.protocol.trials import ClaimedTrial
from gradmedic_worker.configuration import read_configuration
from gradmedic_worker.executors.local import LocalExecutor, LocalTrial
from gradmedic_worker.supervisor import Supervisor

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]

SECONDS_TO_CLAIM = 2.0
"""Time within which a worker that wants another trial claims one. It does so twice a second."""


class SlowExecutor(LocalExecutor):
    """An executor whose first trial takes its GPUs late: after the next claim, or if there is no next claim."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_claim_near = threading.Event()
        self._is_first = True
        self.before_claim: Callable[[], None] = lambda: None

    def list_startable_trainables(self) -> list[str]:
        """Return the startable trainables, and record that a claim follows."""
        startable = super().list_startable_trainables()
        self._is_claim_near.set()
        self.before_claim()
        return startable

    def start(self, claimed: ClaimedTrial) -> LocalTrial:
        """Start a trial, the first one late."""
        if self._is_first:
            self._is_first = False
            self._is_claim_near.clear()
            self._is_claim_near.wait(SECONDS_TO_CLAIM)
        return super().start(claimed)


@pytest.fixture
def client(serve: Serve, sqlite_url: str) -> Iterator[gradmedic.Client]:
    """A client of a service."""
    with serve(sqlite_url) as service, gradmedic.Client(service.url) as client:
        yield client


def make_supervisor(client: gradmedic.Client, folder: Path) -> tuple[SlowExecutor, Supervisor]:
    """Return a supervisor with two slots and a single GPU, which each trial takes, and its executor."""
    write_trainable(folder, slots=2, replacement=("preload = false", "preload = false\ngpus = 1"))
    configuration = read_configuration(folder / "worker.toml")
    url = client._service.base_url
    executor = SlowExecutor(configuration, url, gpus=["0"], environment={"PATH": os.environ["PATH"]})
    supervisor = Supervisor(client, configuration, executor, print_line=lambda _: None)
    client.work.register([trainable.describe() for trainable in configuration.trainables.values()], configuration.name)
    return executor, supervisor


def test_a_gpu_is_claimed_for_once(client: gradmedic.Client, tmp_path: Path) -> None:
    """While a trial starts on the last GPU, no other trial is claimed for it. That trial could only fail."""
    _, supervisor = make_supervisor(client, tmp_path)
    reruns = [
        client.reruns.create(
            stream_exploding_run(client, pause=0.05), remedies=[set_parameters(how="learn")], seeds=1, steps=80
        )
        for _ in range(2)
    ]
    worker = threading.Thread(target=supervisor.run)
    worker.start()
    try:
        ended = [wait_for_end(client, rerun) for rerun in reruns]
    finally:
        supervisor.abandon()
        worker.join()
    attempts = [
        [(attempt.status, attempt.reason) for attempt in trial.attempts] for rerun in ended for trial in rerun.trials
    ]
    assert attempts == [[("done", None)]] * 4


def test_a_trial_that_is_claimed_during_abandon_is_abandoned(client: gradmedic.Client, tmp_path: Path) -> None:
    """A worker that is abandoned during a claim ends at once and gives the trial back, which would take ten minutes."""
    executor, supervisor = make_supervisor(client, tmp_path)
    rerun = client.reruns.create(
        stream_exploding_run(client, pause=7.5), remedies=[set_parameters(how="learn")], seeds=1, steps=80
    )
    executor.before_claim = supervisor.abandon
    worker = threading.Thread(target=supervisor.run, daemon=True)
    worker.start()
    worker.join(PATIENCE)
    assert not worker.is_alive()
    (trial,) = client.reruns.get(rerun.id).trials
    assert (trial.status, [attempt.status for attempt in trial.attempts]) == ("queued", ["lost"])


class RenewedExecutor(LocalExecutor):
    """An executor that starts a trial only when its lease was renewed twice."""

    client: gradmedic.Client
    wait_until: WaitUntil

    def start(self, claimed: ClaimedTrial) -> LocalTrial:
        """Start a trial after two heartbeats."""
        leases: set[datetime | None] = set()

        def has_renewed_lease() -> bool:
            trials = self.client.reruns.get(claimed.rerun_id).trials
            leases.update(trial.lease_expires_at for trial in trials if trial.id == claimed.trial_id)
            return len(leases) > 2

        self.wait_until(has_renewed_lease)
        return super().start(claimed)


def test_heartbeats_are_sent_while_a_trial_starts(
    client: gradmedic.Client, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """The lease of a trial is renewed from its claim on, however long the start of its process takes."""
    write_trainable(tmp_path)
    configuration = read_configuration(tmp_path / "worker.toml")
    executor = RenewedExecutor(
        configuration, client._service.base_url, gpus=[], environment={"PATH": os.environ["PATH"]}
    )
    executor.client, executor.wait_until = client, wait_until
    supervisor = Supervisor(client, configuration, executor, print_line=lambda _: None)
    client.work.register([trainable.describe() for trainable in configuration.trainables.values()], configuration.name)
    rerun = client.reruns.create(
        stream_exploding_run(client), remedies=[set_parameters(how="learn")], seeds=1, steps=80
    )
    worker = threading.Thread(target=supervisor.run)
    worker.start()
    try:
        ended = wait_for_end(client, rerun)
    finally:
        supervisor.abandon()
        worker.join()
    assert [[attempt.status for attempt in trial.attempts] for trial in ended.trials] == [["done"], ["done"]]


def test_a_worker_preloads_torch_before_the_first_trial(tmp_path: Path) -> None:
    """The process from which trials are forked starts with the worker, unless no trainable wants it."""
    for wish, servers in (("true", 1), ("false", 0)):
        write_trainable(tmp_path, replacement=("preload = false", f"preload = {wish}"))
        configuration = read_configuration(tmp_path / "worker.toml")
        executor = LocalExecutor(configuration, "http://127.0.0.1:1", gpus=[], environment={"PATH": os.environ["PATH"]})
        executor.prepare()
        try:
            assert len(executor._starter._fork_servers) == servers
        finally:
            executor.close()
