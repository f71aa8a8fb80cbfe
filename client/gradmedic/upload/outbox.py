"""The entries that are recorded and not acknowledged yet, in memory and on disk.

The journal on disk has all of them, memory has the newest. While the service keeps up, the disk is only written to.
When memory is full, the oldest entries leave it and are read from disk when their turn comes. Without a disk, memory is
all there is, and steps whose numbers are all finite are dropped before others.

Entries are numbered without gaps in the order in which they are appended. An entry is in flight from the first attempt
to send it until it is acknowledged. It is not dropped then, because the service may already have it. So the service
certainly lacks every step that is counted as dropped.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from itertools import islice

from gradmedic.recording.description import RunDescription
from gradmedic.recording.step import Entry, Rewind, Step
from gradmedic.upload.journal import Journal, Position

logger = logging.getLogger("gradmedic")

_REWIND_BYTES = 100
"""About the memory that a rewind takes."""
_IN_FLIGHT_SHARE = 2
"""Entries in flight take at most the whole memory divided by this number. One entry may always be in flight."""


class Outbox:
    """The entries of one run that the service has not acknowledged, oldest first. Not thread-safe: its owner locks.

    Args:
        max_bytes: largest number of bytes in memory; 0 keeps everything on disk alone.
        open_journal: function that opens the journal when the first entry comes; None keeps to memory.
    """

    def __init__(self, max_bytes: int, open_journal: Callable[[], Journal] | None = None) -> None:
        self._max_bytes = max_bytes
        self._open_journal = open_journal
        self._journal: Journal | None = None
        self._is_writing = open_journal is not None
        self._written_version: int | None = None
        self._memory: deque[tuple[int, Entry]] = deque()
        self._in_flight: deque[tuple[int, Entry]] = deque()
        self._bytes = 0  # of the entries in memory and in flight
        self._last_number = 0
        self._last_on_disk = 0
        self._dropped_on_disk: set[int] = set()  # numbers of steps that only memory has
        self._last_in_flight = 0  # or dropped in front of the others
        self._last_acknowledged = 0
        self._appended_steps = self._sent_steps = 0
        self._dropped = 0
        self._dropped_before = 0
        self._must_count_dropped = False  # something on disk could not be read

    def __len__(self) -> int:
        return self._last_number - self._last_acknowledged

    @property
    def journal(self) -> Journal | None:
        """The journal, None if nothing was written to one."""
        return self._journal

    @property
    def last_acknowledged(self) -> int:
        """Number of the last entry that the service has, or that was dropped in front of the others."""
        return self._last_acknowledged

    @property
    def dropped(self) -> int:
        """Number of steps that were dropped for lack of room. None of them was ever in flight."""
        return self._dropped + self._dropped_before

    @property
    def unsent_steps(self) -> int:
        """Number of steps that are not acknowledged and were not dropped."""
        in_flight = sum(isinstance(entry, Step) for _, entry in self._in_flight)
        return self._appended_steps - self._sent_steps - self._dropped + in_flight if len(self) else 0

    @property
    def position(self) -> Position:
        """How far the service has acknowledged the journal."""
        return Position() if self._journal is None else self._journal.position

    def save_position(self, **changes: int) -> None:
        """Write a new position to the journal, if there is one; see `Journal.save_position`."""
        if self._journal is not None:
            self._journal.save_position(**changes)

    def append(self, entry: Entry, description: RunDescription | None = None) -> int:
        """Append an entry and return its number. If it takes too much room, drop the oldest steps, finite ones first.

        Args:
            entry: a step or a rewind.
            description: description of the run, with all layers of the step; None leaves it out of the journal.
        """
        self._last_number += 1
        self._appended_steps += isinstance(entry, Step)
        self._memory.append((self._last_number, entry))
        self._bytes += _nbytes(entry)
        self._write(entry, description)
        if self._bytes > self._max_bytes:
            self._make_room()
        return self._last_number

    def add_dropped(self, steps: int) -> None:
        """Count steps that were dropped before they came here."""
        self._dropped_before += steps

    def read_oldest(self, count: int) -> list[tuple[int, Entry]]:
        """Return the oldest entries with their numbers, at most `count`. They are in flight until acknowledged."""
        if len(self._in_flight) < count:
            size = sum(_nbytes(entry) for _, entry in self._in_flight)
            for number, entry in self._read_next(count - len(self._in_flight)):
                size += _nbytes(entry)
                if self._in_flight and size > self._max_bytes // _IN_FLIGHT_SHARE:
                    break
                if self._first_in_memory() == number:
                    self._memory.popleft()
                else:
                    self._bytes += _nbytes(entry)
                self._dropped_on_disk.discard(number)
                self._in_flight.append((number, entry))
                self._last_in_flight = number
                self._sent_steps += isinstance(entry, Step)
        return list(islice(self._in_flight, count))

    def acknowledge(self, number: int) -> None:
        """Remove the entries in flight up to and including `number`."""
        while self._in_flight and self._in_flight[0][0] <= number:
            self._bytes -= _nbytes(self._in_flight.popleft()[1])
        self._last_acknowledged = number if self._in_flight else self._last_in_flight
        if self._journal is not None:
            try:
                self._journal.acknowledge(number)
            except OSError as error:
                self._stop_writing(error)

    def clear(self) -> None:
        """Remove all entries from memory; the journal stays."""
        self._memory.clear()
        self._in_flight.clear()
        self._bytes = 0
        self._last_acknowledged = self._last_in_flight = self._last_number

    def write_final_status(self, status: str, description: RunDescription | None = None) -> None:
        """Write the final status of the run to the journal."""
        try:
            if (journal := self._open_described_journal(description)) is not None:
                journal.write_final_status(status)
        except OSError as error:
            self._stop_writing(error)

    def close(self) -> None:
        """Close the journal; what is written stays."""
        self._is_writing = False
        if self._journal is not None:
            self._journal.close()

    def _read_next(self, count: int) -> list[tuple[int, Entry]]:
        """Return the oldest entries that are not in flight, at most `count`."""
        first = self._first_in_memory()
        if self._last_in_flight + 1 < first:
            entries: list[tuple[int, Entry]] = []
            if self._journal is not None:
                try:
                    entries = [
                        numbered for numbered in self._journal.read(self._last_in_flight, count) if numbered[0] < first
                    ]
                except OSError as error:
                    logger.warning("gradmedic cannot read %s: %s", self._journal.folder, error)
                if self._journal.has_damage and not self._must_count_dropped:
                    self._must_count_dropped = True
                    logger.warning(
                        "gradmedic cannot read some steps in %s, goes on behind them, and keeps the files",
                        self._journal.folder,
                    )
            if entries:
                return entries
            self._must_count_dropped = True
            self._last_in_flight = first - 1
            if not self._in_flight:
                self._last_acknowledged = self._last_in_flight
        if self._must_count_dropped:
            # A step that is neither in memory nor was ever in flight is lost: it was dropped, or cannot be read.
            in_memory = sum(isinstance(entry, Step) for _, entry in self._memory)
            self._dropped = self._appended_steps - self._sent_steps - in_memory
            self._must_count_dropped = False
        return list(islice(self._memory, count))

    def _first_in_memory(self) -> int:
        return self._memory[0][0] if self._memory else self._last_number + 1

    def _open_described_journal(self, description: RunDescription | None) -> Journal | None:
        """Return the journal with its present description; None if nothing is written any more."""
        if not self._is_writing:
            return None
        if self._journal is None and self._open_journal is not None:
            self._journal = self._open_journal()
        if self._journal is not None and description is not None and description.version != self._written_version:
            self._journal.describe(description.content)
            self._written_version = description.version
        return self._journal

    def _write(self, entry: Entry, description: RunDescription | None) -> None:
        try:
            if (journal := self._open_described_journal(description)) is not None:
                try:
                    journal.append(self._last_number, entry, last_in_flight=self._last_in_flight)
                    self._last_on_disk = self._last_number
                finally:
                    first = self._first_in_memory()
                    in_memory = [number for number in journal.dropped if number >= first]
                    self._dropped += len(journal.dropped) - len(in_memory)
                    self._dropped_on_disk.update(in_memory)
                    journal.dropped.clear()
        except OSError as error:
            self._stop_writing(error)

    def _stop_writing(self, error: OSError) -> None:
        """Go on in memory: the disk is full, or not there."""
        if self._is_writing:
            self._is_writing = False
            logger.warning("gradmedic cannot keep steps on disk any more, they wait in memory only: %s", error)

    def _make_room(self) -> None:
        # An eighth more than needed, so that a full memory is not searched at every step.
        target = self._max_bytes - self._max_bytes // 8
        while self._bytes > target and self._first_in_memory() <= self._last_on_disk:
            number, entry = self._memory.popleft()
            self._bytes -= _nbytes(entry)
            self._dropped += number in self._dropped_on_disk
            self._dropped_on_disk.discard(number)
        for drops_nonfinite in (False, True):
            if self._bytes <= target or not self._memory:
                return
            kept: deque[tuple[int, Entry]] = deque()
            newest = [self._memory.pop()] if self._max_bytes else []  # stays
            for number, entry in self._memory:
                if self._bytes > target and isinstance(entry, Step) and (drops_nonfinite or entry.is_finite):
                    self._bytes -= _nbytes(entry)
                    self._dropped += 1
                else:
                    kept.append((number, entry))
            kept.extend(newest)
            self._memory = kept


def _nbytes(entry: Entry) -> int:
    return _REWIND_BYTES if isinstance(entry, Rewind) else entry.nbytes
