"""Claims trials from the service and runs them to their end, in the worker's main process.

Each running attempt has a thread of its own. The thread renews the lease and ends the attempt as soon as the service
asks for it, refuses the heartbeat, or has not answered for the length of the lease. So a worker that was suspended and
resumes late finds that its attempts are over, and ends their processes.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gradmedic.api import Client
from gradmedic.exceptions import ApiError, ConflictError, GradmedicError, NotFoundError
from gradmedic.protocol.remedies import describe_remedies
from gradmedic.protocol.trials import ClaimedTrial, HeartbeatResult, TrialResult
from gradmedic.transport.http import is_retryable, retry_delay
from gradmedic_worker.attempt import GRACE_SECONDS
from gradmedic_worker.configuration import WorkerConfiguration
from gradmedic_worker.executors.base import STOPPED, TIMEOUT, Executor, LostAttempt, TrialEnd, TrialProcess

REGISTRATION_INTERVAL = 10.0
"""Seconds between two registrations of the trainables. The service withdraws trainables that no worker registers."""
CLAIM_INTERVAL = 0.5
"""Seconds between two claims while slots are free."""
HEARTBEATS_PER_LEASE = 10
"""Number of heartbeats within the length of a lease."""
LONGEST_HEARTBEAT_INTERVAL = 1.0
"""Longest time in seconds between two heartbeats. A cancellation takes so long to arrive."""
PUBLISH_SECONDS = 600.0
"""Time for which a result is sent again to a service that does not answer."""
OUTPUT_CHARACTERS = 64 * 1024
"""Characters of the output's end that are sent to the service."""

PrintLine = Callable[[str], None]


class Supervisor:
    """Runs trials until it is drained or abandoned.

    Args:
        client: A client of the service. Its key has the scope `worker` if the service requires keys.
        configuration: The worker's configuration.
        executor: Hosts the processes of the trials.
        print_line: Function that prints a line for the operator.
    """

    def __init__(
        self, client: Client, configuration: WorkerConfiguration, executor: Executor, *, print_line: PrintLine
    ) -> None:
        self._client = client
        self._configuration = configuration
        self._executor = executor
        self._print_line = print_line
        self._changed = threading.Condition()
        self._running: dict[threading.Thread, _RunningAttempt] = {}
        self._is_draining = self._is_abandoned = False
        self._registered_at = 0.0

    def run(self) -> int:
        """Register the trainables, run trials, and return the exit status."""
        self._executor.prepare()
        failures = 0
        try:
            while not self._is_draining and not self._try_to_register(failures):
                failures += 1
            if not self._is_draining:
                trainables = ", ".join(self._configuration.trainables)
                self._print_line(
                    f"worker {self._configuration.name}: executor {self._executor.name}, "
                    f"{self._executor.slots} slots, trainables {trainables}"
                )
            while not self._is_draining:
                self._register_if_due()
                self._claim_if_free()
        except BaseException:
            self.abandon()
            raise
        finally:
            self._wait_for_all()
            self._executor.close()
        return 0

    def drain(self) -> None:
        """Claim no more trials, and end after the last running one."""
        with self._changed:
            if not self._is_draining and self._running:
                self._print_line(
                    f"draining: {len(self._running)} trials still run; send the signal again to abandon them"
                )
            self._is_draining = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """End all trials at once, without results. Other workers will make new attempts."""
        with self._changed:
            self._is_draining = self._is_abandoned = True
            for attempt in self._running.values():
                attempt.abandon()
            self._changed.notify_all()

    def _try_to_register(self, failures: int) -> bool:
        """Register the trainables. If the service does not answer, wait and return False."""
        try:
            self._register()
        except GradmedicError as error:
            if not is_retryable(error):
                raise
            if failures == 0:
                self._print_line(f"the service does not answer, trying again: {error}")
            self._wait_for_change(retry_delay(error, failures))
            return False
        return True

    def _register(self) -> None:
        self._registered_at = time.monotonic()
        trainables = [trainable.describe() for trainable in self._configuration.trainables.values()]
        self._client.work.register(trainables, self._configuration.name)

    def _register_if_due(self) -> None:
        if time.monotonic() - self._registered_at < REGISTRATION_INTERVAL:
            return
        try:
            self._register()
        except GradmedicError as error:
            if not is_retryable(error):
                raise

    def _claim_if_free(self) -> None:
        """Wait for a free slot, then claim a trial and start it."""
        slots = self._executor.slots
        with self._changed:
            self._changed.wait_for(lambda: self._is_draining or len(self._running) < slots, REGISTRATION_INTERVAL)
            is_full = len(self._running) >= slots
        if self._is_draining or is_full:
            return
        startable = self._executor.list_startable_trainables()
        claimed_at = time.monotonic()
        try:
            claimed = (
                self._client.work.claim(self._configuration.name, startable, self._executor.name) if startable else None
            )
        except GradmedicError as error:
            if not is_retryable(error):
                raise
            self._wait_for_change(retry_delay(error, 1))
            return
        if claimed is None:
            self._wait_for_change(CLAIM_INTERVAL)
            return
        self._start(claimed, claimed_at)

    def _start(self, claimed: ClaimedTrial, claimed_at: float) -> None:
        attempt = _RunningAttempt(claimed, self._client, self._executor, claimed_at, self._print_line)
        thread = threading.Thread(target=self._run_attempt, args=(attempt,), name=f"trial {claimed.trial_id}")
        with self._changed:
            thread.start()
            self._running[thread] = attempt
            if self._is_abandoned:  # `abandon` was called during the claim
                attempt.abandon()
        attempt.wait_for_start()

    def _run_attempt(self, attempt: _RunningAttempt) -> None:
        try:
            attempt.run()
        except Exception as error:
            reason = f"the worker could not run it: {error or type(error).__name__}"
            self._print_line(f"{attempt.title}: {reason}: {attempt.publish_failure(reason)}")
        finally:
            with self._changed:
                del self._running[threading.current_thread()]
                self._changed.notify_all()

    def _wait_for_change(self, seconds: float) -> None:
        """Wait up to `seconds`, or until an attempt starts or ends, or the worker is drained."""
        with self._changed:
            running = len(self._running)
            self._changed.wait_for(lambda: self._is_draining or len(self._running) != running, seconds)

    def _wait_for_all(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._running)


@dataclass(frozen=True, slots=True)
class _Discarded:
    """The attempt was ended, and its result is not published."""

    reason: str


class _RunningAttempt:
    """An attempt at a trial, from the claim to the published result."""

    def __init__(
        self, claimed: ClaimedTrial, client: Client, executor: Executor, claimed_at: float, print_line: PrintLine
    ) -> None:
        self._claimed = claimed
        self._client = client
        self._executor = executor
        self._print_line = print_line
        self._heartbeat_interval = min(LONGEST_HEARTBEAT_INTERVAL, claimed.lease_seconds / HEARTBEATS_PER_LEASE)
        self._started_at = self._answered_at = claimed_at
        self._is_abandoned = threading.Event()
        self._has_start_ended = threading.Event()
        self._sent_output: str | None = None
        candidate = describe_remedies(claimed.remedies)
        if claimed.candidate and not claimed.remedies:
            candidate = f"candidate {claimed.candidate}, by the script's own parameters"
        self.title = f"{candidate}, seed {claimed.seed}, attempt {claimed.attempt}"

    def abandon(self) -> None:
        """End the attempt at once, without a result."""
        self._is_abandoned.set()

    def wait_for_start(self) -> None:
        """Wait until the executor has started the attempt or failed to. Until then its GPUs still count as free."""
        self._has_start_ended.wait()

    def run(self) -> None:
        """Run the attempt and publish its result."""
        begun_at = time.monotonic()
        seconds = self._claimed.seconds - GRACE_SECONDS - (begun_at - self._answered_at)
        try:
            self._print_line(f"{self.title}: started")
            process = self._executor.start(self._claimed)
        finally:
            self._has_start_ended.set()
        try:
            end = self._wait_for_end(process, seconds)
            if isinstance(end, _Discarded):
                self._print_line(f"{self.title}: ended without a result: {end.reason}")
                return
            result = self._build_result(end, process)
        finally:
            process.close()
        published = self._publish(result)
        self._print_line(f"{self.title}: {published}, {time.monotonic() - begun_at:.1f} s")

    def publish_failure(self, reason: str) -> str:
        """Publish that the attempt failed. Return the outcome as text for a message."""
        return self._publish(TrialResult(attempt=self._claimed.attempt, status="failed", reason=reason))

    def _wait_for_end(self, process: TrialProcess, seconds: float) -> TrialEnd | LostAttempt | _Discarded:
        """Renew the lease until the process ends, or its result is not needed any more."""
        is_stopping = False
        deadline: float | None = None
        next_heartbeat_at = time.monotonic()
        while True:
            end = process.wait(min(self._heartbeat_interval, max(0.0, next_heartbeat_at - time.monotonic())))
            if end is not None:
                return end
            if self._is_abandoned.is_set():
                return _Discarded("this worker ends")
            now = time.monotonic()
            if deadline is None and process.has_started:
                self._started_at, deadline = now, now + seconds
            if now < next_heartbeat_at:
                continue
            next_heartbeat_at = now + self._heartbeat_interval
            answer = self._send_heartbeat(process)
            if isinstance(answer, _Discarded):
                return answer
            if deadline is not None and answer is not None:
                deadline = min(deadline, time.monotonic() + answer.seconds - GRACE_SECONDS)
            is_over = deadline is not None and time.monotonic() >= deadline
            if not is_stopping and (is_over or (answer is not None and answer.stop)):
                is_stopping = True
                process.stop()

    def _send_heartbeat(self, process: TrialProcess) -> HeartbeatResult | _Discarded | None:
        """Send a heartbeat and return the answer. Return None if the service does not answer this time."""
        output = process.output()[-OUTPUT_CHARACTERS:]
        changed_output = None if output == self._sent_output else output
        lease_seconds = self._claimed.lease_seconds
        try:
            answer = self._client.work.heartbeat(
                self._claimed.trial_id, self._claimed.attempt, changed_output, timeout=max(1.0, lease_seconds / 3)
            )
        except (ConflictError, NotFoundError) as error:
            return _Discarded(error.problem.detail)
        except GradmedicError as error:
            if time.monotonic() - self._answered_at > lease_seconds:
                return _Discarded(f"the service could not be reached for {lease_seconds:g} s: {error}")
            if isinstance(error, ApiError) and not is_retryable(error):
                return _Discarded(error.problem.detail)
            return None
        self._answered_at, self._sent_output = time.monotonic(), output
        return answer

    def _build_result(self, end: TrialEnd | LostAttempt, process: TrialProcess) -> TrialResult:
        output = process.output()[-OUTPUT_CHARACTERS:]
        if isinstance(end, LostAttempt):
            return TrialResult(attempt=self._claimed.attempt, status="lost", reason=end.reason, output=output or None)
        status, reason = self._determine_status(end)
        return TrialResult(
            attempt=self._claimed.attempt,
            status=status,
            reason=reason,
            exit_code=end.exit_code,
            output=output,
            environment=end.report.environment,
            seconds=time.monotonic() - self._started_at,
        )

    def _determine_status(self, end: TrialEnd) -> tuple[str, str | None]:
        """Return the status of an ended trial, and its reason if it is not `done`."""
        if end.report.not_applicable is not None:
            return "not_applicable", end.report.not_applicable
        if end.reason in (TIMEOUT, STOPPED):
            return "failed", f"it took longer than the {self._claimed.seconds:.0f} s that it was given"
        if end.reason is not None:
            return "failed", end.reason
        if end.exit_code is None or end.exit_code < 0:
            return "failed", f"it was ended by signal {_describe_signal(-(end.exit_code or 0))}"
        if end.exit_code > 0:
            return "failed", f"it ended with exit code {end.exit_code}"
        if self._claimed.remedies and end.report.applied is None:
            return "failed", "the script never called run.watch(), so that its remedies were not applied"
        return "done", None

    def _publish(self, result: TrialResult) -> str:
        """Send the result until the service accepts or refuses it. Return the outcome as text for a message."""
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
                trial = next(trial for trial in rerun.trials if trial.id == self._claimed.trial_id)
                if result.status == "lost" and trial.status == "queued":
                    return f"lost, and queued again ({result.reason})"
                loss = "" if trial.loss is None else f", loss {trial.loss:.4g}"
                reason = "" if trial.reason is None else f" ({trial.reason})"
                return f"{trial.status}, {trial.verdict}{loss}{reason}"


def _describe_signal(number: int) -> str:
    """Return a signal's number and name, and the usual source of SIGKILL.

    >>> _describe_signal(11)
    '11 (SIGSEGV)'
    """
    names = {member.value: member.name for member in signal.Signals}
    hint = ", which the kernel sends when memory runs out" if number == signal.SIGKILL else ""
    return f"{number} ({names[number]}{hint})" if number in names else str(number)
