"""Records the steps of a run and carries them to the service, on threads of their own.

One idea: two threads, each of which waits for one kind of thing. The recorder waits for the training: it makes steps
of what `log()` left, reads what was on its way from a device, and puts them into the backlog, on disk too. The sender
waits for the service: every attempt offers the front of the backlog, where an entry stays until it is acknowledged. So
all that can go wrong - service away, slow, restarted, full - is a delay before the next attempt.

The training thread only ever appends to a `deque`, and takes no lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol
from uuid import UUID

from gradmedic.exceptions import ApiError, ConfigurationError, ConflictError, GradmedicError, NotFoundError
from gradmedic.protocol.runs import RunCreate, Training
from gradmedic.protocol.steps import AppendResult
from gradmedic.recording.spike_detector import SpikeDetector
from gradmedic.recording.step import Entry, Rewind, Step
from gradmedic.transport.http import Service, is_retryable, retry_delay
from gradmedic.upload.delivery import BLOCK_STEPS, Delivery
from gradmedic.upload.journal import Journal
from gradmedic.upload.outbox import Backlog, Described
from gradmedic.upload.replay import Replay

logger = logging.getLogger("gradmedic")

_PAUSE = 0.02
"""Seconds after which the recorder looks again whether there is something: to be woken would cost the training a system
call. An explosion is announced that much later."""
_LONGEST_PAUSE = 0.2
"""Where nothing comes for a while, it looks less often."""
_LONGEST_DELAY_AT_END = 2.0
"""Seconds between attempts while somebody waits for the run's end, unless the service asks for more."""
_LEAST_TO_RECORD = 5.0
"""Seconds that steps may take to reach the disk at the end, however short the patience: else they would be lost."""
_DRAFT_BYTES = 1_000
"""About what a draft takes at least."""
_FEWEST_DRAFTS = 10_000
"""Drafts that there is room for at any rate: a burst of small steps, while the recorder writes some to disk."""


Draft = tuple[Any, ...]
"""What `log()` left of a step, as its observer knows it: a tuple costs the training least."""


class Observer(Described, Protocol):
    """Who wants to know what becomes of the steps; all is called on the threads here."""

    def complete(self, draft: Draft) -> Step | None:
        """Make a step of a draft, waiting for a device if need be; None if it cannot be recorded."""

    def take_spike(self) -> None:
        """A step jumped."""

    def take_result(self, result: AppendResult) -> None:
        """The service answered to a block."""


class Sender:
    """Records and sends a run's steps and its end.

    Args:
        service: where to; None where nothing is sent, but kept on disk.
        run_id: of the run.
        observer: of what happens.
        flush_interval: seconds that a step waits for others at most.
        max_queue_bytes: memory for steps that are not acknowledged.
        open_journal: begins the journal; None keeps to memory.
        leftovers: returns what other processes recorded of this run and did not send.
    """

    def __init__(
        self,
        *,
        service: Service | None,
        run_id: UUID,
        observer: Observer,
        flush_interval: float,
        max_queue_bytes: int,
        open_journal: Callable[[], Journal] | None = None,
        leftovers: Callable[[], list[Replay]] = list,
    ) -> None:
        self._service = service
        self._observer = observer
        self._flush_interval = flush_interval
        self._most_drafts = max(_FEWEST_DRAFTS, max_queue_bytes // _DRAFT_BYTES)
        self._inbox: deque[Draft | Rewind] = deque()
        self._put = 0  # drafts so far; written by the training thread
        self._overflow = 0
        self._is_pressed = threading.Event()  # somebody waits: no pauses

        self._changed = threading.Condition()  # guards what follows
        self._backlog = Backlog(max_queue_bytes if service is not None else 0, self, open_journal)
        self._threads: list[threading.Thread] = []
        self._recorded = 0
        self._due_at = 0.0  # when the oldest step has waited long enough; counts while there is one
        self._urgent = 0  # number of the last entry that should not wait
        self._waiting_flushes = 0
        self._final_status: str | None = None  # what remains to be said of the run's end
        self._retry_at = 0.0
        self._failures = 0  # in a row
        self._is_refused = False
        self._is_denied = False  # for now: the last attempt was refused, and not because of what it carried
        self._is_obsolete = False  # the run was deleted, or went on elsewhere: nobody wants what was not sent
        self._is_over = False  # nothing will be sent any more

        self._jumps = SpikeDetector()  # of the recorder alone
        # The sender's thread alone uses what follows.
        self._leftovers: Callable[[], list[Replay]] | None = leftovers
        self._replays: list[Replay] = []
        self._delivery = Delivery(
            service or _nowhere(), run_id, on_result=observer.take_result, journal=lambda: self._backlog.journal
        )
        self._reported_drops = 0
        self._was_denied = False

    def put(self, draft: Draft | Rewind) -> None:
        """Take a step to be sent; returns at once."""
        if self._is_over:
            return
        if len(self._inbox) > self._most_drafts:  # the recorder hangs, on a disk most likely
            self._overflow += 1
            return
        self._put += 1
        self._inbox.append(draft)
        if not self._threads:
            self._start()

    def flush(self, timeout: float) -> bool:
        """Wait until every step so far is acknowledged, at most `timeout` seconds; return whether it is."""
        self._start()
        with self._changed:
            wanted = self._put
            self._waiting_flushes += 1
            self._retry_at, self._is_denied = 0.0, False
            self._press()
            try:
                self._changed.wait_for(lambda: self._is_over or self._is_denied or self._is_delivered(wanted), timeout)
            finally:
                self._waiting_flushes -= 1
            return self._is_delivered(wanted)

    def close(self, status: str, timeout: float) -> bool:
        """Send what is left and the run's final status, within `timeout` seconds; return whether that succeeded."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(RuntimeError):  # the interpreter ends, and starts no threads any more
            self._start()
        with self._changed:
            wanted, unrecorded = self._put, 0
            self._press()
            if not self._is_over:
                self._changed.wait_for(
                    lambda: self._is_over or self._recorded >= wanted, max(timeout, _LEAST_TO_RECORD)
                )
                unrecorded = wanted - self._recorded
                self._backlog.end(status)
                self._final_status = status
                self._retry_at = 0.0
                if self._service is None:
                    self._is_over = True
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_over, max(0.0, deadline - time.monotonic()))
            succeeded = self._is_over and not self._is_refused
            unsent, journal = len(self._backlog), self._backlog.journal
            self._is_over = True
            self._press()
            self._backlog.close()
            if journal is not None and (self._is_obsolete or (succeeded and self._service is not None)):
                journal.delete()
        if not succeeded and self._service is not None:
            self._say_what_remains(unsent, journal, timeout)
        if unrecorded:
            logger.warning("gradmedic could not record the last %d steps in time, they are lost", unrecorded)
        return succeeded

    def abandon(self) -> None:
        """Forget everything without a word: this process is a fork, and its parent goes on."""
        self._changed = threading.Condition()  # another thread of the parent may have held the old lock
        self._is_pressed = threading.Event()
        self._is_over = True
        self._inbox.clear()
        self._backlog.close()

    @property
    def dropped(self) -> int:
        """Steps that were given up so far."""
        return self._backlog.dropped + self._overflow

    @property
    def journal(self) -> Journal | None:
        """The journal of this session, None if nothing was written to one."""
        return self._backlog.journal

    def describe(self) -> RunCreate:
        """Return what the observer says of the run, and how many steps were given up; see `Described`."""
        description = self._observer.describe()
        if not self.dropped:
            return description
        training = description.training or Training()
        return dataclasses.replace(description, training=dataclasses.replace(training, dropped_steps=self.dropped))

    def description_key(self) -> object:
        """Return what differs when `describe` does; see `Described`."""
        return self._observer.description_key(), self.dropped

    # --- the threads --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._threads or self._is_over:
            return
        works = [("recorder", self._record)] + ([("sender", self._send)] if self._service is not None else [])
        self._threads = [threading.Thread(target=work, name=f"gradmedic-{name}", daemon=True) for name, work in works]
        for thread in self._threads:
            thread.start()

    def _press(self) -> None:
        self._is_pressed.set()
        self._changed.notify_all()

    def _record(self) -> None:
        try:
            pause = _PAUSE
            while not self._is_over:
                pause = _PAUSE if self._inbox else min(1.5 * pause, _LONGEST_PAUSE)
                while self._inbox:
                    self._record_one(self._inbox.popleft())
                with self._changed:
                    if self._is_pressed.is_set():
                        self._is_pressed.clear()
                        self._changed.notify_all()
                self._is_pressed.wait(pause)
        except Exception:
            self._break_off("gradmedic stopped recording because of an error of its own; training goes on")

    def _record_one(self, draft: Draft | Rewind) -> None:
        entry: Entry | None = draft if isinstance(draft, Rewind) else self._observer.complete(draft)
        is_urgent = isinstance(entry, Step) and self._jumps.update(entry)
        if is_urgent:
            self._observer.take_spike()
        with self._changed:
            self._recorded += 1
            if entry is None or self._is_over:
                return
            number = self._backlog.append(entry)
            if is_urgent:
                self._urgent = number
            if len(self._backlog) == 1:
                self._due_at = time.monotonic() + self._flush_interval
            if is_urgent or len(self._backlog) in (1, BLOCK_STEPS):
                self._changed.notify_all()  # otherwise the sender knows how long to wait

    def _send(self) -> None:
        try:
            while self._wait_until_due():
                self._make_attempt()
        except Exception:
            self._break_off("gradmedic stopped sending because of an error of its own; training goes on")
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()
            if self._service is not None:
                self._service.close()

    def _break_off(self, message: str) -> None:
        self._is_refused = True
        logger.exception(message)
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _wait_until_due(self) -> bool:
        """Wait until there is something to do; return False when there never will be."""
        with self._changed:
            while not self._is_over:
                seconds = self._seconds_until_due()
                if seconds is not None and seconds <= 0:
                    return True
                self._changed.wait(seconds)
            return False

    def _seconds_until_due(self) -> float | None:
        now = time.monotonic()
        is_waited_for = self._final_status is not None or (
            self._waiting_flushes > 0 and self._recorded >= self._put and not self._is_delivered(self._put)
        )
        is_urgent = self._urgent > self._backlog.acknowledged
        if is_waited_for or is_urgent or len(self._backlog) >= BLOCK_STEPS:
            due_at = now
        elif len(self._backlog):
            due_at = self._due_at
        else:
            return None
        return max(due_at, self._retry_at) - now

    def _is_delivered(self, wanted: int) -> bool:
        is_known = self._service is None or (self._delivery.is_registered and not len(self._backlog))
        return self._recorded >= wanted and is_known and not self._is_refused

    def _make_attempt(self) -> None:
        """Do the next thing that is due, once. A failure only sets when to try again, or that it is over."""
        is_at_end = self._final_status is not None  # an attempt from before the end is not the last one
        try:
            self._advance()
        except GradmedicError as error:
            self._take_failure(error, is_at_end=is_at_end)
        else:
            with self._changed:
                recovered, self._failures, self._is_denied = self._failures > 0, 0, False
                self._changed.notify_all()
            if recovered and self._service is not None:
                logger.warning("gradmedic reaches %s again", self._service.base_url)
        self._report_drops()

    def _advance(self) -> None:
        if self._leftovers is not None:
            self._replays, self._leftovers = self._leftovers(), None
        if self._replays:
            if self._replays[0].advance():
                self._replays.pop(0).close()
            return
        with self._changed:
            waiting = self._backlog.front(self._delivery.block_steps)
            status = self._final_status
        self._delivery.prepare(self.describe())  # after the steps were looked at, so that it has all of their layers
        if waiting:
            number = self._delivery.send(waiting, is_repeated=self._failures > 0)
            if number is not None:
                with self._changed:
                    self._backlog.acknowledge(number)
                    self._due_at = time.monotonic() + self._flush_interval
        elif status is not None:
            self._delivery.end(status)
            with self._changed:
                self._is_over = True

    def _take_failure(self, error: GradmedicError, *, is_at_end: bool) -> None:
        # Before the service knew the run, such answers speak of the key or the project, and not of the run.
        is_obsolete = self._delivery.is_registered and isinstance(error, (NotFoundError, ConflictError))
        is_hopeless = not is_retryable(error)
        is_refusal = is_hopeless and isinstance(error, (ApiError, ConfigurationError))
        with self._changed:
            if is_obsolete or (is_hopeless and is_at_end):
                self._is_refused = self._is_over = True
                unsent = len(self._backlog)
                if is_obsolete:
                    self._is_obsolete = True
                    self._backlog.clear()
            else:  # a key or a URL may be put right while training goes on, but nobody waits for that
                self._is_denied = is_refusal
                delay = retry_delay(error, self._failures)
                if self._final_status is not None and getattr(error, "retry_after", None) is None:
                    delay = min(delay, _LONGEST_DELAY_AT_END)
                self._retry_at = time.monotonic() + delay
                self._failures += 1
            self._changed.notify_all()
        if self._is_refused and not self._was_denied:
            logger.error("gradmedic stopped sending (%d steps not sent), training goes on: %s", unsent, error)
        elif is_refusal and not self._was_denied:
            self._was_denied = True
            logger.error(
                "gradmedic is refused by %s and keeps the steps, until it is let in or for `gradmedic sync`; "
                "training goes on: %s",
                "" if self._service is None else self._service.base_url, error,
            )  # fmt: skip
        elif not is_refusal and self._failures == 1:
            logger.warning("gradmedic keeps the steps and tries again, training goes on: %s", error)

    def _report_drops(self) -> None:
        dropped = self.dropped
        if dropped > self._reported_drops:
            self._reported_drops = dropped
            logger.warning("gradmedic dropped %d steps so far: no room is left, and the service is away", dropped)

    def _say_what_remains(self, unsent: int, journal: Journal | None, timeout: float) -> None:
        base_url = "" if self._service is None else self._service.base_url
        if journal is not None and journal.folder.is_dir():
            logger.warning(
                "gradmedic could not tell %s of the run's end within %g s; %d steps were not sent. They are kept: "
                "send them with `gradmedic sync %s`",
                base_url, timeout, unsent, journal.folder.parent.parent,
            )  # fmt: skip
        elif not self._is_refused:
            logger.warning(
                "gradmedic could not tell %s of the run's end within %g s; %d steps were not sent",
                base_url, timeout, unsent,
            )  # fmt: skip


def _nowhere() -> Service:
    from gradmedic.configuration import resolve_connection

    return Service(resolve_connection("http://127.0.0.1"))
