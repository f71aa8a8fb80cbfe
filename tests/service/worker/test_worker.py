"""The worker end to end: a real service, a real worker, real scripts."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.service.worker.conftest import SCRIPT, StartWorker, ended, offered, running, setting, suspect

import gradmedic
from gradmedic import wire

Wait = Callable[[Callable[[], bool]], None]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]


FAULTY = """
    import os, sys, time
    arguments = dict(argument[2:].split("=") for argument in sys.argv[1:])
    how = arguments["how"]
    if how == "crash": raise KeyError("a bug of the script")
    if how == "hang": print("hanging", flush=True); time.sleep(600)
    if how == "spam":
        for _ in range(3000): os.write(1, b"x" * 65536)
        print("and nothing else"); sys.exit(0)
""" + SCRIPT.replace('how == "explode"', 'how in ("explode",)')


def test_faulty_scripts_have_outcomes_and_the_others_go_on(
    serve: Any, sqlite_url: str, start_worker: StartWorker, wait_until: Wait
) -> None:
    """A crash, a hang and a script that only prints are failures with their output; a good candidate is verified."""
    with (
        serve(sqlite_url) as served,
        gradmedic.Client(served.url) as client,
        start_worker(served.url, script=FAULTY, timeout=10, slots=2),
    ):
        wait_until(lambda: offered(client))
        remedies = [setting(how=how) for how in ("crash", "hang", "spam", "learn")]
        remedies.append([wire.Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0}), *setting(how="learn")])
        done = ended(client, client.reruns.create(suspect(client), remedies=remedies, seeds=1, steps=80))
        outcomes = [one.outcome.state for one in done.candidates[1:] if one.outcome is not None]
        assert outcomes == ["failed", "failed", "failed", "verified", "failed"], done
        reasons = [one.reason or "" for one in done.candidates]
        assert "exit code 1" in reasons[1]
        assert "took longer than" in reasons[2]
        assert "gradmedic.init()" in reasons[3]
        assert "never called run.watch()" in reasons[5]
        output = [client.reruns.output(one.id) for one in done.trials]
        assert "KeyError: 'a bug of the script'" in output[1]
        assert "hanging" in output[2]
        assert "and nothing else" in output[3]
        assert all(len(one) <= 64 * 1024 for one in output)
        attempt = done.trials[0].attempts[0]
        assert attempt.environment["framework"].startswith("torch")
        assert {one.parent_id for one in client.runs.list(parent_id=done.run_id)} == {done.run_id}


def test_cancelling_reaches_the_script(
    serve: Any, sqlite_url: str, start_worker: StartWorker, wait_until: Wait, tmp_path: Path
) -> None:
    """A cancelled rerun's process is gone soon, and its folder too; the worker goes on to the next."""
    with serve(sqlite_url) as served, gradmedic.Client(served.url) as client, start_worker(served.url) as worker:
        wait_until(lambda: offered(client))
        rerun = client.reruns.create(suspect(client, pause=1.0), remedies=[setting(how="learn")], seeds=1, steps=80)
        wait_until(lambda: running(client, rerun) is not None)
        assert client.reruns.cancel(rerun.id).status == "cancelled"
        wait_until(lambda: not psutil.Process(worker.pid).children(recursive=True))
        wait_until(lambda: not list((tmp_path / "scratch").glob("*/*/*")))
        again = client.reruns.create(suspect(client), remedies=[setting(how="learn")], seeds=1, steps=80)
        assert ended(client, again).reason == "1 of 1 candidates verified"


def test_a_worker_that_is_told_to_end_lets_its_trial_end(
    serve: Any, sqlite_url: str, start_worker: StartWorker, wait_until: Wait
) -> None:
    """After SIGTERM the trial that runs is published, no other is taken, and the worker exits with 0."""
    with serve(sqlite_url) as served, gradmedic.Client(served.url) as client, start_worker(served.url) as worker:
        wait_until(lambda: offered(client))
        rerun = client.reruns.create(suspect(client, pause=0.02), remedies=[setting(how="learn")], seeds=1, steps=80)
        wait_until(lambda: running(client, rerun) is not None)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        trials = client.reruns.get(rerun.id).trials
        assert [one.status for one in trials] == ["done", "queued"]
