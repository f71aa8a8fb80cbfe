"""`gradmedic serve --with-worker`: a worker that runs beside the service and ends with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from tests.support.patience import PATIENCE
from tests.support.processes import has_ended
from tests.support.services import Serve
from tests.support.workers import (
    WaitUntil,
    find_running_trial,
    has_trainables,
    hold_trials,
    set_parameters,
    stream_exploding_run,
    wait_for_end,
    write_trainable,
)

import gradmedic

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]


def test_one_command_starts_service_and_worker(
    serve: Serve, sqlite_url: str, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """The worker is a process in its own session. It registers its trainables, and runs reruns to their end."""
    write_trainable(tmp_path)
    with serve(sqlite_url, "--with-worker") as service, gradmedic.Client(service.url) as client:
        wait_until(lambda: has_trainables(client))
        (worker,) = psutil.Process(service.process.pid).children()
        assert worker.cmdline()[1:5] == ["-m", "gradmedic", "worker", "--config"]
        assert os.getsid(worker.pid) == worker.pid
        rerun = client.reruns.create(
            stream_exploding_run(client), remedies=[set_parameters(how="learn")], seeds=1, steps=80
        )
        assert wait_for_end(client, rerun).reason == "1 of 1 candidates verified"


@pytest.mark.parametrize(
    ("how", "status"),
    [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["terminated", "interrupted", "killed"],
)
def test_the_worker_ends_with_the_service(
    how: signal.Signals, status: int, serve: Serve, sqlite_url: str, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """A service that ends during a trial leaves no process behind. The trial is retried later."""
    write_trainable(tmp_path)
    with (
        hold_trials(tmp_path),
        serve(sqlite_url, "--with-worker", lease=5.0) as service,
        gradmedic.Client(service.url) as client,
    ):
        wait_until(lambda: has_trainables(client))
        rerun = client.reruns.create(
            stream_exploding_run(client), remedies=[set_parameters(how="learn")], seeds=1, steps=80
        )
        wait_until(lambda: find_running_trial(client, rerun) is not None)
        descendants = psutil.Process(service.process.pid).children(recursive=True)
        assert len(descendants) == 3, [process.cmdline() for process in descendants]  # worker, launcher, script
        service.process.send_signal(how)
        assert service.process.wait(PATIENCE) == status
        wait_until(lambda: all(has_ended(process.pid) for process in descendants))
    with serve(sqlite_url, "--with-worker", lease=5.0) as service, gradmedic.Client(service.url) as client:
        wait_until(lambda: len(client.reruns.get(rerun.id).trials[0].attempts) == 2)
        assert client.reruns.get(rerun.id).trials[0].attempts[0].status == "lost"


def test_a_worker_with_a_wrong_file_is_reported(
    serve: Serve, sqlite_url: str, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """The mistake in the worker's file is printed, and the service runs on without a worker."""
    (tmp_path / "mine.toml").write_text("[trainables.train]\ncommand = 'python train.py'\n")
    with serve(sqlite_url, "--with-worker", "mine.toml") as service, gradmedic.Client(service.url) as client:
        log = tmp_path / "serve.log"
        wait_until(lambda: "the worker beside the service has ended" in log.read_text())
        assert "mine.toml: trainables.train.command: must be a list, not a text" in log.read_text()
        assert client.work.trainables() == []
