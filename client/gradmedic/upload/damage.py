"""Counts what cannot be read of a session, from its records in order.

Entries are numbered without gaps, so the numbers on both sides of an unreadable place show how many entries it had.
Where nothing readable follows, the number is estimated from the size. A gap without unreadable bytes is a file that
lost its end, unless the journal dropped steps for lack of room.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gradmedic.upload.records import Record


@dataclass(frozen=True, slots=True)
class Damage:
    """What cannot be read of a session, without what the service has already."""

    steps: int
    bytes: int
    files: tuple[Path, ...]

    def __bool__(self) -> bool:
        return bool(self.files)


@dataclass(slots=True)
class DamageCounter:
    """Counts the damage of a session.

    Args:
        acknowledged: number of the last entry that the service has.
    """

    acknowledged: int
    _steps: int = 0
    _bytes: int = 0
    _files: list[Path] = field(default_factory=list)
    _newest: int = 0
    """Largest number that was read."""
    _read_entries: int = 0
    _read_bytes: int = 0
    _smallest: int = 2**62
    """Size of the smallest entry."""
    _unread_bytes: int = 0
    _unread_files: list[Path] = field(default_factory=list)
    """Files with unreadable bytes since the last number that was read."""
    _is_cut: bool = False
    """Whether these bytes end a file, which may have been longer."""
    _newest_file: Path | None = None
    _gaps: list[tuple[int, Path]] = field(default_factory=list)
    """Number of entries that are missing behind the last one of a file, and the file."""

    def add_readable(self, path: Path, record: Record) -> None:
        """Count the entries that are missing before a readable record."""
        if record.is_entry:
            size = record.end - record.begin
            self._read_entries += 1
            self._read_bytes += size
            self._smallest = min(self._smallest, size)
        if record.number == 0:  # a description or status of version 0.1.0
            return
        last_before = record.number - record.is_entry
        missing = max(0, last_before - max(self._newest, self.acknowledged))
        if self._unread_files and (last_before > self.acknowledged or not self.acknowledged):
            if not self._is_cut:  # further missing entries were dropped for lack of room
                missing = min(missing, -(-self._unread_bytes // self._smallest))
            self._note_unread(missing)
        elif missing and self._newest_file is not None:
            self._gaps.append((missing, self._newest_file))
        self._newest_file = path
        self._newest = max(self._newest, record.number)
        self._unread_bytes, self._unread_files, self._is_cut = 0, [], False

    def add_unreadable(self, path: Path, size: int, *, ends_file: bool) -> None:
        """Note bytes of a file that cannot be read."""
        self._unread_bytes += size
        self._unread_files.append(path)
        self._is_cut |= ends_file

    def finish(self, *, has_dropped_steps: bool) -> Damage:
        """Return the damage, after the last record.

        Args:
            has_dropped_steps: whether the journal dropped steps for lack of room.
        """
        for missing, file in () if has_dropped_steps else self._gaps:
            self._steps += missing
            self._files.append(file)
        if self._unread_files:
            mean = self._read_bytes / self._read_entries if self._read_entries else self._unread_bytes
            behind_newest = max(1, round(self._unread_bytes / max(1.0, mean)))
            missing = behind_newest - max(0, self.acknowledged - self._newest)
            if missing > 0:
                self._note_unread(missing)
        return Damage(self._steps, self._bytes, tuple(dict.fromkeys(self._files)))

    def _note_unread(self, missing: int) -> None:
        self._steps += missing
        self._bytes += self._unread_bytes
        self._files += self._unread_files
