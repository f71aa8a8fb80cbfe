"""Hosts trials on a Ray cluster: the executor `ray`, over Ray's Jobs REST API.

One idea: a trial is a job whose entrypoint names the attempt and nothing else. Where it runs, on which GPUs, and that
its process is there, is Ray's to decide; what it runs, with which key, the node finds out for itself (`node.py`). Each
trial has a thread that asks Ray how it stands, so that a cluster that is slow to answer holds up no heartbeat.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from gradmedic.api import Client
from gradmedic.exceptions import ConfigurationError, GradmedicError
from gradmedic.protocol.trials import ClaimedTrial
from gradmedic.transport.http import is_retryable
from gradmedic_worker.configuration import TrainableCommand, WorkerConfiguration
from gradmedic_worker.events import LogState, read_events
from gradmedic_worker.executors.base import STOPPED, Lost, TrialEnd
from gradmedic_worker.executors.ray_jobs import Job, RayJobs, RayUnreachable, Submission
from gradmedic_worker.tickets import read_token, ticket_of

SLOTS = 8
"""Trials that are submitted at the same time, unless `worker.slots` says otherwise; Ray lets wait what does not fit."""
POLL = 0.5
"""Seconds between questions about a job."""
UNREACHABLE_SECONDS = 60.0
"""For which a cluster may give no answer before its trials are given up."""
READY_SECONDS = 2.0
"""For which a cluster that has answered is believed to be there."""
STOP_SECONDS = 10.0
"""Within which a job that is let go of should have ended."""
LOG_SECONDS = 3.0
"""For which the log of a job that has ended is asked for again if it is refused, as it is where the node is gone."""


class RayExecutor:
    """Starts trials as jobs of a Ray cluster.

    Args:
        configuration: what may be run, and where the cluster is.
        client: of the service, with the worker's key: it makes the tickets good.
        environment: the worker's own; Ray's token may be in it.
        tell: prints a line.
    """

    name = "ray"

    def __init__(
        self,
        configuration: WorkerConfiguration,
        client: Client,
        *,
        environment: Mapping[str, str],
        tell: Callable[[str], None],
    ) -> None:
        if configuration.ray is None:
            raise ConfigurationError('worker.executor must be "ray", with a table [ray]')
        self._configuration = configuration
        self._ray = configuration.ray
        self._client = client
        self._tell = tell
        self._token = read_token(environment, self._ray.token_file)
        self._jobs = RayJobs(self._ray.address, self._token)
        self._answered_at: float | None = None
        self._is_missed = False

    @property
    def slots(self) -> int:
        """Return how many jobs there are at the same time, those that wait included."""
        return self._configuration.slots or SLOTS

    def prepare(self) -> None:
        """Ask the cluster for its version. Raises ConfigurationError where it refuses the token."""
        self._is_there()

    def fitting(self) -> list[str]:
        """Return all trainables, as placement is Ray's; none while the cluster does not answer."""
        return list(self._configuration.trainables) if self._is_there() else []

    def start(self, claimed: ClaimedTrial) -> RayTrial:
        """Submit a trial."""
        trainable = self._configuration.trainables[claimed.trainable]
        name = f"{claimed.trial_id}-{claimed.attempt}"
        submission = Submission(
            id=name,
            entrypoint=f"{self._ray.python} -m gradmedic_worker.node {name}",
            cpus=trainable.cpus,
            gpus=trainable.gpus,
            memory=trainable.memory,
        )
        pending = self._ray.pending_timeout

        def issue_ticket() -> None:
            self._client.work.issue_ticket(
                claimed.trial_id, claimed.attempt, ticket_of(self._token, name), pending + UNREACHABLE_SECONDS
            )

        waits_for = f"a place with {_resources(trainable)}"
        return RayTrial(self._jobs, submission, issue_ticket, pending_timeout=pending, waits_for=waits_for)

    def close(self) -> None:
        """Close the connections."""
        self._jobs.close()

    def _is_there(self) -> bool:
        now = time.monotonic()
        if self._answered_at is not None and now - self._answered_at < READY_SECONDS:
            return True
        try:
            version = self._jobs.check()
        except RayUnreachable as error:
            if not self._is_missed:
                self._tell(f"the Ray cluster does not answer, trying again: {error}")
            self._is_missed, self._answered_at = True, None
            return False
        if self._is_missed or self._answered_at is None:
            self._tell(f"Ray {version} at {self._ray.address}")
        self._is_missed, self._answered_at = False, now
        return True


class RayTrial:
    """A trial that is a job of a Ray cluster."""

    def __init__(
        self,
        jobs: RayJobs,
        submission: Submission,
        issue_ticket: Callable[[], None],
        *,
        pending_timeout: float,
        waits_for: str,
    ) -> None:
        self._jobs = jobs
        self._submission = submission
        self._issue_ticket = issue_ticket
        self._pending_timeout = pending_timeout
        self._waits_for = waits_for
        self._changed = threading.Condition()
        self._has_ticket = False
        self._is_closed = False
        self._is_stopping = False
        self._has_started = False
        self._told = LogState()
        self._end: TrialEnd | Lost | None = None
        self._thread = threading.Thread(target=self._attend, name=f"job {submission.id}", daemon=True)
        self._thread.start()

    @property
    def has_started(self) -> bool:
        """Whether Ray has found a place for it."""
        return self._has_started

    def wait(self, seconds: float) -> TrialEnd | Lost | None:
        """Wait for the end, at most so long; None if it has not come."""
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None, seconds)
            return self._end

    def output(self) -> str:
        """Return what it has printed, as far as its node has told."""
        return self._told.output

    def stop(self) -> None:
        """Ask it to end by itself; after a moment Ray kills it."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    def close(self) -> None:
        """End the job, if it has not ended; a cluster that cannot be told is not waited for, as the node finds out."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(STOP_SECONDS)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _attend(self) -> None:
        try:
            end = self._follow()
        except GradmedicError as error:
            end = Lost(str(error))
        except Exception as error:
            end = Lost(f"the worker failed on it: {error!r}")
        with self._changed:
            self._end = end or Lost("it was let go of")
            self._changed.notify_all()
        if end is None or isinstance(end, Lost):
            self._give_up()

    def _follow(self) -> TrialEnd | Lost | None:
        """See a job to its end; None if it is let go of first."""
        submitted_at = heard_at = time.monotonic()
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
                heard_at = time.monotonic()
            except RayUnreachable as error:
                if time.monotonic() - heard_at > UNREACHABLE_SECONDS:
                    return Lost(f"the Ray cluster was not reached for {UNREACHABLE_SECONDS:g} s: {error}")
                self._pause()
                continue
            if job is None:
                return Lost("Ray does not know its job any more: the head was restarted")
            if job.entrypoint != self._submission.entrypoint:
                return Lost(f"Ray has another job with the id {self._submission.id}")
            if job.has_ended:
                return self._end_of(job, is_stopped=is_stopped)
            if job.status == "PENDING":
                if is_stopped:
                    return Lost("it was stopped before it had a place")
                if time.monotonic() - submitted_at > self._pending_timeout:
                    return Lost(f"it waited longer than {self._pending_timeout:g} s for {self._waits_for}")
            else:
                self._has_started = True
                self._read_log()
                if self._told.end is not None:
                    return self._told.end
            self._pause()
        return None

    def _submit(self) -> None:
        try:
            if not self._has_ticket:  # of a job that has arrived it may be redeemed, though nobody answered
                self._issue_ticket()
        except GradmedicError as error:
            if is_retryable(error):
                raise RayUnreachable(f"the ticket could not be made good: {error}") from error
            raise
        self._has_ticket = True
        self._jobs.submit(self._submission)

    def _end_of(self, job: Job, *, is_stopped: bool) -> TrialEnd | Lost:
        """Return how a job ended: as its node told, else what Ray makes of it."""
        deadline = time.monotonic() + LOG_SECONDS
        while not self._read_log() and time.monotonic() < deadline and not self._is_closed:
            self._pause()
        if self._told.end is not None:
            return self._told.end
        if is_stopped:
            return TrialEnd(exit_code=None, reason=STOPPED)
        if job.status == "STOPPED":
            return Lost("somebody stopped its job with Ray's own tools")
        said = job.message if job.status == "FAILED" else "\n".join(self._told.others[-5:]) or "its log is empty"
        return Lost(f"its job {job.status.lower()}, but told no result: {said}")

    def _read_log(self) -> bool:
        """Read what the node told; False if it could not be read."""
        try:
            self._told = read_events(self._jobs.logs(self._submission.id))
        except RayUnreachable:
            return False
        return True

    def _give_up(self) -> None:
        """Have the job ended, and wait a little until it has; one that waits for a place ends when it gets one."""
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
            time.sleep(POLL / 5)

    def _pause(self) -> None:
        with self._changed:
            was_stopping = self._is_stopping
            self._changed.wait_for(lambda: self._is_closed or self._is_stopping != was_stopping, POLL)


def _resources(trainable: TrainableCommand) -> str:
    wanted = [f"{trainable.cpus} CPU{'s' if trainable.cpus > 1 else ''}"]
    if trainable.gpus:
        wanted.append(f"{trainable.gpus} GPU{'s' if trainable.gpus > 1 else ''}")
    return " and ".join(wanted)
