"""Claims trials and sees them to their end: the worker's own process.

One idea: a slot is a thread that lives as long as its trial. It renews the lease and ends the trial as soon as nobody
waits for it: when the service says so, refuses it, or has not been heard of for as long as the lease. A worker that was
frozen and wakes up late finds its attempts given up, and its processes end.
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
from gradmedic_worker.attempt import GRACE
from gradmedic_worker.configuration import WorkerConfiguration
from gradmedic_worker.executors.base import STOPPED, TIMEOUT, Executor, HostedTrial, Lost, TrialEnd

OFFER_INTERVAL = 10.0
"""Seconds between offers of the trainables: the service lets those go that nobody offers any more."""
POLL = 0.5
"""Seconds between claims while slots are free."""
HEARTBEATS_PER_LEASE = 10
LONGEST_HEARTBEAT = 1.0
"""Seconds between heartbeats at most: cancelling takes this long to arrive."""
PUBLISH_SECONDS = 600.0
"""For which a result is offered to a service that does not answer."""
OUTPUT_CHARACTERS = 64 * 1024

Print = Callable[[str], None]


class Supervisor:
    """Runs trials until it is told to stop.

    Args:
        client: of the service, with a key of the scope `worker` where keys are needed.
        configuration: what may be run.
        executor: hosts the trials.
        tell: prints a line.
    """

    def __init__(self, client: Client, configuration: WorkerConfiguration, executor: Executor, *, tell: Print) -> None:
        self._client = client
        self._configuration = configuration
        self._executor = executor
        self._tell = tell
        self._changed = threading.Condition()
        self._running: dict[threading.Thread, _TrialAtWork] = {}
        self._is_draining = self._is_abandoned = False
        self._offered_at = 0.0

    def run(self) -> int:
        """Offer the trainables and work; return the exit status."""
        self._executor.prepare()
        names = ", ".join(self._configuration.trainables)
        slots, name = self._executor.slots, self._executor.name
        failures = 0
        try:
            while not self._is_draining and not self._register(failures):
                failures += 1
            if not self._is_draining:
                self._tell(f"worker {self._configuration.name}: executor {name}, {slots} slots, trainables {names}")
            while not self._is_draining:
                self._offer_again()
                self._fill_slots()
        except BaseException:
            self.abandon()
            raise
        finally:
            self._wait_for_all()
            self._executor.close()
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
            self._is_draining = self._is_abandoned = True
            for trial in self._running.values():
                trial.abandon()
            self._changed.notify_all()

    def _register(self, failures: int) -> bool:
        try:
            self._offer()
        except GradmedicError as error:
            if not is_retryable(error):
                raise
            if failures == 0:
                self._tell(f"the service does not answer, trying again: {error}")
            self._pause(retry_delay(error, failures))
            return False
        return True

    def _offer(self) -> None:
        self._offered_at = time.monotonic()
        trainables = [one.on_the_wire() for one in self._configuration.trainables.values()]
        self._client.work.register(trainables, self._configuration.name)

    def _offer_again(self) -> None:
        """Let the service know that the trainables are still there."""
        if time.monotonic() - self._offered_at < OFFER_INTERVAL:
            return
        try:
            self._offer()
        except GradmedicError as error:
            if not is_retryable(error):
                raise

    def _fill_slots(self) -> None:
        slots = self._executor.slots
        with self._changed:
            self._changed.wait_for(lambda: self._is_draining or len(self._running) < slots, OFFER_INTERVAL)
            is_full = len(self._running) >= slots
        if self._is_draining or is_full:
            return
        fitting = self._executor.fitting()
        asked_at = time.monotonic()
        try:
            claimed = (
                self._client.work.claim(self._configuration.name, fitting, self._executor.name) if fitting else None
            )
        except GradmedicError as error:
            if not is_retryable(error):
                raise
            self._pause(retry_delay(error, 1))
            return
        if claimed is None:
            self._pause(POLL)
            return
        self._begin(claimed, asked_at)

    def _begin(self, claimed: ClaimedTrial, asked_at: float) -> None:
        trial = _TrialAtWork(claimed, self._client, self._executor, asked_at, self._tell)
        thread = threading.Thread(target=self._see_to, args=(trial,), name=f"trial {claimed.trial_id}")
        with self._changed:
            thread.start()
            self._running[thread] = trial
            if self._is_abandoned:  # while it was being claimed
                trial.abandon()
        trial.wait_for_place()

    def _see_to(self, trial: _TrialAtWork) -> None:
        try:
            trial.run()
        except Exception as error:
            reason = f"the worker could not run it: {error or type(error).__name__}"
            self._tell(f"{trial.title}: {reason}: {trial.give_up(reason)}")
        finally:
            with self._changed:
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

    def __init__(self, claimed: ClaimedTrial, client: Client, executor: Executor, asked_at: float, tell: Print) -> None:
        self._claimed = claimed
        self._client = client
        self._executor = executor
        self._tell = tell
        self._interval = min(LONGEST_HEARTBEAT, claimed.lease_seconds / HEARTBEATS_PER_LEASE)
        self._began_at = self._heard_at = asked_at
        self._is_abandoned = threading.Event()
        self._is_placed = threading.Event()
        self._sent_output: str | None = None
        what = describe_remedies(claimed.remedies)
        if claimed.candidate and not claimed.remedies:
            what = f"candidate {claimed.candidate}, by the script's own parameters"
        self.title = f"{what}, seed {claimed.seed}, attempt {claimed.attempt}"

    def abandon(self) -> None:
        """Let it end at once, without a result."""
        self._is_abandoned.set()

    def wait_for_place(self) -> None:
        """Wait until the executor has started it or failed to: until then, what it takes seems to be free."""
        self._is_placed.wait()

    def run(self) -> None:
        """Run it and publish how it ended."""
        started_at = time.monotonic()
        seconds = self._claimed.seconds - GRACE - (started_at - self._heard_at)
        try:
            self._tell(f"{self.title}: started")
            process = self._executor.start(self._claimed)
        finally:
            self._is_placed.set()
        try:
            ended = self._follow(process, seconds)
            if isinstance(ended, _Refused):
                self._tell(f"{self.title}: ended, nobody waits for it: {ended.reason}")
                return
            result = self._result(ended, process)
        finally:
            process.close()
        published = self._publish(result)
        self._tell(f"{self.title}: {published}, {time.monotonic() - started_at:.1f} s")

    def give_up(self, reason: str) -> str:
        """Publish that it cannot be run here; return what became of that."""
        return self._publish(TrialResult(attempt=self._claimed.attempt, status="failed", reason=reason))

    def _follow(self, process: HostedTrial, seconds: float) -> TrialEnd | Lost | _Refused:
        """Renew the lease until the process has ended, or there is no point in it."""
        is_stopping = False
        deadline: float | None = None
        next_at = time.monotonic()
        while True:
            ended = process.wait(min(self._interval, max(0.0, next_at - time.monotonic())))
            if ended is not None:
                return ended
            if self._is_abandoned.is_set():
                return _Refused("this worker ends")
            now = time.monotonic()
            if deadline is None and process.has_started:
                self._began_at, deadline = now, now + seconds
            if now < next_at:
                continue
            next_at = now + self._interval
            answer = self._beat(process)
            if isinstance(answer, _Refused):
                return answer
            if deadline is not None and answer is not None:
                deadline = min(deadline, time.monotonic() + answer.seconds - GRACE)
            is_over = deadline is not None and time.monotonic() >= deadline
            if not is_stopping and (is_over or (answer is not None and answer.stop)):
                is_stopping = True
                process.stop()

    def _beat(self, process: HostedTrial) -> HeartbeatResult | _Refused | None:
        """Send a heartbeat; None if the service did not answer this time."""
        text = process.output()[-OUTPUT_CHARACTERS:]
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

    def _result(self, ended: TrialEnd | Lost, process: HostedTrial) -> TrialResult:
        output = process.output()[-OUTPUT_CHARACTERS:]
        if isinstance(ended, Lost):
            return TrialResult(attempt=self._claimed.attempt, status="lost", reason=ended.reason, output=output or None)
        status, reason = self._judge(ended)
        return TrialResult(
            attempt=self._claimed.attempt,
            status=status,
            reason=reason,
            exit_code=ended.exit_code,
            output=output,
            environment=ended.report.environment,
            seconds=time.monotonic() - self._began_at,
        )

    def _judge(self, ended: TrialEnd) -> tuple[str, str | None]:
        if ended.report.not_applicable is not None:
            return "not_applicable", ended.report.not_applicable
        if ended.reason in (TIMEOUT, STOPPED):
            return "failed", f"it took longer than the {self._claimed.seconds:.0f} s that it was given"
        if ended.reason is not None:
            return "failed", ended.reason
        if ended.exit_code is None or ended.exit_code < 0:
            return "failed", f"it was ended by signal {_signal_name(-(ended.exit_code or 0))}"
        if ended.exit_code > 0:
            return "failed", f"it ended with exit code {ended.exit_code}"
        if self._claimed.remedies and ended.report.applied is None:
            return "failed", "the script never called run.watch(), so that its remedies were not applied"
        return "done", None

    def _publish(self, result: TrialResult) -> str:
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
                if result.status == "lost" and trial.status == "queued":
                    return f"lost, and queued again ({result.reason})"
                loss = "" if trial.loss is None else f", loss {trial.loss:.4g}"
                why = "" if trial.reason is None else f" ({trial.reason})"
                return f"{trial.status}, {trial.verdict}{loss}{why}"


def _signal_name(number: int) -> str:
    """Name a signal as a person would, and say what SIGKILL mostly means.

    >>> _signal_name(11)
    '11 (SIGSEGV)'
    """
    known = {one.value: one.name for one in signal.Signals}
    hint = ", as the kernel does where memory runs out" if number == signal.SIGKILL else ""
    return f"{number} ({known[number]}{hint})" if number in known else str(number)
