"""A real worker with a real service and real scripts."""

from __future__ import annotations

import platform
import signal
from pathlib import Path

import psutil
import pytest
from tests.support.patience import PATIENCE
from tests.support.processes import has_ended
from tests.support.services import Serve
from tests.support.workers import (
    SCRIPT,
    StartWorker,
    WaitUntil,
    find_running_trial,
    has_trainables,
    hold_trials,
    set_parameters,
    stream_exploding_run,
    wait_for_end,
)

import gradmedic
from gradmedic.cli import main
from gradmedic.protocol.remedies import Remedy

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]


FAULTY_SCRIPT = """
    import os, sys, time
    arguments = dict(argument[2:].split("=") for argument in sys.argv[1:])
    how = arguments["how"]
    if how == "crash": raise KeyError("a bug of the script")
    if how == "hang": print("hanging", flush=True); time.sleep(600)
    if how == "exhaust":
        print("taking all memory", flush=True)
        held = []
        while True: held.append(b"x" * 2**25)
    if how == "spam":
        for _ in range(3000): os.write(1, b"x" * 65536)
        print("and nothing else"); sys.exit(0)
""" + SCRIPT.replace('how == "explode"', 'how in ("explode",)')


def test_a_faulty_script_fails_and_the_others_run_on(
    serve: Serve, sqlite_url: str, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    """A crash, a hang, endless output and endless memory are failures with their output. A good trial is verified."""
    with (
        serve(sqlite_url) as service,
        gradmedic.Client(service.url) as client,
        start_worker(service.url, script=FAULTY_SCRIPT, timeout=20, slots=2),
    ):
        wait_until(lambda: has_trainables(client))
        remedies = [set_parameters(how=how) for how in ("crash", "hang", "spam", "learn", "exhaust")]
        remedies.append([Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0}), *set_parameters(how="learn")])
        rerun = client.reruns.create(stream_exploding_run(client), remedies=remedies, seeds=1, steps=80)
        rerun = wait_for_end(client, rerun)
        outcomes = [candidate.outcome.state for candidate in rerun.candidates[1:] if candidate.outcome is not None]
        assert outcomes == ["failed", "failed", "failed", "verified", "failed", "failed"], rerun
        reasons = [candidate.reason or "" for candidate in rerun.candidates]
        assert "exit code 1" in reasons[1]
        assert "took longer than" in reasons[2]
        assert "gradmedic.init()" in reasons[3]
        assert reasons[5] == "it held more than 0.39 GiB of memory"
        assert "never called run.watch()" in reasons[6]
        outputs = [client.reruns.output(trial.id) for trial in rerun.trials]
        assert "KeyError: 'a bug of the script'" in outputs[1]
        assert "hanging" in outputs[2]
        assert "and nothing else" in outputs[3]
        assert "taking all memory" in outputs[5]
        assert all(len(output) <= 64 * 1024 for output in outputs)
        environment = rerun.trials[0].attempts[0].environment
        assert environment.keys() == {"python", "gradmedic", "numpy", "machine"}
        assert (environment["python"], environment["gradmedic"]) == (platform.python_version(), gradmedic.__version__)
        tried = client.runs.diagnosis(rerun.run_id).tried
        verified = next(advice.outcome for advice in tried if advice.outcome.state == "verified")
        assert verified.environment == environment
        assert {run.parent_id for run in client.runs.list(parent_id=rerun.run_id)} == {rerun.run_id}


def test_cancelling_a_rerun_ends_its_script(
    serve: Serve, sqlite_url: str, start_worker: StartWorker, wait_until: WaitUntil, tmp_path: Path
) -> None:
    """The process and the folder of a cancelled rerun's trial are removed soon, and the worker runs the next rerun."""
    with serve(sqlite_url) as service, gradmedic.Client(service.url) as client, start_worker(service.url) as worker:
        wait_until(lambda: has_trainables(client))
        remedies = [set_parameters(how="learn")]
        rerun = client.reruns.create(stream_exploding_run(client, pause=1.0), remedies=remedies, seeds=1, steps=80)
        wait_until(lambda: find_running_trial(client, rerun) is not None)
        assert client.reruns.cancel(rerun.id).status == "cancelled"
        wait_until(lambda: not psutil.Process(worker.pid).children(recursive=True))
        wait_until(lambda: not list((tmp_path / "scratch").glob("*/*/*")))
        next_rerun = client.reruns.create(stream_exploding_run(client), remedies=remedies, seeds=1, steps=80)
        assert wait_for_end(client, next_rerun).reason == "1 of 1 candidates verified"


def test_a_terminated_worker_lets_its_trial_end(
    serve: Serve, sqlite_url: str, start_worker: StartWorker, wait_until: WaitUntil, tmp_path: Path
) -> None:
    """After SIGTERM the running trial is published, no other is claimed, and the worker exits with 0."""
    with (
        serve(sqlite_url) as service,
        gradmedic.Client(service.url) as client,
        hold_trials(tmp_path) as release_trials,
        start_worker(service.url) as worker,
    ):
        wait_until(lambda: has_trainables(client))
        rerun = client.reruns.create(
            stream_exploding_run(client), remedies=[set_parameters(how="learn")], seeds=1, steps=80
        )
        wait_until(lambda: find_running_trial(client, rerun) is not None)
        worker.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in (tmp_path / "worker.log").read_text())
        release_trials()
        assert worker.wait(PATIENCE) == 0
        trials = client.reruns.get(rerun.id).trials
        assert [trial.status for trial in trials] == ["done", "queued"]


def test_a_worker_refuses_parameters_that_its_file_does_not_allow(
    serve: Serve, sqlite_url: str, start_worker: StartWorker, wait_until: WaitUntil, tmp_path: Path
) -> None:
    """If a restarted worker's file allows a parameter no more, the trial fails and names trainable and parameter."""
    with serve(sqlite_url) as service, gradmedic.Client(service.url) as client:
        with start_worker(service.url):
            wait_until(lambda: has_trainables(client))
        rerun = client.reruns.create(
            stream_exploding_run(client), remedies=[set_parameters(how="learn")], seeds=1, steps=80
        )
        with start_worker(service.url, replacement=('"explode", ', "")):
            rerun = wait_for_end(client, rerun)
        reason = "the worker could not run it: trainable 'train': how must be one of learn"
        assert (rerun.status, reason in (rerun.reason or "")) == ("failed", True), rerun.reason
        assert [attempt.status for attempt in rerun.trials[0].attempts] == ["failed"]
        assert "explode" not in (tmp_path / "worker.toml").read_text()


def test_a_worker_with_a_revoked_key_leaves_no_process(
    serve: Serve,
    sqlite_url: str,
    start_worker: StartWorker,
    wait_until: WaitUntil,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A worker whose key is revoked ends its trial and exits with an error."""

    def run_key_command(*arguments: str) -> str:
        assert main(["api-key", *arguments, "--database-url", sqlite_url]) == 0
        return capsys.readouterr().out.strip()

    admin_key = run_key_command("create", "--all-projects", "--scope", "admin", "--name", "admin")
    worker_key = run_key_command("create", "--all-projects", "--scope", "worker", "--name", "worker")
    with (
        serve(sqlite_url, "--require-auth") as service,
        gradmedic.Client(service.url, admin_key) as client,
        start_worker(service.url, api_key=worker_key) as worker,
    ):
        wait_until(lambda: has_trainables(client))
        rerun = client.reruns.create(
            stream_exploding_run(client, pause=0.3, api_key=admin_key),
            remedies=[set_parameters(how="learn")],
            seeds=1,
            steps=80,
        )
        wait_until(lambda: find_running_trial(client, rerun) is not None)
        descendants = psutil.Process(worker.pid).children(recursive=True)
        run_key_command("revoke", "worker")
        assert worker.wait(PATIENCE) == 2
        assert all(has_ended(process.pid) for process in descendants)
