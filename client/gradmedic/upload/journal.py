"""The journal on disk: every step that the service has not acknowledged.

It is made of append-only segments of numbered records with checksums (`records.py`). What is written survives the death
of the process (not of the machine: nothing is synced). Reading begins behind the last number that was acknowledged, and
goes on behind a record that is damaged. A segment is deleted when all of it is acknowledged. A segment with records
that could not be read is kept under another name. Beyond its bound, the journal drops steps, the oldest first, and
those with a non-finite number last. It never drops a rewind, nor an entry in flight.

    DIR/<run id>/<session>/          a session is one process
        lock                         locked by that process while it lives
        position                     what was acknowledged, under which generation
        description                  the newest description of the run
        00000001.journal ...         segments; each begins with a description of the run
        00000001.journal.damaged ... segments that were sent as far as they can be read
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from gradmedic.private_files import create_private_folder, open_private_file
from gradmedic.protocol.encoding import from_json, to_json
from gradmedic.protocol.runs import RunCreate
from gradmedic.recording.step import Entry, Rewind, Step, pack_rewind, pack_step, unpack_rewind, unpack_step
from gradmedic.upload.damage import Damage, DamageCounter
from gradmedic.upload.records import Record, RecordKind, decode_record, encode_record, read_records

try:
    import fcntl
except ImportError:  # not on Windows: there, only the process id in a session's name shows whose it is
    fcntl = None  # type: ignore[assignment]

SEGMENT_BYTES = 4 * 1024 * 1024
_POSITION = struct.Struct("<QqQq")
"""Last acknowledged number, generation, number of the last rewind, its generation; a checksum follows."""
_CHECKSUM = struct.Struct("<I")
_DAMAGED_SUFFIX = ".damaged"


@dataclass(frozen=True, slots=True)
class Position:
    """How far the service has acknowledged a session."""

    acknowledged: int = 0
    generation: int | None = None
    """Generation of the run when it was last known."""
    rewind: int = 0
    """Number of the rewind that was begun last."""
    rewind_generation: int | None = None
    """Generation of the run before that rewind. Repeated under this generation, the rewind happens once."""


class Journal:
    """Writes and reads one session. Not thread-safe: its owner locks. Every method may raise OSError.

    Args:
        folder: folder of the session; it is made with the first record.
        max_bytes: largest size of the session on disk.
        segment_bytes: size at which a new segment begins.
    """

    def __init__(self, folder: Path, max_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = min(segment_bytes, max(1, max_bytes // 8))
        self._lock_file: BinaryIO | None = None
        self._file: BinaryIO | None = None
        self._segments: list[_Segment] = []
        self._description = b""
        self._position = Position()
        self._position_file: BinaryIO | None = None
        self._place: _Place | None = None  # at which the last reading ended
        self._made_directory = False
        self._is_own = True  # this process writes it
        self.dropped: list[int] = []
        """Numbers of the steps that were dropped; the reader clears the list."""
        self.unsent_steps = 0
        """Number of steps of another process's session that can be read and are not acknowledged."""
        self.damage = Damage(0, 0, ())
        """What cannot be read of another process's session."""
        self.final_status: str | None = None
        """The final status of the run in another process's session, None if it was not written."""

    @classmethod
    def create(cls, directory: Path, run_id: UUID, max_bytes: int) -> Journal:
        """Return the journal of a new session of this process."""
        session = f"{time.time_ns() // 1000:016x}-{os.getpid()}"
        return cls(directory / str(run_id) / session, max_bytes)

    @classmethod
    def open(cls, folder: Path, max_bytes: int) -> Journal | None:
        """Return the journal of another process, or None if that process is still alive.

        Raises:
            OSError: a file of the session cannot be opened or read.
        """
        journal = cls(folder, max_bytes)
        try:
            if not journal._lock_session():
                journal.close()
                return None
            journal._load()
        except OSError:
            journal.close()
            raise
        return journal

    @property
    def position(self) -> Position:
        """How far the service has acknowledged the session."""
        return self._position

    @property
    def has_damage(self) -> bool:
        """Whether records that were needed could not be read."""
        return any(segment.is_damaged for segment in self._segments)

    def describe(self, description: RunCreate) -> None:
        """Write the description of the run, if it changed."""
        encoded = to_json(description)
        if encoded != self._description:
            self._description = encoded
            self._make_folder()
            copy = self.folder / "description"
            temporary = copy.with_suffix(".new")
            with os.fdopen(open_private_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
                file.write(encode_record(RecordKind.DESCRIPTION, self._last_number(), encoded))
            temporary.replace(copy)
            self._write(RecordKind.DESCRIPTION, self._last_number(), encoded)

    def append(self, number: int, entry: Entry, *, last_in_flight: int) -> None:
        """Write a step or a rewind. If that takes too much room, drop steps whose number is beyond `last_in_flight`."""
        if isinstance(entry, Rewind):
            self._write(RecordKind.REWIND, number, pack_rewind(entry))
        else:
            self._write(RecordKind.STEP, number, pack_step(entry), is_finite=entry.is_finite)
        self._make_room(last_in_flight)

    def write_final_status(self, status: str) -> None:
        """Write the final status of the run."""
        self._write(RecordKind.FINAL_STATUS, self._last_number(), status.encode())

    def read(self, after: int, count: int) -> list[tuple[int, Entry]]:
        """Return the oldest entries with a number beyond `after`, `count` or one more.

        What cannot be read is left out. If a step does not follow the one before it, a rewind between them could not be
        read: it is returned in its place.
        """
        entries: list[tuple[int, Entry]] = []
        place = self._place if self._place is not None and self._place.number == after else _Place()
        newest, last_step = place.number, place.last_step
        for index in range(place.segment, len(self._segments)):
            segment = self._segments[index]
            if segment.last <= after:
                continue
            has_unreadable = False
            for record in read_records(segment.path, place.offset if index == place.segment else 0):
                entry = _decode_entry(record) if record.is_entry else None
                if entry is None:
                    has_unreadable |= record.is_entry or record.kind is None
                    continue
                if record.number <= newest:  # a copy of what was read
                    continue
                if record.number > after:
                    segment.is_damaged |= self._is_own and has_unreadable and record.number - 1 > max(newest, after)
                    if isinstance(entry, Step) and last_step is not None and entry.number <= last_step:
                        rewind = (record.number - 1, Rewind(entry.number - 1))
                        entries += [rewind] if rewind[0] > max(newest, after) else []
                    entries.append((record.number, entry))
                has_unreadable = False
                newest = record.number
                last_step = entry.number if isinstance(entry, Step) else entry.step
                if len(entries) >= count:
                    self._place = _Place(index, record.end, newest, last_step)
                    return entries
            segment.is_damaged |= self._is_own and has_unreadable
        return entries

    def description(self) -> RunCreate | None:
        """Return the last description that was written, None if it cannot be read."""
        try:
            return from_json(self._description, RunCreate) if self._description else None
        except ValueError:
            return None

    def give_up(self) -> None:
        """Count everything as damaged that is not acknowledged: it cannot be sent."""
        files = tuple(segment.path for segment in self._segments)
        self.damage = Damage(self.damage.steps + self.unsent_steps, sum(path.stat().st_size for path in files), files)
        self.unsent_steps = 0
        for segment in self._segments:
            segment.is_damaged = True

    def acknowledge(self, number: int) -> None:
        """Note that the service has everything up to `number`, and delete what is not needed any more."""
        self.save_position(acknowledged=number)
        while len(self._segments) > 1 and self._segments[0].last <= number:
            self._segments.pop(0).remove()
            self._place = None

    def save_position(self, **changes: int) -> None:
        """Change fields of the position and write it."""
        self._position = position = dataclasses.replace(self._position, **changes)
        if self._position_file is None:
            if not self.folder.is_dir():
                return
            self._position_file = self._open(self.folder / "position", os.O_RDWR | os.O_CREAT)
        body = _POSITION.pack(
            position.acknowledged,
            _encode_generation(position.generation),
            position.rewind,
            _encode_generation(position.rewind_generation),
        )
        self._position_file.seek(0)
        self._position_file.write(body + _CHECKSUM.pack(zlib.crc32(body)))

    def close(self) -> None:
        """Close the files; what is written stays."""
        for file in (self._file, self._position_file, self._lock_file):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        self._file = self._position_file = self._lock_file = None

    def delete(self) -> None:
        """Delete the session, and the folders above it that were made for it, if they are empty then.

        Segments with records that could not be read stay, with the suffix `.damaged`.
        """
        self.close()
        with contextlib.suppress(OSError):
            for segment in self._segments:
                segment.remove()
        if any(self.folder.glob(f"*{_DAMAGED_SUFFIX}")):
            (self.folder / "lock").unlink(missing_ok=True)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()
            if self._made_directory:
                self.folder.parents[1].rmdir()

    # --- writing ------------------------------------------------------------------------------------------------------

    def _write(self, kind: RecordKind, number: int, payload: bytes, *, is_finite: bool = True) -> None:
        if self._file is None or self._segments[-1].size >= self._segment_bytes:
            self._file = self._begin_segment()
            if kind is RecordKind.DESCRIPTION:
                return
        segment = self._segments[-1]
        self._write_record(self._file, kind, number, payload)
        segment.last = number
        if kind is RecordKind.STEP:
            segment.finite += is_finite
            segment.nonfinite += not is_finite

    def _write_record(self, file: BinaryIO, kind: RecordKind, number: int, payload: bytes) -> None:
        segment = self._segments[-1]
        record = encode_record(kind, number, payload)
        try:
            written = file.write(record)
            if written != len(record):
                raise OSError(f"only {written} of {len(record)} bytes were written")
        except OSError:
            with contextlib.suppress(OSError):  # what was written in part would count as damage
                file.truncate(segment.size)
                file.seek(segment.size)
            raise
        segment.size += len(record)

    def _begin_segment(self) -> BinaryIO:
        self._make_folder()
        index = self._segments[-1].index + 1 if self._segments else 1
        path = self.folder / f"{index:08d}.journal"
        file = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        if self._file is not None:
            self._file.close()
        self._segments.append(_Segment(path, index, last=self._last_number()))
        if self._description:
            self._write_record(file, RecordKind.DESCRIPTION, self._last_number(), self._description)
        return file

    def _last_number(self) -> int:
        """Return the number of the entry that was written last."""
        return self._segments[-1].last if self._segments else self._position.acknowledged

    def _make_folder(self) -> None:
        if self._lock_file is None:
            self._made_directory = not self.folder.parents[1].exists()
            create_private_folder(self.folder)
            self._lock_session()

    def _make_room(self, last_in_flight: int) -> None:
        """Drop steps until the session is within its bound."""
        while sum(segment.size for segment in self._segments) > self._max_bytes:
            closed = self._segments[:-1]
            with_finite = next((segment for segment in closed if segment.finite), None)
            segment = with_finite or next((segment for segment in closed if segment.nonfinite), None)
            if segment is None:
                break
            self._place = None
            self._drop_steps(segment, last_in_flight, keeps_nonfinite=with_finite is not None)

    def _drop_steps(self, segment: _Segment, last_in_flight: int, *, keeps_nonfinite: bool) -> None:
        """Drop the steps of a segment that are not in flight: all of them, or those whose numbers are all finite."""
        dropped: list[int] = []
        entries = nonfinite = 0
        kept = bytearray()
        for record in read_records(segment.path):
            entry = _decode_entry(record) if record.is_entry else None
            if record.kind is None or (record.is_entry and entry is None):
                continue
            if entry is not None:
                if record.number <= self._position.acknowledged:
                    continue
                if isinstance(entry, Step) and record.number > last_in_flight:
                    if not keeps_nonfinite or entry.is_finite:
                        dropped.append(record.number)
                        continue
                    nonfinite += 1
                entries += 1
            kept += encode_record(record.kind, record.number, record.payload)
        if entries:
            temporary = segment.path.with_suffix(".new")
            with os.fdopen(open_private_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
                file.write(kept)
            temporary.replace(segment.path)
            segment.size, segment.finite, segment.nonfinite = len(kept), 0, nonfinite
        else:
            self._segments.remove(segment)
            segment.path.unlink(missing_ok=True)
        self.dropped += dropped

    # --- reading what another process left ----------------------------------------------------------------------------

    def _lock_session(self) -> bool:
        """Lock the session; return False if a process uses it: another one or, on a system without locks, this one."""
        self._lock_file = self._open(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            if fcntl is None:
                raise OSError("no locks on this system")
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return not self.folder.name.endswith(f"-{os.getpid()}")
        return True

    def _load(self) -> None:
        self._is_own = False
        with contextlib.suppress(OSError, struct.error):
            body = (self.folder / "position").read_bytes()
            if _CHECKSUM.pack(zlib.crc32(body[: _POSITION.size])) == body[_POSITION.size :]:
                acknowledged, generation, rewind, rewind_generation = _POSITION.unpack_from(body)
                self._position = Position(
                    acknowledged,
                    None if generation < 0 else generation,
                    rewind,
                    None if rewind_generation < 0 else rewind_generation,
                )
        counter = DamageCounter(self._position.acknowledged)
        newest = self._position.acknowledged
        self._segments = [_Segment(path, int(path.stem)) for path in _list_segments(self.folder)]
        for segment in self._segments:
            size = segment.path.stat().st_size
            if size == 0 and segment is not self._segments[-1]:  # it had a description at least
                counter.add_unreadable(segment.path, 0, ends_file=True)
            for record in read_records(segment.path):
                segment.size = record.end
                entry = _decode_entry(record) if record.is_entry else None
                if record.kind is None or (record.is_entry and entry is None):
                    counter.add_unreadable(segment.path, record.end - record.begin, ends_file=record.end == size)
                    continue
                counter.add_readable(segment.path, record)
                segment.last = max(segment.last, record.number)
                if record.kind is RecordKind.DESCRIPTION:
                    self._description = record.payload
                elif record.kind is RecordKind.FINAL_STATUS:
                    self.final_status = record.payload.decode(errors="replace")
                elif record.number > newest:
                    newest = record.number
                    self.unsent_steps += isinstance(entry, Step)
        with contextlib.suppress(OSError):
            copy = decode_record((self.folder / "description").read_bytes())
            if copy is not None and copy.kind is RecordKind.DESCRIPTION:  # written before that in the segment
                self._description = copy.payload
        description = self.description()
        training = None if description is None else description.training
        self.damage = counter.finish(has_dropped_steps=training is not None and bool(training.dropped_steps))
        for segment in self._segments:
            segment.is_damaged = segment.path in self.damage.files

    @staticmethod
    def _open(path: Path, flags: int) -> BinaryIO:
        descriptor = open_private_file(path, flags)
        return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else "wb", buffering=0)


@dataclass(slots=True)
class _Segment:
    path: Path
    index: int
    size: int = 0
    last: int = 0
    """Largest number of a record in the segment."""
    finite: int = 0
    """Number of steps that may be dropped, all of whose numbers are finite."""
    nonfinite: int = 0
    """Number of steps with a non-finite number, which are dropped after all others."""
    is_damaged: bool = False
    """Whether records that were needed could not be read."""

    def remove(self) -> None:
        """Delete the file, or keep it under another name if it is damaged. May raise OSError."""
        if self.is_damaged:
            with contextlib.suppress(FileNotFoundError):
                self.path.replace(kept_path(self.path))
        else:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Place:
    """A place between two records, from which reading goes on."""

    segment: int = 0
    offset: int = 0
    number: int = 0
    """Number of the entry before it."""
    last_step: int | None = None
    """The step that the run was at."""


def kept_path(segment: Path) -> Path:
    """Return the path under which a damaged segment is kept."""
    return segment.with_name(segment.name + _DAMAGED_SUFFIX)


def list_sessions(folder: Path) -> list[Path]:
    """Return the folders of a run's sessions that have anything to send, in the order in which they began.

    Raises:
        OSError: a folder cannot be read.
    """
    return [session for session in sorted(folder.iterdir()) if session.is_dir() and _list_segments(session)]


def _list_segments(session: Path) -> list[Path]:
    return sorted(path for path in session.iterdir() if path.suffix == ".journal" and path.stem.isdecimal())


def _decode_entry(record: Record) -> Entry | None:
    """Return the step or rewind of a record, None if its payload is neither."""
    try:
        if record.kind is RecordKind.STEP:
            return unpack_step(record.payload)
        return unpack_rewind(record.payload)
    except ValueError:
        return None


def _encode_generation(generation: int | None) -> int:
    return -1 if generation is None else generation
