"""Claims trials and sees them to their end: the worker's own process.

One idea: a slot is a thread that lives as long as its trial. It renews the lease and ends the trial as soon as nobody
waits for it: when the service says so, refuses it, or has not been heard of for as long as the lease. A worker that was
frozen and wakes up late finds its attempts given up, and its processes end.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gradmedic import wire
from gradmedic.api import Client
from gradmedic.exceptions import ApiError, ConfigurationError, ConflictError, GradmedicError, NotFoundError
from gradmedic.http import is_retryable, retry_delay
from gradmedic.remedies import describe_remedies
from gradmedic.trial import describe_environment
from gradmedic_service.worker.configuration import TrainableCommand, WorkerConfiguration, program_of
from gradmedic_service.worker.environment import (
    base_environment,
    make_root,
    make_scratch,
    read_report,
    trial_environment,
)
from gradmedic_service.worker.launcher import GRACE
from gradmedic_service.worker.processes import Ended, LocalExecutor, LocalProcess, Order

POLL = 0.5
"""Seconds between claims while slots are free."""
HEARTBEATS_PER_LEASE = 10
LONGEST_HEARTBEAT = 1.0
"""Seconds between heartbeats at most: cancelling takes this long to arrive."""
PUBLISH_SECONDS = 600.0
"""For which a result is offered to a service that does not answer."""
MEMORY_SHARE = 0.9
"""Of the machine's memory that all trials together may hold, unless an operator says otherwise."""
OUTPUT_CHARACTERS = 64 * 1024

Print = Callable[[str], None]


class Supervisor:
    """Runs trials until it is told to stop.

    Args:
        client: of the service, with a key of the scope `worker` where keys are needed.
        base_url: that trials reach the service at.
        configuration: what may be run here.
        gpus: of this machine, as `CUDA_VISIBLE_DEVICES` names them.
        environment: the worker's own.
        tell: prints a line.
    """

    def __init__(
        self,
        client: Client,
        base_url: str,
        configuration: WorkerConfiguration,
        *,
        gpus: list[str],
        environment: Mapping[str, str],
        tell: Print,
    ) -> None:
        self._client = client
        self._base_url = base_url
        self._configuration = configuration
        self._environment = environment
        self._tell = tell
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._slots = configuration.slots or len(gpus) or self._cores
        self._free_gpus = list(gpus)
        self._changed = threading.Condition()
        self._running: dict[threading.Thread, _TrialAtWork] = {}
        self._is_draining = False
        self._executor = LocalExecutor()
        self._programs = {name: program_of(one) for name, one in configuration.trainables.items()}

    def run(self) -> int:
        """Offer the trainables and work; return the exit status."""
        missing = [name for name, program in self._programs.items() if program is None]
        if missing:
            program = self._configuration.trainables[missing[0]].command[0]
            raise ConfigurationError(f"trainables.{missing[0]}.command: there is no program {program!r}")
        root = make_root(self._configuration.scratch)
        names = ", ".join(self._configuration.trainables)
        failures = 0
        try:
            while not self._is_draining and not self._register(failures):
                failures += 1
            if not self._is_draining:
                self._tell(f"worker {self._configuration.name}: {self._slots} slots, trainables {names}")
            while not self._is_draining:
                self._fill_slots(root)
            self._wait_for_all()
        finally:
            self._executor.close()
            shutil.rmtree(root, ignore_errors=True)
        return 0

    def drain(self) -> None:
        """Take no more trials, and end once those that run have ended. Safe to call from a signal handler's thread."""
        with self._changed:
            if not self._is_draining and self._running:
                self._tell(f"draining: {len(self._running)} trials still run; once more to abandon them")
            self._is_draining = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """End everything at once; other workers will make new attempts."""
        with self._changed:
            self._is_draining = True
            for trial in self._running.values():
                trial.abandon()
            self._changed.notify_all()

    def _register(self, failures: int) -> bool:
        trainables = [one.on_the_wire() for one in self._configuration.trainables.values()]
        try:
            self._client.work.register(trainables)
        except GradmedicError as error:
            if not is_retryable(error):
                raise
            if failures == 0:
                self._tell(f"the service does not answer, trying again: {error}")
            self._pause(retry_delay(error, failures))
            return False
        return True

    def _fill_slots(self, root: Path) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_draining or len(self._running) < self._slots)
            fitting = [name for name, one in self._configuration.trainables.items() if one.gpus <= len(self._free_gpus)]
        if self._is_draining:
            return
        asked_at = time.monotonic()
        try:
            claimed = self._client.work.claim(self._configuration.name, fitting) if fitting else None
        except GradmedicError as error:
            if not is_retryable(error):
                raise
            self._pause(retry_delay(error, 1))
            return
        if claimed is None:
            self._pause(POLL)
            return
        self._begin(claimed, asked_at, root)

    def _begin(self, claimed: wire.ClaimedTrial, asked_at: float, root: Path) -> None:
        trainable = self._configuration.trainables[claimed.trainable]
        gpus = [self._free_gpus.pop(0) for _ in range(trainable.gpus)]
        base = base_environment(trainable, self._environment, max(1, self._cores // self._slots))
        memory = trainable.memory or int(_total_memory() * MEMORY_SHARE / self._slots)
        trial = _TrialAtWork(
            claimed=claimed,
            trainable=trainable,
            program=self._programs[claimed.trainable] or "",
            client=self._client,
            executor=self._executor,
            base=base,
            environment=lambda scratch: trial_environment(base, claimed, self._base_url, scratch, gpus),
            root=root,
            asked_at=asked_at,
            memory=memory,
            tell=self._tell,
        )
        thread = threading.Thread(target=self._see_to, args=(trial, gpus), name=f"trial {claimed.trial_id}")
        with self._changed:
            self._running[thread] = trial
        thread.start()

    def _see_to(self, trial: _TrialAtWork, gpus: list[str]) -> None:
        try:
            trial.run()
        except Exception as error:
            self._tell(f"{trial.title}: the worker failed on it: {error!r}")
        finally:
            with self._changed:
                self._free_gpus += gpus
                del self._running[threading.current_thread()]
                self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        with self._changed:
            running = len(self._running)
            self._changed.wait_for(lambda: self._is_draining or len(self._running) != running, seconds)

    def _wait_for_all(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._running)


@dataclass(frozen=True, slots=True)
class _Refused:
    """The service does not wait for an attempt any more."""

    reason: str


class _TrialAtWork:
    """One attempt at a trial, from the claim to the published result."""

    def __init__(
        self,
        *,
        claimed: wire.ClaimedTrial,
        trainable: TrainableCommand,
        program: str,
        client: Client,
        executor: LocalExecutor,
        base: Mapping[str, str],
        environment: Callable[[Path], dict[str, str]],
        root: Path,
        asked_at: float,
        memory: int,
        tell: Print,
    ) -> None:
        self._claimed = claimed
        self._trainable = trainable
        self._program = program
        self._client = client
        self._executor = executor
        self._base = base
        self._environment = environment
        self._root = root
        self._memory = memory
        self._tell = tell
        self._interval = min(LONGEST_HEARTBEAT, claimed.lease_seconds / HEARTBEATS_PER_LEASE)
        self._deadline = asked_at + claimed.seconds - GRACE
        self._heard_at = asked_at
        self._is_abandoned = threading.Event()
        self._sent_output: str | None = None
        self._seen: wire.HeartbeatResult | None = None
        self.title = f"{describe_remedies(claimed.remedies)}, seed {claimed.seed}, attempt {claimed.attempt}"

    def abandon(self) -> None:
        """Let it end at once, without a result."""
        self._is_abandoned.set()

    def run(self) -> None:
        """Run it and publish how it ended."""
        started_at = time.monotonic()
        self._tell(f"{self.title}: started")
        name = f"{self._claimed.trial_id}-{self._claimed.attempt}"
        scratch = make_scratch(self._root, self._trainable, name)
        output = scratch / "output"
        try:
            order = Order(
                command=self._command(),
                environment=self._environment(scratch),
                directory=scratch / "work",
                output=output,
                seconds=max(0.0, self._deadline - time.monotonic()),
                memory=self._memory,
            )
            process = self._executor.start(order, self._base, may_preload=self._trainable.preloads)
            try:
                ended = self._follow(process, output)
            finally:
                process.close()
            if isinstance(ended, _Refused):
                self._tell(f"{self.title}: ended, nobody waits for it: {ended.reason}")
                return
            result = self._result(ended, scratch, output)
            seconds = time.monotonic() - started_at
            self._tell(f"{self.title}: {self._publish(result)}, {seconds:.1f} s")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _command(self) -> list[str]:
        arguments = self._trainable.arguments(self._claimed.parameters, self._claimed.seed)
        script = self._trainable.directory / arguments[1] if len(arguments) > 1 else None
        if script is not None and not arguments[1].startswith("-") and script.is_file():
            arguments[1] = str(script)  # a trial has a working directory of its own
        return [self._program, *arguments[1:]]

    def _follow(self, process: LocalProcess, output: Path) -> Ended | _Refused:
        """Renew the lease until the process has ended, or there is no point in it."""
        is_stopping = False
        next_at = time.monotonic()
        while True:
            ended = process.wait(min(self._interval, max(0.0, next_at - time.monotonic())))
            if ended is not None:
                return ended
            if self._is_abandoned.is_set():
                return _Refused("this worker ends")
            now = time.monotonic()
            if now < next_at:
                continue
            next_at = now + self._interval
            answer = self._beat(output)
            if isinstance(answer, _Refused):
                return answer
            if answer is not None:
                self._seen = answer
                self._deadline = min(self._deadline, time.monotonic() + answer.seconds - GRACE)
            is_over = time.monotonic() >= self._deadline
            if not is_stopping and (is_over or (answer is not None and answer.stop)):
                is_stopping = True
                process.stop()

    def _beat(self, output: Path) -> wire.HeartbeatResult | _Refused | None:
        """Send a heartbeat; None if the service did not answer this time."""
        text = _read_output(output)
        changed = None if text == self._sent_output else text
        lease = self._claimed.lease_seconds
        try:
            answer = self._client.work.heartbeat(
                self._claimed.trial_id, self._claimed.attempt, changed, timeout=max(1.0, lease / 3)
            )
        except (ConflictError, NotFoundError) as error:
            return _Refused(error.problem.detail)
        except GradmedicError as error:
            if time.monotonic() - self._heard_at > lease:
                return _Refused(f"the service was not heard of for {lease:g} s: {error}")
            if isinstance(error, ApiError) and not is_retryable(error):
                return _Refused(error.problem.detail)
            return None
        self._heard_at, self._sent_output = time.monotonic(), text
        return answer

    def _result(self, ended: Ended, scratch: Path, output: Path) -> wire.TrialResult:
        report = read_report(scratch)
        status, reason = self._judge(ended, report)
        said = report.get("environment")
        environment = {str(k): str(v) for k, v in said.items()} if isinstance(said, dict) else {}
        return wire.TrialResult(
            attempt=self._claimed.attempt,
            status=status,
            reason=reason,
            exit_code=ended.exit_code,
            output=_read_output(output),
            environment={**describe_environment(_torch_version()), **environment},
        )

    def _judge(self, ended: Ended, report: Mapping[str, object]) -> tuple[str, str | None]:
        if "not_applicable" in report:
            return "not_applicable", str(report["not_applicable"])
        if ended.reason in ("timeout", "stopped"):
            return "failed", f"it took longer than the {self._claimed.seconds:.0f} s that it was given"
        if ended.reason == "memory":
            return "failed", f"it held more than {self._memory / 2**30:.2g} GiB of memory"
        if ended.reason is not None:
            return "failed", ended.reason
        if ended.exit_code is None or ended.exit_code < 0:
            return "failed", f"it was ended by signal {-(ended.exit_code or 0)}"
        if ended.exit_code > 0:
            return "failed", f"it ended with exit code {ended.exit_code}"
        if self._claimed.remedies and "applied" not in report:
            return "failed", "the script never called run.watch(), so that its remedies were not applied"
        return "done", None

    def _publish(self, result: wire.TrialResult) -> str:
        """Offer the result until the service takes or refuses it; return what became of it."""
        deadline = time.monotonic() + PUBLISH_SECONDS
        failures = 0
        while True:
            try:
                rerun = self._client.work.publish(self._claimed.trial_id, result)
            except GradmedicError as error:
                if not is_retryable(error):
                    return f"result refused: {error}"
                if time.monotonic() >= deadline:
                    return f"result lost: {error}"
                if self._is_abandoned.wait(retry_delay(error, min(failures, 2))):
                    return "abandoned"
                failures += 1
            else:
                trial = next(one for one in rerun.trials if one.id == self._claimed.trial_id)
                loss = "" if trial.loss is None else f", loss {trial.loss:.4g}"
                why = "" if trial.reason is None else f" ({trial.reason})"
                return f"{trial.status}, {trial.verdict}{loss}{why}"


def find_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs that this worker may use, as `CUDA_VISIBLE_DEVICES` would name them."""
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


def _read_output(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace").replace("\x00", "")[-OUTPUT_CHARACTERS:]
    except OSError:
        return ""


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _torch_version() -> str | None:
    try:
        return f"torch {version('torch')}"
    except PackageNotFoundError:
        return None
