"""The supervisor between a real service and an executor that takes its time: nothing is claimed that has no place."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.service.worker.conftest import ended, setting, suspect, write_trainable
from tests.support.patience import PATIENCE

import gradmedic
from gradmedic.protocol.trials import ClaimedTrial
from gradmedic_worker.configuration import read_configuration
from gradmedic_worker.executors.local import LocalExecutor, LocalTrial
from gradmedic_worker.supervisor import Supervisor

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]

SECONDS_TO_CLAIM = 2.0
"""Within which a worker that wants another trial asks for one: it does so twice a second."""


class SlowExecutor(LocalExecutor):
    """Takes the GPUs of its first trial only when it is asked what else would fit, or when nobody asks."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._is_asked = threading.Event()
        self._is_first = True
        self.before_claim: Callable[[], None] = lambda: None

    def fitting(self) -> list[str]:
        """Return what fits."""
        found = super().fitting()
        self._is_asked.set()
        self.before_claim()
        return found

    def start(self, claimed: ClaimedTrial) -> LocalTrial:
        """Start a trial; the first one late."""
        if self._is_first:
            self._is_first = False
            self._is_asked.clear()
            self._is_asked.wait(SECONDS_TO_CLAIM)
        return super().start(claimed)


@pytest.fixture
def client(serve: Any, sqlite_url: str) -> Iterator[gradmedic.Client]:
    """A service, and a connection to it."""
    with serve(sqlite_url) as served, gradmedic.Client(served.url) as client:
        yield client


def executor_of(client: gradmedic.Client, folder: Path) -> tuple[SlowExecutor, Supervisor]:
    """Make a supervisor of two slots and a single GPU, which each trial takes."""
    write_trainable(folder, slots=2, changed=("preload = false", "preload = false\ngpus = 1"))
    configuration = read_configuration(folder / "worker.toml")
    url = client._service.base_url
    executor = SlowExecutor(configuration, url, gpus=["0"], environment={"PATH": os.environ["PATH"]})
    supervisor = Supervisor(client, configuration, executor, tell=lambda _: None)
    client.work.register([one.on_the_wire() for one in configuration.trainables.values()], configuration.name)
    return executor, supervisor


def test_a_gpu_is_not_promised_twice(client: gradmedic.Client, tmp_path: Path) -> None:
    """While one trial is being started on the last GPU no other is claimed for it, which could only fail."""
    _, supervisor = executor_of(client, tmp_path)
    asked = [
        client.reruns.create(suspect(client, pause=0.05), remedies=[setting(how="learn")], seeds=1, steps=80)
        for _ in "ab"
    ]
    worker = threading.Thread(target=supervisor.run)
    worker.start()
    try:
        done = [ended(client, one) for one in asked]
    finally:
        supervisor.abandon()
        worker.join()
    attempts = [[(one.status, one.reason) for one in trial.attempts] for rerun in done for trial in rerun.trials]
    assert attempts == [[("done", None)]] * 4


def test_what_is_claimed_while_a_worker_is_abandoned_is_abandoned_too(client: gradmedic.Client, tmp_path: Path) -> None:
    """A worker that is told to end at once ends, though the service was just handing it a trial of ten minutes."""
    executor, supervisor = executor_of(client, tmp_path)
    asked = client.reruns.create(suspect(client, pause=7.5), remedies=[setting(how="learn")], seeds=1, steps=80)
    executor.before_claim = supervisor.abandon
    worker = threading.Thread(target=supervisor.run, daemon=True)
    worker.start()
    worker.join(PATIENCE)
    assert not worker.is_alive()
    (trial,) = client.reruns.get(asked.id).trials
    assert (trial.status, len(trial.attempts)) == ("running", 1)  # until its lease is over
