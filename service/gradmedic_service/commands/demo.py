"""`gradmedic demo`: the whole product on this machine, from training to proven advice.

The demo starts a service with a worker, at a free port and with a temporary database. It trains three models, each in a
process that streams to the service through the SDK, and prints their diagnoses. It then reruns the run that explodes
with the advice applied. The last line that it prints is JSON. It needs no checkout: the scripts are in the wheel, and
`--copy-to` writes them to a folder.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gradmedic.api import Client
from gradmedic.cli.diagnose import render_diagnosis
from gradmedic.cli.rerun import follow_rerun, render_rerun
from gradmedic.cli.text import format_outcome
from gradmedic.exceptions import ConfigurationError, GradmedicError, TransportError, UsageError
from gradmedic.protocol.remedies import describe_remedies
from gradmedic.protocol.reruns import RerunDetail
from gradmedic.protocol.runs import RunSummary

PROJECT = "examples"
"""The project that the example scripts name."""
START_TIMEOUT = 120.0
"""Seconds that the service has to create its database and listen; a first start also compiles Python modules."""
TRAINING_TIMEOUT = 600.0
"""Seconds that one training has, also on a slow and busy machine; it needs a few on one core."""
POLL_INTERVAL = 0.25
"""Seconds between two reads of a training's progress."""


@dataclass(frozen=True, slots=True)
class Training:
    """The training of one model of the demo."""

    name: str
    expected: str
    """The verdict that the training must get."""
    description: str
    script: str
    arguments: tuple[str, ...]
    steps: int


TRAININGS = (
    Training(
        name="rnn-language-model",
        expected="exploding",
        description="a plain RNN on the Python reference, 100 characters a sequence, high rate, no clipping",
        script="rnn_language_model.py",
        arguments=("--steps", "200"),
        steps=200,
    ),
    Training(
        name="deep-sigmoid-classifier",
        expected="vanishing",
        description="a classifier of handwritten digits with eight sigmoid layers",
        script="digits_classifier.py",
        arguments=("--steps", "300"),
        steps=300,
    ),
    Training(
        name="relu-classifier",
        expected="healthy",
        description="the same classifier with one argument changed: --activation relu",
        script="digits_classifier.py",
        arguments=("--steps", "300", "--activation", "relu"),
        steps=300,
    ),
)


RERUN = TRAININGS[0].name
"""Name of the run that is rerun with the advice applied."""
RERUN_TIMEOUT = 900.0
"""Seconds that the rerun has, also on a slow and busy machine; it needs half a minute on two cores."""


class DemoCommand:
    """`gradmedic demo`."""

    help = "train three models, print their diagnoses, and try the advice on one of them; uses a temporary service"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's option."""
        parser.add_argument(
            "--copy-to",
            type=Path,
            metavar="FOLDER",
            help="copy the scripts, and the worker.toml that lets a worker rerun them, to a new folder; train nothing",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Run the demo; return 0 only if all three verdicts are right and some advice is verified."""
        if args.copy_to is not None:
            return copy_examples(args.copy_to)
        os.environ.pop("GRADMEDIC_API_KEY", None)  # a key of another service; the demo's service needs none
        needed = [name for name in ("torch", "sklearn") if importlib.util.find_spec(name) is None]
        if needed:
            names = " and ".join(needed)
            raise ConfigurationError(f"gradmedic demo needs {names}: pip install 'gradmedic[demo]'")
        with tempfile.TemporaryDirectory(prefix="gradmedic-demo-") as folder:
            scratch = Path(folder)
            with _running_service(scratch) as base_url, Client(base_url) as client:
                print(f"The service is at {base_url}, its database in {scratch}.", flush=True)
                results = [_train(client, training, base_url, scratch) for training in TRAININGS]
                rerun = _try_advice(client, RERUN)
        outcomes = {
            describe_remedies(candidate.remedies): None if candidate.outcome is None else candidate.outcome.state
            for candidate in rerun.candidates[1:]
        }
        ok = all(result["expected"] == result["verdict"] for result in results) and "verified" in outcomes.values()
        print(
            "\nWhere to look next: `gradmedic serve` keeps a service running, with pages to look at; the program in\n"
            "the README has the four lines that a training loop needs; `gradmedic demo --copy-to examples` copies\n"
            "the scripts that were just trained.\n"
        )
        print(
            json.dumps({"demo": results, "rerun": {"run": RERUN, "seeds": 1, "tried": outcomes}, "ok": ok}), flush=True
        )
        return 0 if ok else 1


DEMO = DemoCommand()


def examples_folder() -> Path:
    """Return the folder of the example scripts: in the package of a wheel, at the root of a checkout."""
    installed = Path(__file__).parents[1] / "examples"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "examples"


def copy_examples(folder: Path) -> int:
    """Copy the example scripts and their `worker.toml` to a new folder; return 0. Raises UsageError."""
    try:
        folder.mkdir(parents=True)
        for file in sorted(examples_folder().iterdir()):
            if file.suffix in (".py", ".toml"):
                shutil.copyfile(file, folder / file.name)
    except FileExistsError:
        raise UsageError(f"{folder} exists already: name a new folder") from None
    except OSError as error:
        raise UsageError(f"the examples cannot be copied to {folder}: {error.strerror}") from error
    print(f"Copied the examples to {folder}: `gradmedic serve --with-worker {folder / 'worker.toml'}` may rerun them.")
    return 0


@contextlib.contextmanager
def _running_service(scratch: Path) -> Iterator[str]:
    """Run `gradmedic serve` at a free port and yield its URL; stop the service at the end of the block."""
    log = scratch / "service.log"
    database = scratch / "gradmedic.db"
    command = [sys.executable, "-m", "gradmedic", "serve", "--port", "0", "--database-url", f"sqlite:///{database}"]
    command += ["--with-worker", str(examples_folder() / "worker.toml")]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment())  # noqa: S603 (our own command)
    try:
        yield _wait_for_url(process, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith("gradmedic is at "):
                return line.split()[3]
        if process.poll() is not None:
            break
        time.sleep(POLL_INTERVAL)
    raise TransportError(f"the service did not start:\n{log.read_text()}")


def _environment(**extra: str) -> dict[str, str]:
    """Return the environment of this process with the given variables in place of the user's GRADMEDIC_* variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRADMEDIC_")}
    return {**kept, **extra}


def _train(client: Client, training: Training, base_url: str, scratch: Path) -> dict[str, object]:
    """Run a training, print its progress and its diagnosis, and return its verdict with the expected one."""
    print(f"\n{'=' * 88}\nTraining {training.name}: {training.description} ...", flush=True)
    log = scratch / f"{training.name}.log"
    command = [sys.executable, str(examples_folder() / training.script), *training.arguments]
    environment = _environment(
        GRADMEDIC_BASE_URL=base_url,
        GRADMEDIC_RUN_NAME=training.name,
        GRADMEDIC_SILENT="1",
        GRADMEDIC_DIR=str(scratch),
        OMP_NUM_THREADS="1",  # the models are too small to gain from more, and the service needs a core too
    )
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=scratch)  # noqa: S603 (our own script)
    try:
        _print_progress(client, training, process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise GradmedicError(f"training {training.name} failed:\n{log.read_text()}")
    run = _find_run(client, training.name)
    if run is None:
        raise GradmedicError(f"training {training.name} ended without a run:\n{log.read_text()}")
    diagnosis = client.runs.diagnosis(run.id)
    print(f"\n{render_diagnosis(diagnosis, run)}", flush=True)
    return {
        "run": training.name,
        "expected": training.expected,
        "verdict": diagnosis.verdict,
        "since_step": diagnosis.since_step,
    }


def _try_advice(client: Client, name: str) -> RerunDetail:
    """Rerun a run with its advice against an unchanged control, and print the outcomes."""
    run = _find_run(client, name)
    if run is None:
        raise GradmedicError(f"run {name} is gone")
    print(
        f"\n{'=' * 88}\nTrying the advice for {name}: the same script again, once unchanged and once with each\n"
        "remedy, on one seed (a rerun uses three by default) ...",
        flush=True,
    )
    rerun = client.reruns.create(run.id, seeds=1)
    try:
        rerun = follow_rerun(client, rerun.id, sys.stdout, timeout=RERUN_TIMEOUT)
    except TimeoutError as error:
        client.reruns.cancel(rerun.id)
        raise GradmedicError(str(error)) from error
    print(f"\n{render_rerun(rerun)}", flush=True)
    best = next(iter(client.runs.diagnosis(run.id).advice), None)
    if best is not None and best.outcome is not None and best.outcome.state == "verified":
        print(f"\nThe run's first advice is now: {describe_remedies([best.remedy])}, {format_outcome(best.outcome)}")
        print(f"\n{textwrap.indent(best.snippet, '    ')}", flush=True)
    return rerun


def _print_progress(client: Client, training: Training, process: subprocess.Popen[bytes]) -> None:
    """Print the progress of a training's run until its process ends."""
    deadline = time.monotonic() + TRAINING_TIMEOUT
    shown: tuple[object, ...] = ()
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise GradmedicError(f"training {training.name} took longer than {TRAINING_TIMEOUT:.0f} s")
        run = _find_run(client, training.name)
        if run is not None and run.last_step is not None and (run.last_step, run.verdict) != shown:
            shown = (run.last_step, run.verdict)
            print(f"  step {run.last_step + 1:>4} of {training.steps}: {run.verdict}", flush=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=POLL_INTERVAL)


def _find_run(client: Client, name: str) -> RunSummary | None:
    return next((run for run in client.runs.list(project=PROJECT) if run.name == name), None)
