"""The uploader's thread: it sends what is in the outbox, block by block, and the run's final status.

Each attempt sends the oldest entries. They stay in the outbox until they are acknowledged. So every failure - the
service is slow, full, restarting or out of reach - is only a delay before the next attempt.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from enum import Enum
from uuid import UUID

from gradmedic.exceptions import (
    ApiError,
    ConfigurationError,
    ConflictError,
    GradmedicError,
    InvalidRequestError,
    NotFoundError,
)
from gradmedic.recording.description import RunDescriber, RunDescription
from gradmedic.recording.step import Entry
from gradmedic.transport.http import Service, is_retryable, retry_delay
from gradmedic.upload.answers import AnswerReader
from gradmedic.upload.delivery import BLOCK_STEPS, Delivery
from gradmedic.upload.journal import Journal
from gradmedic.upload.outbox import Outbox
from gradmedic.upload.replay import FoundSessions, Replay

logger = logging.getLogger("gradmedic")

_LONGEST_DELAY_AT_END = 2.0
"""Seconds between attempts while `finish()` waits, unless the service asks for more."""


class UploadState(Enum):
    """What the uploader does with its entries."""

    UPLOADING = "uploading"
    """It sends them, or waits until they are due."""
    DENIED = "denied"
    """The last attempt was refused because of the key, the project or the URL. It keeps them and tries again."""
    DELIVERED = "delivered"
    """The service has everything, the final status included; or the run is offline and everything is on disk."""
    REFUSED = "refused"
    """The final attempt was refused. They stay on disk."""
    OBSOLETE = "obsolete"
    """The run was deleted, or went on elsewhere. They are deleted."""
    FAILED = "failed"
    """A thread had an error of its own. They stay on disk."""
    CLOSED = "closed"
    """`finish()` did not wait any longer, or this process is a fork. They stay on disk."""

    @property
    def is_final(self) -> bool:
        """Whether nothing is sent any more."""
        return self not in (UploadState.UPLOADING, UploadState.DENIED)

    @property
    def is_refusal(self) -> bool:
        """Whether the service will never have what is left."""
        return self in (UploadState.REFUSED, UploadState.OBSOLETE, UploadState.FAILED)


class Uploader:
    """Keeps the recorded entries of a run and sends them on a thread of its own.

    Args:
        service: receives them; None keeps them on disk and sends nothing.
        run_id: id of the run.
        describer: describes the run.
        answers: reads the service's answers.
        flush_interval: seconds that a step waits for others at most.
        max_queue_bytes: largest number of bytes in memory for entries that are not acknowledged.
        open_journal: function that opens the journal; None keeps to memory.
        find_sessions: function that returns what other processes recorded of this run and did not send.
    """

    def __init__(
        self,
        *,
        service: Service | None,
        run_id: UUID,
        describer: RunDescriber,
        answers: AnswerReader,
        flush_interval: float,
        max_queue_bytes: int,
        open_journal: Callable[[], Journal] | None = None,
        find_sessions: Callable[[], FoundSessions] = FoundSessions,
    ) -> None:
        self._service = service
        self._describer = describer
        self._answers = answers
        self._flush_interval = flush_interval
        self._thread: threading.Thread | None = None

        self._changed = threading.Condition()  # guards what follows
        self._state = UploadState.UPLOADING
        self._outbox = Outbox(max_queue_bytes if service is not None else 0, open_journal)
        self._due_at = 0.0  # when the oldest entry has waited long enough
        self._last_urgent = 0  # number of the last entry that must not wait
        self._waiting_flushes = 0
        self._final_status: str | None = None
        self._retry_at = 0.0
        self._failures = 0  # in a row
        self._has_reached = False  # whether the service has answered

        # The uploader's thread alone uses what follows.
        self._delivery = None if service is None else Delivery(service, run_id, self._outbox)
        self._find_sessions: Callable[[], FoundSessions] | None = find_sessions
        self._replays: list[Replay] = []
        self._reported_drops = 0
        self._refused_steps = 0
        self._has_reported_denial = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing is sent any more."""
        return self._state.is_final

    @property
    def journal(self) -> Journal | None:
        """The journal of this session, None if nothing was written to one."""
        return self._outbox.journal

    def start(self) -> None:
        """Start the thread, unless it runs or has nothing to do."""
        if self._thread is None and self._service is not None and not self.is_closed:
            thread = threading.Thread(target=self._run, name="gradmedic-uploader", daemon=True)
            thread.start()
            self._thread = thread

    def append(self, entry: Entry, *, is_urgent: bool) -> None:
        """Put an entry into the outbox. An urgent one is sent at once, with all that come before it."""
        with self._changed:
            if self.is_closed:
                return
            number = self._outbox.append(entry, self._describe())
            if is_urgent:
                self._last_urgent = number
            if len(self._outbox) == 1:
                self._due_at = time.monotonic() + self._flush_interval
            if is_urgent or len(self._outbox) in (1, BLOCK_STEPS):  # at others the thread has no reason to wake up
                self._changed.notify_all()

    def add_dropped(self, steps: int) -> None:
        """Count steps that were dropped before they were recorded."""
        with self._changed:
            self._outbox.add_dropped(steps)

    def fail(self) -> None:
        """Send nothing any more, because of an error in a thread."""
        with self._changed:
            self._enter(UploadState.FAILED)

    def flush(self, timeout: float) -> bool:
        """Wait until every entry is acknowledged, at most `timeout` seconds; return whether it is."""
        self.start()
        with self._changed:
            self._waiting_flushes += 1
            self._retry_at = 0.0
            if self._state is UploadState.DENIED:
                self._state = UploadState.UPLOADING
            self._changed.notify_all()
            try:
                self._changed.wait_for(
                    lambda: self._state is not UploadState.UPLOADING or self._is_delivered(), timeout
                )
            finally:
                self._waiting_flushes -= 1
            return self._is_delivered()

    def close(self, status: str, timeout: float, unreached_timeout: float | None = None) -> bool:
        """Send what is left and the final status within `timeout` seconds; return whether that succeeded.

        Args:
            status: final status of the run.
            timeout: seconds that this may take.
            unreached_timeout: the same from the first failed attempt on, if the service was never reached; None means
                `timeout`.
        """
        with contextlib.suppress(RuntimeError):  # the interpreter ends and starts no threads any more
            self.start()
        if self._thread is None:
            timeout = 0.0
        with self._changed:
            if not self.is_closed:
                self._outbox.write_final_status(status, self._describe())
                self._final_status = status
                self._retry_at = 0.0
                if self._service is None:
                    self._state = UploadState.DELIVERED
                self._changed.notify_all()
            self._wait_until_closed(timeout, unreached_timeout)
            self._enter(UploadState.CLOSED)
            self._report_drops()
            unsent, journal = self._outbox.unsent_steps, self._outbox.journal
            self._outbox.close()
            is_delivered = self._state is UploadState.DELIVERED
            if journal is not None and (
                self._state is UploadState.OBSOLETE or (is_delivered and self._service is not None)
            ):
                journal.delete()
        if self._refused_steps:
            logger.warning("gradmedic: the service refused %d steps of this run, they are lost", self._refused_steps)
        if not is_delivered and self._service is not None:
            self._warn_of_unsent(unsent, journal, self._service)
        return is_delivered

    def abandon(self) -> None:
        """Forget everything: this process is a fork, and its parent goes on."""
        self._changed = threading.Condition()  # another thread of the parent may have held the old lock
        self._describer.reset_lock()
        self._state = UploadState.CLOSED
        self._outbox.close()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._wait_until_due():
                self._make_attempt()
        except Exception:
            logger.exception("gradmedic stopped sending because of an error of its own; training goes on")
            self.fail()
        finally:
            if self._service is not None:
                self._service.close()

    def _enter(self, state: UploadState) -> None:
        """Enter a state, unless the present one is final. The caller holds the lock."""
        if not self.is_closed:
            self._state = state
        self._changed.notify_all()

    def _wait_until_due(self) -> bool:
        """Wait until there is something to do; return False when there never will be."""
        with self._changed:
            while not self.is_closed:
                seconds = self._seconds_until_due()
                if seconds is not None and seconds <= 0:
                    return True
                self._changed.wait(seconds)
            return False

    def _wait_until_closed(self, timeout: float, unreached_timeout: float | None) -> None:
        """Wait until all is sent; not so long if every attempt so far has failed to reach the service."""
        deadline = time.monotonic() + timeout
        if unreached_timeout is not None:
            self._changed.wait_for(lambda: self.is_closed or self._has_reached or self._failures > 0, timeout)
            rest = min(unreached_timeout, deadline - time.monotonic())
            if not self._has_reached and not self._changed.wait_for(lambda: self.is_closed or self._has_reached, rest):
                return
        self._changed.wait_for(lambda: self.is_closed, deadline - time.monotonic())

    def _seconds_until_due(self) -> float | None:
        now = time.monotonic()
        is_waited_for = self._final_status is not None or (self._waiting_flushes > 0 and not self._is_delivered())
        is_urgent = self._last_urgent > self._outbox.last_acknowledged
        if is_waited_for or is_urgent or len(self._outbox) >= BLOCK_STEPS:
            due_at = now
        elif len(self._outbox):
            due_at = self._due_at
        else:
            return None
        return max(due_at, self._retry_at) - now

    def _is_delivered(self) -> bool:
        is_known = self._delivery is None or (self._delivery.is_registered and not len(self._outbox))
        return is_known and not self._state.is_refusal

    def _describe(self) -> RunDescription:
        return self._describer.current(self._outbox.dropped)

    def _make_attempt(self) -> None:
        """Do the next thing that is due, once."""
        is_final_attempt = self._final_status is not None  # at its start: the status may come during the attempt
        try:
            self._send_next()
        except GradmedicError as error:
            self._handle_failure(error, is_final_attempt=is_final_attempt)
        else:
            with self._changed:
                has_recovered, self._failures = self._failures > 0, 0
                self._has_reached = True
                self._enter(UploadState.UPLOADING)
            if has_recovered and self._service is not None:
                logger.warning("gradmedic reaches %s again", self._service.base_url)
        self._report_drops()

    def _send_next(self) -> None:
        if self._delivery is None:
            return
        if self._find_sessions is not None:
            find_sessions, self._find_sessions = self._find_sessions, None
            self._replays = _find_replays(find_sessions)
        if self._replays:
            self._send_next_of(self._replays[0])
            return
        with self._changed:
            entries = self._outbox.read_oldest(self._delivery.block_steps)
            status = self._final_status
            description = self._describe()  # after the entries, so that it has all of their layers
        self._delivery.prepare(description)
        if entries:
            result = self._delivery.send(entries, is_repeated=self._failures > 0)
            self._refused_steps += result.refused_steps
            if result.answer is not None:
                self._answers.read(result.answer)
            if result.rewind is not None:
                self._answers.read_rewind(result.rewind)
            if result.last_number is not None:
                with self._changed:
                    self._outbox.acknowledge(result.last_number)
                    self._due_at = time.monotonic() + self._flush_interval
        elif status is not None:
            self._delivery.send_final_status(status)
            with self._changed:
                self._enter(UploadState.DELIVERED)

    def _send_next_of(self, replay: Replay) -> None:
        """Send the next block of another process's session. What cannot be sent of it does not stop this run."""
        try:
            if not replay.send_next():
                return
            replay.delete()
            if replay.damage:
                logger.warning("gradmedic: %s", replay.describe_damage())
        except (InvalidRequestError, OSError) as error:
            replay.release()
            logger.warning(
                "gradmedic keeps %d steps of an earlier process of run %s, which cannot be sent: %s",
                replay.remaining, replay.run_id, error,
            )  # fmt: skip
        self._replays.remove(replay)

    def _handle_failure(self, error: GradmedicError, *, is_final_attempt: bool) -> None:
        """Set the time of the next attempt, or end. Log the first failure of its kind."""
        # Before the service has the run, such a refusal is one of the key or the project.
        is_registered = self._delivery is not None and self._delivery.is_registered
        is_obsolete = is_registered and isinstance(error, (NotFoundError, ConflictError))
        is_permanent = not is_retryable(error)
        is_denial = is_permanent and isinstance(error, (ApiError, ConfigurationError))
        with self._changed:
            unsent = self._outbox.unsent_steps
            self._has_reached = self._has_reached or getattr(error, "status", 0) is not None
            if is_obsolete or (is_permanent and is_final_attempt):
                self._enter(UploadState.OBSOLETE if is_obsolete else UploadState.REFUSED)
                if is_obsolete:
                    self._outbox.clear()
            else:  # a key or a URL may be corrected while training goes on
                self._enter(UploadState.DENIED if is_denial else UploadState.UPLOADING)
                delay = retry_delay(error, self._failures)
                if self._final_status is not None and getattr(error, "retry_after", None) is None:
                    delay = min(delay, _LONGEST_DELAY_AT_END)
                self._retry_at = time.monotonic() + delay
                self._failures += 1
            state = self._state
        if state.is_refusal and not self._has_reported_denial:
            logger.error("gradmedic stopped sending (%d steps not sent), training goes on: %s", unsent, error)
        elif is_denial and not self._has_reported_denial:
            self._has_reported_denial = True
            logger.error(
                "gradmedic is refused by %s and keeps the steps: it tries again, and at the end they are left for "
                "`gradmedic sync`; training goes on: %s",
                "" if self._service is None else self._service.base_url, error,
            )  # fmt: skip
        elif not is_denial and self._failures == 1:
            logger.warning("gradmedic keeps the steps and tries again, training goes on: %s", error)

    def _report_drops(self) -> None:
        dropped = self._outbox.dropped
        if dropped > self._reported_drops:
            self._reported_drops = dropped
            logger.warning("gradmedic dropped %d steps so far, because no room is left to keep them", dropped)

    def _warn_of_unsent(self, unsent: int, journal: Journal | None, service: Service) -> None:
        if journal is not None and journal.folder.is_dir():
            logger.warning(
                "gradmedic could not send the end of the run to %s in time; %d steps were not sent. They are kept: "
                "send them with `gradmedic sync %s`",
                service.base_url, unsent, journal.folder.parent.parent,
            )  # fmt: skip
        elif not self._state.is_refusal:
            logger.warning(
                "gradmedic could not send the end of the run to %s in time; %d steps were not sent",
                service.base_url, unsent,
            )  # fmt: skip


def _find_replays(find_sessions: Callable[[], FoundSessions]) -> list[Replay]:
    """Return the sessions of other processes. Log those that cannot be read."""
    try:
        found = find_sessions()
    except OSError as error:
        logger.warning("gradmedic cannot read what earlier processes did not send: %s", error)
        return []
    for session in found.unreadable:
        logger.warning("gradmedic: %s", session)
    return found.replays
