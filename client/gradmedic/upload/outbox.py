"""What is recorded and not acknowledged yet, in memory and on disk.

One idea: the journal has everything, memory has the newest of it. While the service keeps up, the disk is only
written to; when memory is full, the oldest steps are forgotten there and read from disk when their turn comes. Without
a disk to write to, memory is all there is, and healthy steps are dropped before others.

Entries are numbered without gaps as they come, so that whatever is between the last that was offered and the oldest in
memory is on disk, or was given up. What was offered once is in hand until it is acknowledged: the service may have it,
whatever was heard of it, so it is not given up any more, and what was given up is certain to be missing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Protocol

from gradmedic.protocol.runs import RunCreate
from gradmedic.recording.step import Entry, Rewind, Step
from gradmedic.upload.journal import Journal

logger = logging.getLogger("gradmedic")

_REWIND_BYTES = 100
_SHARE_OFFERED = 2
"""Half of the memory at most is in hand, but one entry at least."""
_NEVER = object()


class Described(Protocol):
    """Who knows what the run is."""

    def describe(self) -> RunCreate:
        """Return what the service should know of the run by now."""

    def description_key(self) -> object:
        """Return something cheap that differs when the description does."""


class Backlog:
    """Entries that the service has not acknowledged, oldest first. Not thread-safe: the sender locks.

    Args:
        max_bytes: of memory; 0 keeps everything on disk alone.
        described: says what the journal needs to know of the run.
        open_journal: begins the journal when the first entry comes; None keeps to memory.
    """

    def __init__(
        self, max_bytes: int, described: Described | None = None, open_journal: Callable[[], Journal] | None = None
    ) -> None:
        self._max_bytes = max_bytes
        self._described = described
        self._described_as: object = _NEVER
        self._open_journal = open_journal
        self._journal: Journal | None = None
        self._is_written = open_journal is not None
        self._memory: deque[tuple[int, Entry]] = deque()
        self._in_hand: deque[tuple[int, Entry]] = deque()
        self._bytes = 0  # of both
        self._newest = 0
        self._on_disk = 0  # number of the last entry that was written
        self._only_in_memory: set[int] = set()  # of those, what was given up on disk
        self._offered = 0  # number of the last entry that was in hand, or given up in front of the others
        self._acknowledged = 0
        self._appended_steps = self._offered_steps = 0
        self.dropped = 0
        """Steps that were given up for lack of room; none of them was ever offered."""

    def __len__(self) -> int:
        return self._newest - self._acknowledged

    @property
    def journal(self) -> Journal | None:
        """The journal, None if nothing was written to one."""
        return self._journal

    @property
    def newest(self) -> int:
        """Number of the newest entry; 0 before the first."""
        return self._newest

    @property
    def acknowledged(self) -> int:
        """Number of the last entry that the service has, or that was given up in front of the others."""
        return self._acknowledged

    def append(self, entry: Entry) -> int:
        """Append an entry and return its number; if that takes too much room, give up steps.

        The oldest healthy ones go first, others only after them.
        """
        self._newest += 1
        self._appended_steps += isinstance(entry, Step)
        self._memory.append((self._newest, entry))
        self._bytes += _nbytes(entry)
        self._write(entry)
        if self._bytes > self._max_bytes:
            self._make_room()
        return self._newest

    def front(self, count: int) -> list[tuple[int, Entry]]:
        """Return the oldest entries with their numbers, `count` at most, and keep them."""
        if len(self._in_hand) < count:
            size = sum(_nbytes(entry) for _, entry in self._in_hand)
            for number, entry in self._next(count - len(self._in_hand)):
                size += _nbytes(entry)
                if self._in_hand and size > self._max_bytes // _SHARE_OFFERED:
                    break
                if self._first_in_memory() == number:
                    self._memory.popleft()
                else:
                    self._bytes += _nbytes(entry)
                self._only_in_memory.discard(number)
                self._in_hand.append((number, entry))
                self._offered = number
                self._offered_steps += isinstance(entry, Step)
        return list(islice(self._in_hand, count))

    def acknowledge(self, number: int) -> None:
        """Remove the entries up to and including `number`, which were offered."""
        while self._in_hand and self._in_hand[0][0] <= number:
            self._bytes -= _nbytes(self._in_hand.popleft()[1])
        self._acknowledged = number if self._in_hand else self._offered
        if self._journal is not None:
            try:
                self._journal.acknowledge(number)
            except OSError as error:
                self._stop_writing(error)

    def clear(self) -> None:
        """Forget everything here; what is on disk stays there."""
        self._memory.clear()
        self._in_hand.clear()
        self._bytes = 0
        self._acknowledged = self._offered = self._newest

    def end(self, status: str) -> None:
        """Write how the run ended."""
        try:
            if (journal := self._described_journal()) is not None:
                journal.end(status)
        except OSError as error:
            self._stop_writing(error)

    def close(self) -> None:
        """Close the journal; what is written stays."""
        self._is_written = False
        if self._journal is not None:
            self._journal.close()

    def _next(self, count: int) -> list[tuple[int, Entry]]:
        """Return the oldest entries that are not in hand, `count` at most."""
        first = self._first_in_memory()
        if self._offered + 1 < first:
            found: list[tuple[int, Entry]] = []
            if self._journal is not None:
                try:
                    found = [each for each in self._journal.read(self._offered, count) if each[0] < first]
                except OSError as error:
                    logger.warning("gradmedic cannot read %s: %s", self._journal.folder, error)
            if found:
                return found
            # Whatever is neither in memory nor was ever offered is lost, whether it was given up or cannot be read.
            in_memory = sum(isinstance(entry, Step) for _, entry in self._memory)
            self.dropped = self._appended_steps - self._offered_steps - in_memory
            self._offered = first - 1
            if not self._in_hand:
                self._acknowledged = self._offered
        return list(islice(self._memory, count))

    def _first_in_memory(self) -> int:
        return self._memory[0][0] if self._memory else self._newest + 1

    def _described_journal(self) -> Journal | None:
        """Return the journal to write to, with a description that is not out of date."""
        if not self._is_written:
            return None
        if self._journal is None and self._open_journal is not None:
            self._journal = self._open_journal()
        if self._journal is not None and self._described is not None:
            key = self._described.description_key()
            if key != self._described_as:
                self._journal.describe(self._described.describe())
                self._described_as = key
        return self._journal

    def _write(self, entry: Entry) -> None:
        try:
            if (journal := self._described_journal()) is not None:
                try:
                    journal.append(self._newest, entry, offered=self._offered)
                    self._on_disk = self._newest
                finally:
                    first = self._first_in_memory()
                    in_memory = [number for number in journal.given_up if number >= first]
                    self.dropped += len(journal.given_up) - len(in_memory)
                    self._only_in_memory.update(in_memory)
                    journal.given_up.clear()
        except OSError as error:
            self._stop_writing(error)

    def _stop_writing(self, error: OSError) -> None:
        """Go on in memory: the disk is full, or not there."""
        if self._is_written:
            self._is_written = False
            logger.warning("gradmedic cannot keep steps on disk any more, they wait in memory only: %s", error)

    def _make_room(self) -> None:
        # An eighth more than needed, so that a full memory is not searched at every step.
        target = self._max_bytes - self._max_bytes // 8
        while self._bytes > target and self._first_in_memory() <= self._on_disk:
            number, entry = self._memory.popleft()
            self._bytes -= _nbytes(entry)
            self.dropped += number in self._only_in_memory
            self._only_in_memory.discard(number)
        for drops_nonfinite in (False, True):
            if self._bytes <= target or not self._memory:
                return
            kept: deque[tuple[int, Entry]] = deque()
            newest = self._memory.pop()  # stays
            for number, entry in self._memory:
                if self._bytes > target and isinstance(entry, Step) and (drops_nonfinite or entry.is_finite):
                    self._bytes -= _nbytes(entry)
                    self.dropped += 1
                else:
                    kept.append((number, entry))
            kept.append(newest)
            self._memory = kept


def _nbytes(entry: Entry) -> int:
    return _REWIND_BYTES if isinstance(entry, Rewind) else entry.nbytes
