"""Hosts trials on this machine: the executor `local`, which also runs on each node of a Ray cluster."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.trials import ClaimedTrial
from gradmedic_worker.attempt import GRACE_SECONDS
from gradmedic_worker.configuration import WorkerConfiguration
from gradmedic_worker.executors.base import STOPPED, TrialEnd
from gradmedic_worker.executors.local_processes import LaunchSpec, LocalProcess, ProcessEnd, ProcessStarter
from gradmedic_worker.executors.trial_environment import build_shared_environment, build_trial_environment
from gradmedic_worker.executors.trial_folder import (
    create_trial_folder,
    create_worker_folder,
    get_unsent_steps_path,
    read_report,
)
from gradmedic_worker.executors.trial_user import TrialUser, find_trial_user
from gradmedic_worker.trainable_command import TrainableCommand

MEMORY_SHARE = 0.9
"""Share of the machine's memory that all trials together may hold by default."""
CONTAINER_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files with the memory limit of a container, in control groups version 2 and version 1."""


class LocalExecutor:
    """Starts trials as processes of this machine.

    A trial has its own folder and GPUs until it is closed.

    Args:
        configuration: The worker's configuration.
        base_url: The URL at which trials reach the service.
        gpus: The machine's GPUs, as `CUDA_VISIBLE_DEVICES` names them.
        environment: The worker's own environment.
        threads: Number of threads of a trial; None for an equal share of the CPU cores.
        may_fork: Whether trials may be forked from a process that has imported torch. It saves time only if there are
            many trials.
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
        may_fork: bool = True,
    ) -> None:
        self._configuration = configuration
        self._base_url = base_url
        self._environment = environment
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._slots = configuration.slots or len(gpus) or cores
        self._threads = threads or max(1, cores // self._slots)
        self._may_fork = may_fork
        self._lock = threading.Lock()
        self._free_gpus = list(gpus)
        self._starter = ProcessStarter()
        self._programs = {name: trainable.find_program() for name, trainable in configuration.trainables.items()}
        self._user: TrialUser | None = None
        self._folder: Path | None = None

    @property
    def slots(self) -> int:
        """Number of trials that may run at the same time."""
        return self._slots

    def prepare(self) -> None:
        """Create the folder of the trials, and start the processes from which they are forked.

        Raises:
            ConfigurationError: A trainable's program does not exist, or the user of the trials cannot be used.
        """
        missing = [name for name, program in self._programs.items() if program is None]
        if missing:
            program = self._configuration.trainables[missing[0]].command[0]
            raise ConfigurationError(f"trainables.{missing[0]}.command: there is no program {program!r}")
        if self._configuration.user is not None:
            self._user = find_trial_user(self._configuration.user)
        self._folder = create_worker_folder(self._configuration.scratch, is_passable=self._user is not None)
        if self._user is not None:
            folders = [trainable.directory for trainable in self._configuration.trainables.values()]
            programs = [Path(program) for program in self._programs.values() if program is not None]
            self._user.check_access([self._folder, *folders, *programs])
        for name, trainable in self._configuration.trainables.items():
            if self._may_fork and trainable.may_fork and self._user is None:
                shared = build_shared_environment(trainable, self._environment, self._threads)
                self._starter.preload([self._programs[name] or "", *trainable.command[1:]], shared)

    def list_startable_trainables(self) -> list[str]:
        """Return the names of the trainables for which enough GPUs are free."""
        with self._lock:
            free = len(self._free_gpus)
        return [name for name, trainable in self._configuration.trainables.items() if trainable.gpus <= free]

    def start(self, claimed: ClaimedTrial) -> LocalTrial:
        """Start the process of an attempt."""
        if self._folder is None:
            raise RuntimeError("call prepare() first")
        trainable = self._configuration.trainables[claimed.trainable]
        with self._lock:
            gpus = [self._free_gpus.pop(0) for _ in range(trainable.gpus)]
        folder = None
        user_ids = None if self._user is None else self._user.ids
        try:
            command = self._build_command(trainable, claimed)
            folder = create_trial_folder(self._folder, trainable, f"{claimed.trial_id}-{claimed.attempt}", user_ids)
            user_variables = {} if self._user is None else self._user.build_environment(folder / "tmp")
            own_environment = {**self._environment, **user_variables}
            shared = build_shared_environment(trainable, own_environment, self._threads)
            memory = trainable.memory or int(_read_total_memory_bytes() * MEMORY_SHARE / self._slots)
            spec = LaunchSpec(
                command=command,
                environment=build_trial_environment(shared, claimed, self._base_url, folder, gpus),
                directory=folder / "work",
                output=folder / "output",
                seconds=max(0.0, claimed.seconds - GRACE_SECONDS),
                memory=memory,
                user=user_ids,
            )
            process = self._starter.start(spec, shared, may_fork=self._may_fork and trainable.may_fork)
        except BaseException:
            self._release(gpus, folder)
            raise
        unsent_steps = get_unsent_steps_path(folder)
        delivery = replace(
            spec,
            # Isolated: it imports no file of the trainable. It runs as the trial's user, who wrote the steps.
            command=[
                *(sys.executable, "-I", "-m", "gradmedic", "sync", str(unsent_steps)),
                f"--wait={claimed.lease_seconds}",
            ],
            output=folder / "delivery",
            seconds=2 * claimed.lease_seconds,
        )
        return LocalTrial(
            process,
            folder,
            memory,
            has_unsent_steps=lambda: (unsent_steps / str(claimed.run_id)).is_dir(),
            start_delivery=lambda: self._starter.start(delivery, shared, may_fork=False),
            release=lambda: self._release(gpus, folder),
        )

    def close(self) -> None:
        """End the fork servers, and remove the folder of the trials."""
        self._starter.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _build_command(self, trainable: TrainableCommand, claimed: ClaimedTrial) -> list[str]:
        arguments = trainable.fill_command(claimed.parameters, claimed.seed)
        script = trainable.directory / arguments[1] if len(arguments) > 1 else None
        if script is not None and not arguments[1].startswith("-") and script.is_file():
            arguments[1] = str(script)  # the trial runs in another directory
        return [self._programs[trainable.name] or "", *arguments[1:]]

    def _release(self, gpus: list[str], folder: Path | None) -> None:
        """Free a trial's GPUs, and remove its folder."""
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        with self._lock:
            self._free_gpus += gpus


class LocalTrial:
    """The process of an attempt on this machine, and afterwards the delivery of the steps that it could not send.

    Args:
        process: The process of the script.
        folder: The trial's folder.
        memory: The trial's limit in bytes.
        has_unsent_steps: Function that returns whether the script left steps on disk.
        start_delivery: Function that starts the process which sends them.
        release: Function that gives back what the trial has taken.
    """

    has_started = True

    def __init__(
        self,
        process: LocalProcess,
        folder: Path,
        memory: int,
        *,
        has_unsent_steps: Callable[[], bool],
        start_delivery: Callable[[], LocalProcess],
        release: Callable[[], None],
    ) -> None:
        self._process = process
        self._folder = folder
        self._memory = memory
        self._has_unsent_steps = has_unsent_steps
        self._start_delivery = start_delivery
        self._release = release
        self._end: TrialEnd | None = None
        self._delivery: LocalProcess | None = None

    def wait(self, seconds: float) -> TrialEnd | None:
        """Wait up to `seconds` for the end. Return None if it has not come."""
        if self._end is None:
            end = self._process.wait(seconds)
            if end is None:
                return None
            self._end = self._describe_end(end)
            if end.reason != STOPPED and self._has_unsent_steps():
                self._delivery = self._start_delivery()
        if self._delivery is not None:
            if self._delivery.wait(seconds) is None:
                return None
            self._delivery.close()
            self._delivery = None
        return self._end

    def output(self) -> str:
        """Return the output so far; of a long output, its start and its end."""
        return self._read_output("output") + self._read_output("delivery")

    def stop(self) -> None:
        """Send SIGTERM to the script, and SIGKILL after `GRACE_SECONDS`. A delivery is stopped likewise."""
        (self._process if self._delivery is None else self._delivery).stop()

    def close(self) -> None:
        """Kill everything that still runs, and remove the trial's folder."""
        if self._delivery is not None:
            self._delivery.close()
        self._process.close()
        self._release()

    def _describe_end(self, end: ProcessEnd) -> TrialEnd:
        memory_reason = f"it held more than {self._memory / 2**30:.2g} GiB of memory"
        return TrialEnd(
            exit_code=end.exit_code,
            reason=memory_reason if end.reason == "memory" else end.reason,
            report=read_report(self._folder),
        )

    def _read_output(self, name: str) -> str:
        try:
            return (self._folder / name).read_bytes().decode("utf-8", "replace")
        except OSError:
            return ""


def find_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs that a worker may use, as `CUDA_VISIBLE_DEVICES` names them."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    if sys.platform != "linux":
        return []
    with suppress(OSError):
        drivers = Path("/proc/driver/nvidia/gpus")
        if drivers.is_dir():
            return [str(index) for index, _ in enumerate(drivers.iterdir())]
    return []


def _read_total_memory_bytes() -> int:
    """Return the memory of this machine, or of the container around this process if it is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in CONTAINER_MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # the file holds "max" if there is no limit
            limits.append(int(Path(path).read_text()))
    return min(limits)
