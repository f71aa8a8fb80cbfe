"""The worker end to end: a real service, a real worker, real scripts."""

from __future__ import annotations

import platform
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.service.worker.conftest import SCRIPT, StartWorker, ended, is_gone, offered, running, setting, suspect
from tests.support.patience import PATIENCE

import gradmedic
from gradmedic.cli import main
from gradmedic.protocol.remedies import Remedy

Wait = Callable[[Callable[[], bool]], None]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]


FAULTY = """
    import os, sys, time
    arguments = dict(argument[2:].split("=") for argument in sys.argv[1:])
    how = arguments["how"]
    if how == "crash": raise KeyError("a bug of the script")
    if how == "hang": print("hanging", flush=True); time.sleep(600)
    if how == "exhaust":
        print("taking all of it", flush=True)
        held = []
        while True: held.append(b"x" * 2**25)
    if how == "spam":
        for _ in range(3000): os.write(1, b"x" * 65536)
        print("and nothing else"); sys.exit(0)
""" + SCRIPT.replace('how == "explode"', 'how in ("explode",)')


def test_faulty_scripts_have_outcomes_and_the_others_go_on(
    serve: Any, sqlite_url: str, start_worker: StartWorker, wait_until: Wait
) -> None:
    """A crash, a hang, endless output and endless memory are failures with their output; a good one is verified."""
    with (
        serve(sqlite_url) as served,
        gradmedic.Client(served.url) as client,
        start_worker(served.url, script=FAULTY, timeout=20, slots=2),
    ):
        wait_until(lambda: offered(client))
        remedies = [setting(how=how) for how in ("crash", "hang", "spam", "learn", "exhaust")]
        remedies.append([Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0}), *setting(how="learn")])
        done = ended(client, client.reruns.create(suspect(client), remedies=remedies, seeds=1, steps=80))
        outcomes = [one.outcome.state for one in done.candidates[1:] if one.outcome is not None]
        assert outcomes == ["failed", "failed", "failed", "verified", "failed", "failed"], done
        reasons = [one.reason or "" for one in done.candidates]
        assert "exit code 1" in reasons[1]
        assert "took longer than" in reasons[2]
        assert "gradmedic.init()" in reasons[3]
        assert reasons[5] == "it held more than 0.39 GiB of memory"
        assert "never called run.watch()" in reasons[6]
        output = [client.reruns.output(one.id) for one in done.trials]
        assert "KeyError: 'a bug of the script'" in output[1]
        assert "hanging" in output[2]
        assert "and nothing else" in output[3]
        assert "taking all of it" in output[5]
        assert all(len(one) <= 64 * 1024 for one in output)
        ran_on = done.trials[0].attempts[0].environment
        assert ran_on.keys() == {"python", "gradmedic", "numpy", "machine"}
        assert (ran_on["python"], ran_on["gradmedic"]) == (platform.python_version(), gradmedic.__version__)
        proven = next(
            one.outcome for one in client.runs.diagnosis(done.run_id).tried if one.outcome.state == "verified"
        )
        assert proven.environment == ran_on
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
        assert worker.wait(PATIENCE) == 0
        trials = client.reruns.get(rerun.id).trials
        assert [one.status for one in trials] == ["done", "queued"]


def test_a_worker_restarted_with_another_file(
    serve: Any, sqlite_url: str, start_worker: StartWorker, wait_until: Wait, tmp_path: Path
) -> None:
    """A trial whose parameters are not allowed any more fails, and names trainable and parameter."""
    with serve(sqlite_url) as served, gradmedic.Client(served.url) as client:
        with start_worker(served.url):
            wait_until(lambda: offered(client))
        asked = client.reruns.create(suspect(client), remedies=[setting(how="learn")], seeds=1, steps=80)
        file = tmp_path / "worker.toml"
        with start_worker(served.url, changed=('"explode", ', "")):
            done = ended(client, asked)
        reason = "the worker could not run it: trainable 'train': how must be one of learn"
        assert (done.status, reason in (done.reason or "")) == ("failed", True), done.reason
        assert [one.status for one in done.trials[0].attempts] == ["failed"]
        assert "explode" not in file.read_text()


def test_a_worker_whose_key_is_refused_leaves_nothing(
    serve: Any, sqlite_url: str, start_worker: StartWorker, wait_until: Wait, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that may no longer work ends its trial, says why, and exits with an error."""

    def key(*arguments: str) -> str:
        assert main(["api-key", *arguments, "--database-url", sqlite_url]) == 0
        return capsys.readouterr().out.strip()

    mine = key("create", "--all-projects", "--scope", "admin", "--name", "mine")
    theirs = key("create", "--all-projects", "--scope", "worker", "--name", "theirs")
    with (
        serve(sqlite_url, "--require-auth") as served,
        gradmedic.Client(served.url, mine) as client,
        start_worker(served.url, api_key=theirs) as worker,
    ):
        wait_until(lambda: offered(client))
        rerun = client.reruns.create(
            suspect(client, pause=0.3, api_key=mine), remedies=[setting(how="learn")], seeds=1, steps=80
        )
        wait_until(lambda: running(client, rerun) is not None)
        below = psutil.Process(worker.pid).children(recursive=True)
        key("revoke", "theirs")
        assert worker.wait(PATIENCE) == 2
        assert all(is_gone(one) for one in below)
