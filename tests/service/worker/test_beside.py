"""`gradmedic serve --with-worker`: a worker beside the service, which lives as long as the service does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.service.worker.conftest import ended, is_gone, offered, running, setting, suspect, write_trainable
from tests.support.patience import PATIENCE

import gradmedic

Wait = Callable[[Callable[[], bool]], None]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]


def test_one_command_serves_and_works(serve: Any, sqlite_url: str, tmp_path: Path, wait_until: Wait) -> None:
    """The worker is a process in a session of its own, offers what its file says, and runs reruns to their end."""
    write_trainable(tmp_path)
    with serve(sqlite_url, "--with-worker") as served, gradmedic.Client(served.url) as client:
        wait_until(lambda: offered(client))
        (worker,) = psutil.Process(served.process.pid).children()
        assert worker.cmdline()[1:5] == ["-m", "gradmedic", "worker", "--config"]
        assert os.getsid(worker.pid) == worker.pid
        rerun = client.reruns.create(suspect(client), remedies=[setting(how="learn")], seeds=1, steps=80)
        assert ended(client, rerun).reason == "1 of 1 candidates verified"


@pytest.mark.parametrize(
    ("how", "status"),
    [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["told", "interrupted", "killed"],
)
def test_the_worker_ends_with_the_service(
    how: signal.Signals, status: int, serve: Any, sqlite_url: str, tmp_path: Path, wait_until: Wait
) -> None:
    """Told to end, interrupted or killed in the middle of a trial, it leaves no process; the trial is retried."""
    write_trainable(tmp_path)
    with serve(sqlite_url, "--with-worker", lease=5.0) as served, gradmedic.Client(served.url) as client:
        wait_until(lambda: offered(client))
        asked = client.reruns.create(suspect(client, pause=0.1), remedies=[setting(how="learn")], seeds=1, steps=80)
        wait_until(lambda: running(client, asked) is not None)
        left = psutil.Process(served.process.pid).children(recursive=True)
        assert len(left) == 3, [one.cmdline() for one in left]  # worker, launcher, script
        served.process.send_signal(how)
        assert served.process.wait(PATIENCE) == status
        wait_until(lambda: all(is_gone(one) for one in left))
    with serve(sqlite_url, "--with-worker", lease=5.0) as served, gradmedic.Client(served.url) as client:
        wait_until(lambda: len(client.reruns.get(asked.id).trials[0].attempts) == 2)
        assert client.reruns.get(asked.id).trials[0].attempts[0].status == "lost"


def test_a_worker_that_cannot_work_is_told_of(serve: Any, sqlite_url: str, tmp_path: Path, wait_until: Wait) -> None:
    """What is wrong with its file is printed; the service says that it is alone, and serves."""
    (tmp_path / "mine.toml").write_text("[trainables.train]\ncommand = 'python train.py'\n")
    with serve(sqlite_url, "--with-worker", "mine.toml") as served, gradmedic.Client(served.url) as client:
        log = tmp_path / "serve.log"
        wait_until(lambda: "the worker beside the service has ended" in log.read_text())
        assert "mine.toml: trainables.train.command: must be a list of texts" in log.read_text()
        assert client.work.trainables() == []
