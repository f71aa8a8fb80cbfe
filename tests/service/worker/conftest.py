"""A service, a worker, and scripts that a worker may run."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.patience import PATIENCE

import gradmedic
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.reruns import RerunDetail, Trial

SCRIPT = """
    import sys, time
    import gradmedic
    arguments = dict(argument[2:].split("=") for argument in sys.argv[1:])
    how, pause = arguments["how"], float(arguments["pause"])
    run = gradmedic.init(project="p", config={"how": how, "pause": pause}, trainable="train")
    is_control = not run.is_trial or how == "explode"
    for step in range(80):
        bad = is_control and step >= 20
        loss = float("nan") if bad else 2.2 * 0.97 ** step + 0.2
        norm = float("nan") if bad else 0.5 + 0.01 * (step % 3)
        run.log(loss=loss, statistics={name: {"grad_norm": norm} for name in ("a", "b")})
        print(how, step, flush=True)
        time.sleep(pause)
    run.finish()
"""
"""Explodes unless its parameter says otherwise: what a remedy that the script itself carries out would change."""
CONFIGURATION = """
    [worker]
    slots = {slots}
    scratch = "scratch"
    [trainables.train]
    command = ["python", "train.py", "--how={{how}}", "--pause={{pause}}"]
    timeout = {timeout}
    memory = "400MiB"
    preload = false
    [trainables.train.parameters]
    how = {{ type = "str", choices = ["explode", "learn", "crash", "hang", "spam", "exhaust"] }}
    pause = {{ type = "float", minimum = 0.0, maximum = 10.0 }}
"""
StartWorker = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


def write_trainable(
    folder: Path, *, script: str = SCRIPT, slots: int = 1, timeout: float = 60, changed: tuple[str, str] = ("", "")
) -> None:
    """Write the script, and the `worker.toml` that allows it, with something changed."""
    (folder / "train.py").write_text(textwrap.dedent(script))
    configuration = textwrap.dedent(CONFIGURATION).format(slots=slots, timeout=timeout)
    (folder / "worker.toml").write_text(configuration.replace(*changed))


@pytest.fixture
def start_worker(tmp_path: Path) -> StartWorker:
    """Start `gradmedic worker` with the script; it is killed at the end if it has not ended."""

    @contextmanager
    def start(base_url: str, *, api_key: str = "", **written: Any) -> Iterator[Any]:
        write_trainable(tmp_path, **written)
        command = [str(Path(sys.executable).with_name("gradmedic")), "worker", "--base-url", base_url]
        with (tmp_path / "worker.log").open("a") as log:
            process = subprocess.Popen(
                command,
                cwd=tmp_path,
                stdout=log,
                stderr=log,
                text=True,
                env={"PATH": os.environ["PATH"], "GRADMEDIC_API_KEY": api_key},
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    return start


def suspect(client: gradmedic.Client, pause: float = 0.0, api_key: str | None = None) -> str:
    """Stream a run of the script's that explodes, and return its id."""
    run = gradmedic.init(
        project="p", config={"how": "explode", "pause": pause}, trainable="train",
        base_url=client._service.base_url, api_key=api_key, silent=True,
    )  # fmt: skip
    for step in range(30):
        bad = step >= 20
        norm = float("nan") if bad else 0.5
        run.log(loss=norm, statistics={name: {"grad_norm": norm} for name in ("a", "b")})
    assert run.finish()
    return str(run.id)


def setting(**values: Any) -> list[Remedy]:
    """Return the candidate that sets parameters of the script."""
    return [Remedy(id="set_parameter", parameters=values)]


def ended(client: gradmedic.Client, rerun: RerunDetail) -> RerunDetail:
    """Wait for the end of a rerun."""
    return client.reruns.wait(rerun.id, timeout=PATIENCE, interval=0.1)


def offered(client: gradmedic.Client) -> bool:
    """Whether a worker has offered its trainable."""
    return bool(client.work.trainables())


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended, or only waits to be collected."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def running(client: gradmedic.Client, rerun: RerunDetail) -> Trial | None:
    """Return the trial that runs and has steps, if one does."""
    found = client.reruns.get(rerun.id).trials
    return next((one for one in found if one.status == "running" and one.step is not None), None)
