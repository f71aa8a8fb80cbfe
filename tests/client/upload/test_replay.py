"""Runs that are recorded on disk: offline runs, and what could not be sent."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.client.runs import log_losses, losses, start, wait_until_recorded
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.patience import PATIENCE

import gradmedic
from gradmedic.cli import main
from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE, Problem
from gradmedic.transport.http import Request, Response, Urllib3Transport
from gradmedic.upload.journal import Journal, list_sessions


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The folder in which the runs of a test keep what they did not send."""
    return tmp_path / "unsent"


@pytest.fixture
def unreachable() -> str:
    """An address at which no service listens."""
    return "http://127.0.0.1:9"


def unsent_sessions(directory: Path) -> list[Path]:
    """Return the sessions of all runs that have anything to send."""
    folders = directory.iterdir() if directory.exists() else ()
    return [session for folder in folders for session in list_sessions(folder)]


def test_an_offline_run_is_sent_by_sync(
    service_url: str, client: gradmedic.Client, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service has what was logged and the final status; afterwards nothing is left on disk."""
    with gradmedic.init("offline", mode="offline", name="away", config={"lr": 0.5}) as run:
        log_losses(run, 0, 130)
        assert run.flush()
        with pytest.raises(gradmedic.UsageError, match="offline"):
            run.diagnosis()
    assert main(["sync", "--base-url", service_url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "run_id": str(run.id), "steps": 130, "kept_steps": 0, "error": None, "refused_steps": 0,
        "unreadable_steps": 0, "unreadable_bytes": 0, "damaged_files": [],
    }  # fmt: skip
    assert losses(client, run) == {i: float(i) for i in range(130)}
    stored = client.runs.get(run.id)
    assert (stored.name, stored.status, stored.config) == ("away", "finished", {"lr": 0.5})
    assert [layer.name for layer in stored.layers] == ["w", "late"]
    assert not unsent_sessions(directory)
    assert main(["sync", str(directory.parent), "--base-url", service_url]) == 0
    assert "nothing to send" in capsys.readouterr().out


def test_what_could_not_be_sent_is_kept_and_a_warning_names_the_command(
    unreachable: str, service_url: str, client: gradmedic.Client, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """finish() returns in time and names the command; the command loses nothing."""
    run = start(unreachable)
    log_losses(run, 0, 300)
    wait_until_recorded(run)
    assert not run.finish(timeout=0.2)
    assert f"gradmedic sync {directory}" in caplog.text
    assert main(["sync", str(directory), "--base-url", service_url]) == 0
    assert losses(client, run) == {i: float(i) for i in range(300)}
    assert client.runs.get(run.id).status == "finished"


@pytest.mark.usefixtures("quick_retries")
def test_sync_sends_again_what_failed_and_nothing_twice(
    proxy: FaultyProxy, client: gradmedic.Client, directory: Path
) -> None:
    """Lost answers, temporary refusals and an interrupted sync cost no step and store none twice."""
    with gradmedic.init("offline", mode="offline") as run:
        log_losses(run, 0, 200)
    proxy.fail(Fault("/steps", lost=True), Fault("/steps", status=429, headers={"retry-after": "0.01"}))
    for _ in range(4):
        proxy.fail(Fault("/steps", status=503))
    proxy.fail(Fault("/steps", lost=True))
    assert main(["sync", str(directory), "--base-url", proxy.url]) == 2
    assert unsent_sessions(directory)
    assert main(["sync", str(directory), "--base-url", proxy.url]) == 0
    assert losses(client, run) == {i: float(i) for i in range(200)}


def test_sync_needs_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that does not exist is an error that names it."""
    assert main(["sync", str(tmp_path / "nowhere")]) == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err


def test_nothing_is_left_on_disk_by_a_run_that_was_sent(service_url: str, directory: Path) -> None:
    """The folder that was made for the run is deleted too; one that existed before stays."""
    with start(service_url) as run:
        run.log(1.0)
    assert not directory.exists()
    directory.mkdir()
    with start(service_url) as run:
        run.log(1.0)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "read-only"])
def test_a_folder_that_cannot_be_written_costs_a_warning(
    kind: str, service_url: str, client: gradmedic.Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a writable folder, steps wait in memory. A path that is a file is refused at once."""
    folder = tmp_path / "kept"
    if kind == "file":
        folder.write_text("")
        with pytest.raises(gradmedic.ConfigurationError, match="dir must be a folder"):
            start(service_url, dir=folder)
        return
    run = start(service_url, dir="/proc/nothing/can/be/made/here")
    run.log(1.0)
    assert run.finish()
    assert losses(client, run) == {0: 1.0}
    assert caplog.text.count("cannot keep steps on disk") == 1


# --- processes that end badly -------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, threading
import gradmedic
run = gradmedic.init(project='ends', id=sys.argv[1])
if len(sys.argv) > 2:
    run.rewind(int(sys.argv[2]))
first = run._last_step + 1
for i in range(first, first + 100):
    run.log(float(i))
{before}
print('logged', flush=True)
{ending}
"""

RECORD = """
assert run._recorder.wait(300.0)
"""


def end(ending: str, url: str, *arguments: str, before: str = "run.flush()") -> subprocess.CompletedProcess[str]:
    """Run a script that logs a hundred steps and ends by the code `ending`."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(ending=ending, before=before), *arguments],
        env=os.environ | {"GRADMEDIC_BASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize(
    ("ending", "code", "status"),
    [
        ("sys.exit(3)", 3, "failed"),
        ("sys.exit('no')", 1, "failed"),
        ("sys.exit(0)", 0, "finished"),
        ("exit(3)", 3, "failed"),
        ("quit()", 0, "finished"),
        ("with run: sys.exit(3)", 3, "failed"),
        ("with run: sys.exit(0)", 0, "finished"),
        ("os.kill(os.getpid(), signal.SIGTERM); threading.Event().wait(60)", -signal.SIGTERM, "failed"),
        ("raise KeyboardInterrupt", 1, "failed"),
    ],
)
def test_an_orderly_end_sends_everything(
    ending: str, code: int, status: str, service_url: str, client: gradmedic.Client, directory: Path
) -> None:
    """After an exit code, an exception or SIGTERM, the service has every step and the final status."""
    run_id = str(gradmedic.init(mode="disabled").id)
    result = end(ending, service_url, run_id, before="")
    assert result.returncode == code, result.stderr
    run = client.runs.get(run_id)
    assert (run.last_step, run.status) == (99, status)
    assert not unsent_sessions(directory)


@pytest.mark.parametrize("ending", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_an_abrupt_end_leaves_all_steps_on_disk(
    ending: str, unreachable: str, service_url: str, client: gradmedic.Client, directory: Path
) -> None:
    """No service can be reached and the process ends at once: sync sends what was logged."""
    run_id = str(gradmedic.init(mode="disabled").id)
    end(ending, unreachable, run_id, before=RECORD)
    assert main(["sync", str(directory), "--base-url", service_url]) == 0
    run = client.runs.get(run_id)
    assert (run.last_step, run.status) == (99, "running")


class Yesterday(Urllib3Transport):
    """Sends requests as if the steps in them had been recorded a day earlier."""

    def send(self, request: Request, timeout: float) -> Response:
        """Carry a request with a time that is a day later by the clock of the training machine."""
        later = formatdate(time.time() + 86_400, usegmt=True)
        return super().send(dataclasses.replace(request, headers={**request.headers, "Date": later}), timeout)


def test_a_killed_run_that_is_sent_a_day_later_is_stalled_since_its_last_step(
    unreachable: str, service_url: str, client: gradmedic.Client, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the sync the run becomes stalled, and its time is that of its last step."""
    run_id = str(gradmedic.init(mode="disabled").id)
    end("os.kill(os.getpid(), signal.SIGKILL)", unreachable, run_id, before=RECORD)
    monkeypatch.setattr("gradmedic.transport.http.Urllib3Transport", Yesterday)
    assert main(["sync", str(directory), "--base-url", service_url]) == 0
    deadline = time.monotonic() + PATIENCE
    while (run := client.runs.get(run_id)).status != "stalled" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (run.last_step, run.status, run.is_end_reported) == (99, "stalled", False)
    assert run.updated_at < datetime.now(UTC) - timedelta(hours=20)


def test_a_key_that_may_not_see_the_run_deletes_nothing(
    unreachable: str,
    proxy: FaultyProxy,
    service_url: str,
    client: gradmedic.Client,
    directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A 404 before the registration keeps the steps, and the sync goes on with the next run."""
    run, other = sorted((gradmedic.init(base_url=unreachable, dir=directory) for _ in range(2)), key=lambda run: run.id)
    for open_run in (run, other):
        log_losses(open_run, 0, 10)
        wait_until_recorded(open_run)
        assert not open_run.finish(timeout=0.3)
    problem = Problem(type="t", title="t", status=404, detail="d", error_code="not_found", request_id="r")
    headers = {"content-type": PROBLEM_MEDIA_TYPE}
    proxy.fail(Fault("/runs", status=404, headers=headers, body=msgspec.json.encode(problem)))
    assert main(["sync", str(directory), "--base-url", proxy.url]) == 2
    assert f"{run.id} is kept, 10 steps" in capsys.readouterr().err
    assert losses(client, other) == {i: float(i) for i in range(10)}
    assert main(["sync", str(directory), "--base-url", service_url]) == 0
    assert losses(client, run) == {i: float(i) for i in range(10)}


def test_a_job_that_was_killed_goes_on_from_its_checkpoint(
    unreachable: str, service_url: str, client: gradmedic.Client, directory: Path
) -> None:
    """The steps of the killed process are sent first; those behind the checkpoint are of the second process."""
    run_id = str(gradmedic.init(mode="disabled").id)
    end("os.kill(os.getpid(), signal.SIGKILL)", unreachable, run_id, before=RECORD)
    result = end("", service_url, run_id, "49")
    assert result.returncode == 0, result.stderr
    run: Any = client.runs.get(run_id)
    assert (run.last_step, run.status, run.generation) == (149, "finished", 1)
    assert losses(client, run) == {i: float(i) for i in range(150)}
    assert not unsent_sessions(directory)


@pytest.mark.parametrize("has_locks", [True, False, None])
def test_a_run_does_not_replay_its_own_session(
    has_locks: bool | None,
    service_url: str,
    client: gradmedic.Client,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its session stays on disk until it is sent, also on systems and disks without locks."""
    if has_locks is None:
        monkeypatch.setattr("gradmedic.upload.journal.fcntl", None)
    elif not has_locks:

        def flock(*_: object) -> None:
            raise OSError(37, "No locks available")

        monkeypatch.setattr("gradmedic.upload.journal.fcntl.flock", flock)
    run = start(service_url, flush_interval=60)
    log_losses(run, 0, 10)
    wait_until_recorded(run)
    assert run.flush()
    log_losses(run, 10, 20)
    wait_until_recorded(run)
    (session,) = unsent_sessions(directory)
    journal = Journal(session, 2**30)
    journal._load()
    assert journal.unsent_steps == 10
    assert run.finish()
    assert losses(client, run) == {i: float(i) for i in range(20)}
    assert not directory.exists()


# --- rewinding ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_retries")
def test_a_rewind_happens_once_in_its_place(proxy: FaultyProxy, client: gradmedic.Client) -> None:
    """Earlier steps, the rewind and later steps take effect in this order, though answers are lost."""
    with start(proxy.url) as run:
        proxy.fail(Fault("/rewind", lost=True), Fault("/steps", lost=True), Fault("/rewind", status=503))
        log_losses(run, 0, 60)
        run.rewind(19)
        for i in range(20, 40):
            run.log(-float(i))
        run.rewind(29)
        run.log(math.pi)
    assert losses(client, run) == {i: float(i) for i in range(20)} | {i: -float(i) for i in range(20, 30)} | {
        30: math.pi
    }
    assert client.runs.get(run.id).generation == 2


def test_an_offline_rewind_is_replayed(service_url: str, client: gradmedic.Client, directory: Path) -> None:
    """The sync sends the rewind in its place."""
    with gradmedic.init("offline", mode="offline") as run:
        log_losses(run, 0, 60)
        run.rewind(-1)
        run.log(5.0)
    assert main(["sync", str(directory), "--base-url", service_url]) == 0
    assert losses(client, run) == {0: 5.0}


def test_a_process_stops_after_another_rewound_its_run(service_url: str, client: gradmedic.Client) -> None:
    """A process does not write into its run after another process rewound the run."""
    first = start(service_url)
    log_losses(first, 0, 10)
    assert first.flush()
    second = start(service_url, id=first.id)
    second.rewind(4)
    second.log(50.0)
    assert second.flush()
    first.log(-1.0)
    assert not first.flush()
    assert second.finish()
    first.finish(timeout=0.1)
    assert losses(client, second) == {i: float(i) for i in range(5)} | {5: 50.0}


@pytest.mark.parametrize("step", [-2, 1.5, True, "3"])
def test_a_rewind_goes_to_a_step(step: Any) -> None:
    """rewind() refuses everything but whole numbers from -1."""
    with pytest.raises(gradmedic.ConfigurationError, match="step must be a whole number from -1"):
        gradmedic.init(mode="disabled").rewind(step)
