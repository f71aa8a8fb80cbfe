"""Workers in processes of their own, scripts that they run, and reruns that they work on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tests.support.patience import PATIENCE

import gradmedic
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.reruns import RerunDetail, Trial

SCRIPT = """
    import os, sys, time
    import gradmedic
    arguments = dict(argument[2:].split("=") for argument in sys.argv[1:])
    how, pause = arguments["how"], float(arguments["pause"])
    run = gradmedic.init(project="p", config={"how": how, "pause": pause}, trainable="train")
    is_control = not run.is_trial or how == "explode"
    for step in range(80):
        while step == 10 and os.path.exists(os.environ["HOLD"] + how):
            time.sleep(0.01)
        is_bad = is_control and step >= 20
        loss = float("nan") if is_bad else 2.2 * 0.97 ** step + 0.2
        norm = float("nan") if is_bad else 0.5 + 0.01 * (step % 3)
        run.log(loss=loss, statistics={name: {"grad_norm": norm} for name in ("a", "b")})
        print(how, step, flush=True)
        time.sleep(pause)
    run.finish()
"""
"""A script that explodes with `how=explode`. Other values of the parameter are remedies that the script carries out."""
CONFIGURATION = """
    [worker]
    slots = {slots}
    scratch = "scratch"
    [trainables.train]
    command = ["python", "train.py", "--how={{how}}", "--pause={{pause}}"]
    timeout = {timeout}
    memory = "400MiB"
    preload = false
    environment = {{ PYTHONPATH = "{python_path}", HOLD = "{hold}" }}
    [trainables.train.parameters]
    how = {{ type = "str", choices = ["explode", "learn", "crash", "hang", "spam", "exhaust"] }}
    pause = {{ type = "float", minimum = 0.0, maximum = 10.0 }}
"""
HOLD = "hold-"
"""Beginning of the name of a file in the worker's folder, while which exists the script waits. Its end is `how`."""
StartWorker = Callable[..., AbstractContextManager["subprocess.Popen[str]"]]
"""Starts a worker: `run_worker` in the test's folder."""
WaitUntil = Callable[[Callable[[], bool]], None]
"""Waits until a condition is true."""


def write_trainable(
    folder: Path, *, script: str = SCRIPT, slots: int = 1, timeout: float = 60, replacement: tuple[str, str] = ("", "")
) -> None:
    """Write the script and its `worker.toml`, with one text of the configuration replaced."""
    (folder / "train.py").write_text(textwrap.dedent(script))
    python_path = hide_torch(folder)
    configuration = textwrap.dedent(CONFIGURATION).format(
        slots=slots, timeout=timeout, python_path=python_path, hold=folder / HOLD
    )
    if replacement[0] not in configuration:
        raise ValueError(f"the configuration has no text {replacement[0]!r}")
    (folder / "worker.toml").write_text(configuration.replace(*replacement))


def hide_torch(folder: Path) -> Path:
    """Create a folder that hides torch from a script which has it in its PYTHONPATH, and return the folder.

    `gradmedic.init` imports torch in a trial if it can, which takes longer than the trials of these tests.
    """
    python_path = folder / "without_torch"
    python_path.mkdir(exist_ok=True)
    (python_path / "torch.py").write_text("raise ModuleNotFoundError('not here', name='torch')")
    return python_path


@contextmanager
def hold_trials(folder: Path, how: str = "explode") -> Iterator[Callable[[], None]]:
    """Make the trials of the script wait at step 10. Yields the function that lets them continue.

    A test that does something to a running trial needs it: a slow machine may first look when the trial has ended.

    Args:
        folder: The worker's folder.
        how: Value of the parameter in the trials that wait; as it is by default, the control waits.
    """
    file = folder / f"{HOLD}{how}"
    file.touch()
    try:
        yield lambda: file.unlink(missing_ok=True)
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def run_worker(
    folder: Path,
    base_url: str,
    *arguments: str,
    api_key: str = "",
    prefix: Sequence[str] = (),
    **trainable: Any,
) -> Iterator[subprocess.Popen[str]]:
    """Run `gradmedic worker` with the script in `folder`, and kill it at the end if it still runs.

    Args:
        folder: Working directory; `worker.log` in it gets the output.
        base_url: URL of the service.
        arguments: Further arguments of the command.
        api_key: The worker's key, for its environment.
        prefix: A command that runs the worker's command in its own place.
        trainable: The trainable, as `write_trainable` takes it.
    """
    write_trainable(folder, **trainable)
    program = str(Path(sys.executable).with_name("gradmedic"))
    command = [*prefix, program, "worker", "--base-url", base_url, *arguments]
    with (folder / "worker.log").open("a") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
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


def stream_exploding_run(client: gradmedic.Client, pause: float = 0.0, api_key: str | None = None) -> str:
    """Stream a run of the script that explodes, and return its id. Its trials pause `pause` seconds a step."""
    run = gradmedic.init(
        project="p",
        config={"how": "explode", "pause": pause},
        trainable="train",
        base_url=client._service.base_url,
        api_key=api_key,
        silent=True,
    )
    for step in range(30):
        norm = float("nan") if step >= 20 else 0.5
        run.log(loss=norm, statistics={name: {"grad_norm": norm} for name in ("a", "b")})
    assert run.finish()
    return str(run.id)


def set_parameters(**values: Any) -> list[Remedy]:
    """Return the candidate that sets parameters of the script."""
    return [Remedy(id="set_parameter", parameters=values)]


def wait_for_end(client: gradmedic.Client, rerun: RerunDetail) -> RerunDetail:
    """Wait for the end of a rerun."""
    return client.reruns.wait(rerun.id, timeout=PATIENCE, interval=0.1)


def has_trainables(client: gradmedic.Client) -> bool:
    """Whether a worker has registered its trainable."""
    return bool(client.work.trainables())


def find_running_trial(client: gradmedic.Client, rerun: RerunDetail) -> Trial | None:
    """Return the trial of a rerun that runs and has steps, or None."""
    trials = client.reruns.get(rerun.id).trials
    return next((trial for trial in trials if trial.status == "running" and trial.step is not None), None)


def attempt_statuses(rerun: RerunDetail) -> list[list[str]]:
    """Return the status of each attempt at each trial."""
    return [[attempt.status for attempt in trial.attempts] for trial in rerun.trials]
