"""Hosts trials on this machine: the executor `local`, and what runs on each node of a cluster.

One idea: a trial has a folder of its own while it lasts, and the GPUs that it was given; both are handed back when it
is let go of, however it ended.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.trials import ClaimedTrial
from gradmedic_worker.attempt import GRACE
from gradmedic_worker.configuration import TrainableCommand, WorkerConfiguration, program_of
from gradmedic_worker.environment import (
    base_environment,
    make_root,
    make_scratch,
    read_report,
    trial_environment,
)
from gradmedic_worker.executors.base import TrialEnd
from gradmedic_worker.processes import LaunchSpec, LocalProcess, Starter

MEMORY_SHARE = 0.9
"""Of the machine's memory that all trials together may hold, unless an operator says otherwise."""
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of a container's memory: of control groups version 2, and 1."""


class LocalExecutor:
    """Starts trials as processes of this machine.

    Args:
        configuration: what may be run here.
        base_url: that trials reach the service at.
        gpus: of this machine, as `CUDA_VISIBLE_DEVICES` names them.
        environment: the worker's own.
        threads: that a trial computes with, if not its share of the cores.
        may_preload: whether a process with torch in memory is worth keeping.
    """

    name = "local"

    def __init__(
        self,
        configuration: WorkerConfiguration,
        base_url: str,
        *,
        gpus: list[str],
        environment: Mapping[str, str],
        threads: int | None = None,
        may_preload: bool = True,
    ) -> None:
        self._configuration = configuration
        self._base_url = base_url
        self._environment = environment
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._slots = configuration.slots or len(gpus) or cores
        self._threads = threads or max(1, cores // self._slots)
        self._may_preload = may_preload
        self._lock = threading.Lock()
        self._free_gpus = list(gpus)
        self._starter = Starter()
        self._programs = {name: program_of(one) for name, one in configuration.trainables.items()}
        self._root: Path | None = None

    @property
    def slots(self) -> int:
        """Return how many trials run at the same time."""
        return self._slots

    def prepare(self) -> None:
        """Make the folder of trials. Raises ConfigurationError for a program that is not there."""
        missing = [name for name, program in self._programs.items() if program is None]
        if missing:
            program = self._configuration.trainables[missing[0]].command[0]
            raise ConfigurationError(f"trainables.{missing[0]}.command: there is no program {program!r}")
        self._root = make_root(self._configuration.scratch)

    def fitting(self) -> list[str]:
        """Return the trainables that enough GPUs are free for."""
        with self._lock:
            free = len(self._free_gpus)
        return [name for name, one in self._configuration.trainables.items() if one.gpus <= free]

    def start(self, claimed: ClaimedTrial) -> LocalTrial:
        """Start a trial's process."""
        if self._root is None:
            raise RuntimeError("prepare() comes first")
        trainable = self._configuration.trainables[claimed.trainable]
        with self._lock:
            gpus = [self._free_gpus.pop(0) for _ in range(trainable.gpus)]
        scratch = None
        try:
            command = self._command(trainable, claimed)
            scratch = make_scratch(self._root, trainable, f"{claimed.trial_id}-{claimed.attempt}")
            base = base_environment(trainable, self._environment, self._threads)
            memory = trainable.memory or int(_total_memory() * MEMORY_SHARE / self._slots)
            order = LaunchSpec(
                command=command,
                environment=trial_environment(base, claimed, self._base_url, scratch, gpus),
                directory=scratch / "work",
                output=scratch / "output",
                seconds=max(0.0, claimed.seconds - GRACE),
                memory=memory,
            )
            may_preload = self._may_preload and trainable.preloads
            process = self._starter.start(order, base, may_preload=may_preload)
        except BaseException:
            self._take_back(gpus, scratch)
            raise
        return LocalTrial(process, scratch, memory, lambda: self._take_back(gpus, scratch))

    def close(self) -> None:
        """End the processes that were kept, and remove the folder."""
        self._starter.close()
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)

    def _command(self, trainable: TrainableCommand, claimed: ClaimedTrial) -> list[str]:
        arguments = trainable.arguments(claimed.parameters, claimed.seed)
        script = trainable.directory / arguments[1] if len(arguments) > 1 else None
        if script is not None and not arguments[1].startswith("-") and script.is_file():
            arguments[1] = str(script)  # a trial has a working directory of its own
        return [self._programs[trainable.name] or "", *arguments[1:]]

    def _take_back(self, gpus: list[str], scratch: Path | None) -> None:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        with self._lock:
            self._free_gpus += gpus


class LocalTrial:
    """A trial that is a process of this machine."""

    has_started = True

    def __init__(self, process: LocalProcess, scratch: Path, memory: int, take_back: Callable[[], None]) -> None:
        self._process = process
        self._scratch = scratch
        self._memory = memory
        self._take_back = take_back

    def wait(self, seconds: float) -> TrialEnd | None:
        """Wait for the end, at most so long; None if it has not come."""
        ended = self._process.wait(seconds)
        if ended is None:
            return None
        too_much = f"it held more than {self._memory / 2**30:.2g} GiB of memory"
        return TrialEnd(
            exit_code=ended.exit_code,
            reason=too_much if ended.reason == "memory" else ended.reason,
            report=read_report(self._scratch),
        )

    def output(self) -> str:
        """Return what it has printed, or the beginning and end of it."""
        try:
            return (self._scratch / "output").read_bytes().decode("utf-8", "replace").replace("\x00", "")
        except OSError:
            return ""

    def stop(self) -> None:
        """Ask it to end by itself; after a moment it is killed."""
        self._process.stop()

    def close(self) -> None:
        """Kill whatever of it still runs, and remove its folder."""
        self._process.close()
        self._take_back()


def find_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs that a worker may use, as `CUDA_VISIBLE_DEVICES` would name them."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one for one in named.split(",") if one.strip() not in ("", "-1")]
    if sys.platform != "linux":
        return []
    with suppress(OSError):
        found = Path("/proc/driver/nvidia/gpus")
        if found.is_dir():
            return [str(index) for index, _ in enumerate(found.iterdir())]
    return []


def _total_memory() -> int:
    """Return the bytes of this machine, or of the container that this process is in, if that has fewer."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [physical]
    for path in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # "max" where there is no limit
            limits.append(int(Path(path).read_text()))
    return min(limits)
