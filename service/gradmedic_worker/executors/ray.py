"""Hosts trials on a Ray cluster: the executor `ray`, over Ray's Jobs REST API.

A trial is a job whose entrypoint names the attempt and nothing else. Ray chooses the node and the GPUs and runs the
process. The process on the node gets the command and the key by itself (`ray_entrypoint.py`). Each trial has its own
thread that polls Ray, so that a slow cluster delays no heartbeat.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from gradmedic.api import Client
from gradmedic.exceptions import ConfigurationError, GradmedicError
from gradmedic.protocol.trials import ClaimedTrial
from gradmedic.transport.http import is_retryable
from gradmedic_worker.configuration import WorkerConfiguration
from gradmedic_worker.executors.base import STOPPED, LostAttempt, TrialEnd
from gradmedic_worker.executors.ray_jobs import Job, JobSubmission, RayJobs, RayUnreachable
from gradmedic_worker.executors.ray_log import LogState, read_log
from gradmedic_worker.executors.ray_tickets import compute_ticket, read_cluster_token
from gradmedic_worker.trainable_command import TrainableCommand

ENTRYPOINT_MODULE = "gradmedic_worker.executors.ray_entrypoint"
DEFAULT_SLOTS = 8
"""Trials that are submitted at the same time by default. Those that do not fit wait in Ray."""
POLL_INTERVAL = 0.5
"""Seconds between two requests about a job."""
UNREACHABLE_SECONDS = 60.0
"""Time without an answer of the cluster after which a trial is lost."""
CHECK_SECONDS = 2.0
"""Time for which the last answer of the cluster counts as a sign that it can be reached."""
STOP_SECONDS = 10.0
"""Time that is spent on ending a job whose result is not needed."""
LOG_SECONDS = 3.0
"""Time for which the log of an ended job is requested again. Ray refuses it for some time if the node is gone."""


class RayExecutor:
    """Starts trials as jobs of a Ray cluster.

    Args:
        configuration: The worker's configuration.
        client: A client with the worker's key, which registers the tickets.
        environment: The worker's own environment, which may hold Ray's token.
        print_line: Function that prints a line for the operator.
    """

    name = "ray"

    def __init__(
        self,
        configuration: WorkerConfiguration,
        client: Client,
        *,
        environment: Mapping[str, str],
        print_line: Callable[[str], None],
    ) -> None:
        if configuration.ray is None:
            raise ConfigurationError('worker.executor must be "ray", with a table [ray]')
        self._configuration = configuration
        self._ray = configuration.ray
        self._client = client
        self._print_line = print_line
        self._token = read_cluster_token(environment, self._ray.token_file)
        self._jobs = RayJobs(self._ray.address, self._token)
        self._answered_at: float | None = None
        self._is_failure_printed = False

    @property
    def slots(self) -> int:
        """Number of jobs at the same time, including those that wait for a place."""
        return self._configuration.slots or DEFAULT_SLOTS

    def prepare(self) -> None:
        """Check the cluster. Raises ConfigurationError if it refuses the token, or needs none."""
        self._is_reachable()

    def list_startable_trainables(self) -> list[str]:
        """Return the names of all trainables, because Ray does the placement; none if the cluster does not answer."""
        return list(self._configuration.trainables) if self._is_reachable() else []

    def start(self, claimed: ClaimedTrial) -> RayTrial:
        """Submit an attempt as a job."""
        trainable = self._configuration.trainables[claimed.trainable]
        name = f"{claimed.trial_id}-{claimed.attempt}"
        submission = JobSubmission(
            id=name,
            entrypoint=f"{self._ray.python} -m {ENTRYPOINT_MODULE} {name}",
            cpus=trainable.cpus,
            gpus=trainable.gpus,
            memory=trainable.memory,
        )
        pending_timeout = self._ray.pending_timeout

        def register_ticket() -> None:
            self._client.work.issue_ticket(
                claimed.trial_id,
                claimed.attempt,
                compute_ticket(self._token, name),
                pending_timeout + UNREACHABLE_SECONDS,
            )

        return RayTrial(
            self._jobs,
            submission,
            register_ticket,
            pending_timeout=pending_timeout,
            awaited=f"a place with {_describe_resources(trainable)}",
        )

    def close(self) -> None:
        """Close the connections."""
        self._jobs.close()

    def _is_reachable(self) -> bool:
        """Whether the cluster answers. Prints a line when this changes."""
        now = time.monotonic()
        if self._answered_at is not None and now - self._answered_at < CHECK_SECONDS:
            return True
        try:
            version = self._jobs.check()
        except RayUnreachable as error:
            if not self._is_failure_printed:
                self._print_line(f"the Ray cluster does not answer, trying again: {error}")
            self._is_failure_printed, self._answered_at = True, None
            return False
        if self._is_failure_printed or self._answered_at is None:
            self._print_line(f"Ray {version} at {self._ray.address}")
        self._is_failure_printed, self._answered_at = False, now
        return True


class RayTrial:
    """The process of an attempt that is a job of a Ray cluster.

    Args:
        jobs: The cluster's jobs.
        submission: The job to submit.
        register_ticket: Function that registers the attempt's ticket with the service.
        pending_timeout: Seconds that the job may wait for a place.
        awaited: What the job waits for until it starts, for messages.
    """

    def __init__(
        self,
        jobs: RayJobs,
        submission: JobSubmission,
        register_ticket: Callable[[], None],
        *,
        pending_timeout: float,
        awaited: str,
    ) -> None:
        self._jobs = jobs
        self._submission = submission
        self._register_ticket = register_ticket
        self._pending_timeout = pending_timeout
        self._awaited = awaited
        self._changed = threading.Condition()
        self._has_ticket = False
        self._is_closed = False
        self._is_stopping = False
        self._has_started = False
        self._log = LogState()
        self._end: TrialEnd | LostAttempt | None = None
        self._thread = threading.Thread(target=self._run, name=f"job {submission.id}", daemon=True)
        self._thread.start()

    @property
    def has_started(self) -> bool:
        """Whether Ray has found a place for the job."""
        return self._has_started

    def wait(self, seconds: float) -> TrialEnd | LostAttempt | None:
        """Wait up to `seconds` for the end. Return None if it has not come."""
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None, seconds)
            return self._end

    def output(self) -> str:
        """Return the output so far, as the node has written it to the log."""
        return self._log.output

    def stop(self) -> None:
        """Have Ray send SIGTERM to the job, and SIGKILL shortly after."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    def close(self) -> None:
        """End the job if it has not ended. If the cluster does not answer, the job ends with its lease."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(STOP_SECONDS)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            end = self._wait_for_end()
        except GradmedicError as error:
            end = LostAttempt(str(error))
        except Exception as error:
            end = LostAttempt(f"an error in the worker: {error!r}")
        with self._changed:
            self._end = end or LostAttempt("the worker has closed it")
            self._changed.notify_all()
        if end is None or isinstance(end, LostAttempt):
            self._end_job()

    def _wait_for_end(self) -> TrialEnd | LostAttempt | None:
        """Submit the job and poll it until it ends. Return None if it is closed before."""
        submitted_at = answered_at = time.monotonic()
        is_submitted = is_stopped = False
        while not self._is_closed:
            try:
                if not is_submitted:
                    self._submit()
                    is_submitted, submitted_at = True, time.monotonic()
                if self._is_stopping and not is_stopped:
                    self._jobs.stop(self._submission.id)
                    is_stopped = True
                job = self._jobs.find(self._submission.id)
                answered_at = time.monotonic()
            except RayUnreachable as error:
                if time.monotonic() - answered_at > UNREACHABLE_SECONDS:
                    return LostAttempt(f"the Ray cluster could not be reached for {UNREACHABLE_SECONDS:g} s: {error}")
                self._pause()
                continue
            if job is None:
                return LostAttempt("Ray has no job of it any more: the head was restarted")
            if job.entrypoint != self._submission.entrypoint:
                return LostAttempt(f"Ray has another job with the id {self._submission.id}")
            if job.has_ended:
                return self._read_end(job, is_stopped=is_stopped)
            if job.status == "PENDING":
                if is_stopped:
                    return LostAttempt("it was stopped before it had a place")
                if time.monotonic() - submitted_at > self._pending_timeout:
                    return LostAttempt(f"it waited longer than {self._pending_timeout:g} s for {self._awaited}")
            else:
                self._has_started = True
                self._read_log()
                if self._log.end is not None:
                    return self._log.end
            self._pause()
        return None

    def _submit(self) -> None:
        try:
            if not self._has_ticket:  # a job that was submitted without an answer may have redeemed it already
                self._register_ticket()
        except GradmedicError as error:
            if is_retryable(error):
                raise RayUnreachable(f"the ticket could not be registered: {error}") from error
            raise
        self._has_ticket = True
        self._jobs.submit(self._submission)

    def _read_end(self, job: Job, *, is_stopped: bool) -> TrialEnd | LostAttempt:
        """Return how an ended job ended: by its log, or else by its status."""
        deadline = time.monotonic() + LOG_SECONDS
        while not self._read_log() and time.monotonic() < deadline and not self._is_closed:
            self._pause()
        if self._log.end is not None:
            return self._log.end
        if is_stopped:
            return TrialEnd(exit_code=None, reason=STOPPED)
        if job.status == "STOPPED":
            return LostAttempt("its job was stopped with Ray's own tools")
        last_lines = "\n".join(self._log.other_lines[-5:]) or "its log is empty"
        details = job.message if job.status == "FAILED" else last_lines
        return LostAttempt(f"its job {job.status.lower()} without a result: {details}")

    def _read_log(self) -> bool:
        """Read the job's log. Return False if the cluster does not send it."""
        try:
            self._log = read_log(self._jobs.read_log(self._submission.id))
        except RayUnreachable:
            return False
        return True

    def _end_job(self) -> None:
        """Stop the job and wait a short time for its end.

        A job that waits for a place is not waited for: Ray stops it when it starts.
        """
        deadline = time.monotonic() + STOP_SECONDS
        is_stopped = False
        while time.monotonic() < deadline:
            try:
                job = self._jobs.find(self._submission.id)
                if job is None or job.has_ended or job.entrypoint != self._submission.entrypoint:
                    return
                if not is_stopped:
                    self._jobs.stop(self._submission.id)
                    is_stopped = True
                if job.status == "PENDING":
                    return
            except GradmedicError:
                pass
            time.sleep(POLL_INTERVAL / 5)

    def _pause(self) -> None:
        """Wait until the next poll, or until `stop` or `close` is called."""
        with self._changed:
            was_stopping = self._is_stopping
            self._changed.wait_for(lambda: self._is_closed or self._is_stopping != was_stopping, POLL_INTERVAL)


def _describe_resources(trainable: TrainableCommand) -> str:
    parts = [f"{trainable.cpus} CPU{'s' if trainable.cpus > 1 else ''}"]
    if trainable.gpus:
        parts.append(f"{trainable.gpus} GPU{'s' if trainable.gpus > 1 else ''}")
    return " and ".join(parts)
