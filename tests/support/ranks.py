"""Trainings of several processes, forked from one that has imported torch: its import costs seconds of each process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[2]


def train_in_processes(script: Path, *arguments: str) -> tuple[list[Any], str]:
    """Run a script that calls `print_answers`; return the answer of each process, and what they wrote as errors.

    Fails if a process fails, or if one waits for ever.
    """
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # processes that wait for ever, or for one that has failed
    assert process.returncode == 0, errors
    answers: list[Any] = json.loads(output.splitlines()[-1])
    return answers, errors


def print_answers(processes: int, train: Callable[[int], Any]) -> None:
    """Call `train(rank)` in a forked process for each rank, print the list of their answers as JSON, and exit.

    No process may end by returning, which frees its models: torch does that under Python's lock, and joins a thread of
    gloo's that may wait for this lock to free what backward() left in its thread-local state. On a busy machine it
    deadlocks, with no run at all as with one that watches.
    """
    readers = []
    for rank in range(processes):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes)}
            answer = json.dumps(train(rank))
            with open(writer, "w") as file:  # noqa: PTH123  # a descriptor has no path
                file.write(answer)
            os._exit(0)
        os.close(writer)
        readers.append(reader)
    texts = []
    for reader in readers:
        with open(reader) as file:  # noqa: PTH123
            texts.append(file.read())
    statuses = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in readers]
    if any(statuses):
        sys.exit(f"the processes ended with {statuses}")
    sys.stdout.write(f"[{', '.join(texts)}]\n")
