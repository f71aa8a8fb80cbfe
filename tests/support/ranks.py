"""Trainings of several processes. A process that has imported torch is forked: its import takes seconds."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.forked_processes import ForkedProcess, process_starter
from tests.support.patience import PATIENCE


def train_in_processes(script: Path, *arguments: str) -> tuple[list[Any], str]:
    """Run a script that calls `print_answers`; return the answer of each process, and what they wrote as errors.

    Fails if a process fails, or if one waits for ever.
    """
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        descriptors = output.fileno(), errors.fileno()
        starter = process_starter("trainings")
        with ForkedProcess(starter, arguments, environment, Path.cwd(), *descriptors, script=script) as process:
            try:
                process.wait(PATIENCE)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # processes that wait for ever, or for one that has failed
        output.seek(0)
        errors.seek(0)
        printed, complaints = output.read(), errors.read()
    assert process.returncode == 0, complaints
    answers: list[Any] = json.loads(printed.splitlines()[-1])
    return answers, complaints


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
