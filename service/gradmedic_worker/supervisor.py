"""Claims trials from the service and runs them to their end, in the worker's main process.

Each running attempt has a thread of its own. The thread renews the lease and ends the attempt as soon as the service
asks for it, refuses the heartbeat, or has not answered for the length of several leases. So a worker that was suspended
and resumes late finds that its heartbeats are refused, and ends its processes. A worker that ends gives its trials
back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gradmedic.api import Client
from gradmedic.exceptions import ApiError, ConflictError, GradmedicError, NotFoundError
from gradmedic.protocol.remedies import describe_remedies
from gradmedic.protocol.trials import ClaimedTrial, HeartbeatResult, TrialResult
from gradmedic.transport.http import is_retryable, retry_delay
from gradmedic_worker.attempt import GRACE_SECONDS
from gradmedic_worker.configuration import WorkerConfiguration
from gradmedic_worker.executors.base import Executor, LostAttempt, TrialEnd, TrialProcess
from gradmedic_worker.silence import SILENT_LEASES, Silence
from gradmedic_worker.trial_result import build_bare_result, build_failure, build_result, clean_output, clean_result

REGISTRATION_INTERVAL = 10.0
"""Seconds between two registrations of the trainables. The service withdraws trainables that no worker registers."""
CLAIM_INTERVAL = 0.5
"""Seconds between two claims while slots are free."""
HEARTBEATS_PER_LEASE = 10
"""Number of heartbeats within the length of a lease."""
LONGEST_HEARTBEAT_INTERVAL = 1.0
"""Longest time in seconds between two heartbeats. A cancellation takes so long to arrive."""
HEARTBEAT_SECONDS = 10.0
"""Longest time limit of a heartbeat. The end of the process is noticed late by as much."""
RELEASE_SECONDS = 3.0
"""Time limit of the request that gives a trial back. A worker that ends does not wait for a service that is away."""

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
        judge_by = self._configuration.trainables[claimed.trainable].judge_by
        attempt = _RunningAttempt(claimed, self._client, self._executor, claimed_at, self._print_line, judge_by)
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
        self,
        claimed: ClaimedTrial,
        client: Client,
        executor: Executor,
        claimed_at: float,
        print_line: PrintLine,
        judge_by: str | None,
    ) -> None:
        self._claimed = claimed
        self._judge_by = judge_by
        self._client = client
        self._executor = executor
        self._print_line = print_line
        self._heartbeat_interval = min(LONGEST_HEARTBEAT_INTERVAL, claimed.lease_seconds / HEARTBEATS_PER_LEASE)
        self._claimed_at = self._started_at = claimed_at
        self._silence = Silence()
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
        seconds = self._claimed.seconds - GRACE_SECONDS - (begun_at - self._claimed_at)
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
            seconds = time.monotonic() - self._started_at
            result = build_result(self._claimed, end, output=process.output(), seconds=seconds, judge_by=self._judge_by)
        finally:
            process.close()
            if self._is_abandoned.is_set():
                self._release()
        published = self._publish(result)
        self._print_line(f"{self.title}: {published}, {time.monotonic() - begun_at:.1f} s")

    def _release(self) -> None:
        """Give the trial back: its next attempt need not wait for the end of the lease."""
        released = TrialResult(attempt=self._claimed.attempt, status="lost", reason="its worker has ended")
        with suppress(GradmedicError):
            self._client.work.publish(self._claimed.trial_id, released, timeout=RELEASE_SECONDS)

    def publish_failure(self, reason: str) -> str:
        """Publish that the attempt failed. Return the outcome as text for a message."""
        return self._publish(build_failure(self._claimed, reason))

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
        output = clean_output(process.output())
        changed_output = None if output == self._sent_output else output
        lease_seconds = self._claimed.lease_seconds
        timeout = min(HEARTBEAT_SECONDS, max(1.0, lease_seconds / 3))
        try:
            answer = self._client.work.heartbeat(
                self._claimed.trial_id, self._claimed.attempt, changed_output, timeout=timeout
            )
        except (ConflictError, NotFoundError) as error:
            return _Discarded(error.problem.detail)
        except GradmedicError as error:
            self._silence.record_failure(self._heartbeat_interval + timeout)
            if self._silence.seconds > SILENT_LEASES * lease_seconds:
                return _Discarded(f"the service could not be reached for {self._silence.seconds:.0f} s: {error}")
            if isinstance(error, ApiError) and not is_retryable(error):
                return _Discarded(error.problem.detail)
            return None
        self._silence.record_answer()
        self._sent_output = output
        return answer

    def _publish(self, result: TrialResult) -> str:
        """Send the result until the service accepts or refuses it. Return the outcome as text for a message.

        The service may refuse a result for what the script has written, or fail at it. Then it gets a bare result. The
        slot is free after the length of a lease in any case: by then the attempt counts as lost.
        """
        result, is_bare = clean_result(result), False
        lease_seconds = self._claimed.lease_seconds
        started_at = time.monotonic()
        failures = 0
        while True:
            try:
                rerun = self._client.work.publish(self._claimed.trial_id, result)
            except (ConflictError, NotFoundError) as error:
                return f"result refused: {error}"
            except GradmedicError as error:
                waited = time.monotonic() - started_at
                is_refused = not is_retryable(error)
                if is_refused and is_bare:
                    return f"result refused: {error}"
                if waited >= lease_seconds:
                    return f"result lost: {error}"
                if not is_bare and (is_refused or (_is_failure(error) and waited >= lease_seconds / 2)):
                    reason = f"the service did not accept its result: {error}"
                    result, is_bare = clean_result(build_bare_result(result, reason)), True
                    continue
                # No pause passes the moment at which something else is done.
                pause = lease_seconds / 2 - waited if waited < lease_seconds / 2 else lease_seconds - waited
                if self._is_abandoned.wait(min(pause, retry_delay(error, min(failures, 2)))):
                    return "abandoned"
                failures += 1
            else:
                trial = next(trial for trial in rerun.trials if trial.id == self._claimed.trial_id)
                if result.status == "lost" and trial.status == "queued":
                    return f"lost, and queued again ({result.reason})"
                loss = "" if trial.loss is None else f", loss {trial.loss:.4g}"
                reason = "" if trial.reason is None else f" ({trial.reason})"
                return f"{trial.status}, {trial.verdict}{loss}{reason}"


def _is_failure(error: GradmedicError) -> bool:
    """Whether the service failed at a request, and was not only busy or away."""
    status = error.problem.status if isinstance(error, ApiError) else getattr(error, "status", None)
    return status == 500
