"""The journal on disk: every step that the service has not acknowledged.

It is made of append-only segments of numbered records with checksums. What is written survives the death of the process
(not of the machine: nothing is synced). A torn record ends its segment. Reading begins behind the last number that was
acknowledged. A segment is deleted when all of it is acknowledged. Beyond its bound, the journal drops steps, the oldest
first, and those with a non-finite number last. It never drops a rewind, nor an entry in flight.

    DIR/<run id>/<session>/          a session is one process
        lock                         locked by that process while it lives
        position                     what was acknowledged, under which generation
        00000001.journal ...         segments; each begins with a description of the run
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import msgspec

from gradmedic.protocol.encoding import from_json, to_json
from gradmedic.protocol.runs import RunCreate
from gradmedic.recording.step import Entry, Rewind, pack_step, unpack_step
from gradmedic.upload.private_files import create_private_folder, open_private_file

try:
    import fcntl
except ImportError:  # not on Windows: there, only the process id in a session's name shows whose it is
    fcntl = None  # type: ignore[assignment]

SEGMENT_BYTES = 4 * 1024 * 1024
_RECORD = struct.Struct("<IIBQ")
"""Length of the payload, its checksum, kind and number."""
_POSITION = struct.Struct("<QqQq")
"""Last acknowledged number, generation, number of the last rewind, its generation; a checksum follows."""
_CHECKSUM = struct.Struct("<I")
_DESCRIPTION, _STEP, _REWIND, _FINAL_STATUS = range(1, 5)
_LONGEST_RECORD = 256 * 1024 * 1024


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
        self._reader: tuple[int, int, int] | None = None  # segment, offset, and number of the record that ends there
        self._made_directory = False
        self.dropped: list[int] = []
        """Numbers of the steps that were dropped; the reader clears the list."""

    @classmethod
    def create(cls, directory: Path, run_id: UUID, max_bytes: int) -> Journal:
        """Return the journal of a new session of this process."""
        session = f"{time.time_ns() // 1000:016x}-{os.getpid()}"
        return cls(directory / str(run_id) / session, max_bytes)

    @classmethod
    def open(cls, folder: Path, max_bytes: int) -> Journal | None:
        """Return the journal of another process, or None if that process is still alive."""
        journal = cls(folder, max_bytes)
        if not journal._lock_session():
            journal.close()
            return None
        journal._load()
        return journal

    @property
    def position(self) -> Position:
        """How far the service has acknowledged the session."""
        return self._position

    def describe(self, description: RunCreate) -> None:
        """Write the description of the run, if it changed."""
        encoded = to_json(description)
        if encoded != self._description:
            self._description = encoded
            self._write(_DESCRIPTION, 0, encoded)

    def append(self, number: int, entry: Entry, *, last_in_flight: int) -> None:
        """Write a step or a rewind. If that takes too much room, drop steps whose number is beyond `last_in_flight`."""
        if isinstance(entry, Rewind):
            self._write(_REWIND, number, msgspec.msgpack.encode(entry.step))
        else:
            self._write(_STEP, number, pack_step(entry), is_finite=entry.is_finite)
        self._make_room(last_in_flight)

    def write_final_status(self, status: str) -> None:
        """Write the final status of the run."""
        self._write(_FINAL_STATUS, 0, status.encode())

    def read(self, after: int, count: int) -> list[tuple[int, Entry]]:
        """Return the oldest entries with a number beyond `after`, at most `count`."""
        entries: list[tuple[int, Entry]] = []
        start = (0, 0)
        if self._reader is not None and self._reader[2] == after:
            start = self._reader[:2]
        for index in range(start[0], len(self._segments)):
            segment = self._segments[index]
            if segment.last <= after:
                continue
            begin = start[1] if index == start[0] else 0
            for number, kind, payload, end in _read_records(segment.path, begin):
                if kind in (_STEP, _REWIND) and number > after:
                    entries.append((number, _decode_entry(kind, payload)))
                    if len(entries) == count:
                        self._reader = (index, end, number)
                        return entries
        return entries

    def count_steps(self) -> int:
        """Return the number of steps that are not acknowledged."""
        return sum(
            kind == _STEP and number > self._position.acknowledged
            for segment in self._segments
            for number, kind, _, _ in _read_records(segment.path)
        )

    def final_status(self) -> str | None:
        """Return the final status of the run, None if it was not written."""
        statuses = [
            payload
            for segment in self._segments[-1:]
            for _, kind, payload, _ in _read_records(segment.path)
            if kind == _FINAL_STATUS
        ]
        return statuses[-1].decode() if statuses else None

    def description(self) -> RunCreate | None:
        """Return the last description that was written."""
        return from_json(self._description, RunCreate) if self._description else None

    def acknowledge(self, number: int) -> None:
        """Note that the service has everything up to `number`, and delete what is not needed any more."""
        self.save_position(acknowledged=number)
        while len(self._segments) > 1 and self._segments[0].last <= number:
            self._segments.pop(0).path.unlink(missing_ok=True)
            self._reader = None

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
        """Delete the session, and the folders above it that were made for it, if they are empty then."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()
            if self._made_directory:
                self.folder.parents[1].rmdir()

    # --- writing ------------------------------------------------------------------------------------------------------

    def _write(self, kind: int, number: int, payload: bytes, *, is_finite: bool = True) -> None:
        if self._file is None or self._segments[-1].size >= self._segment_bytes:
            self._file = self._begin_segment()
            if kind == _DESCRIPTION:
                return
        segment = self._segments[-1]
        self._write_record(self._file, kind, number, payload)
        if number:
            segment.last = number
        if kind == _STEP:
            segment.finite += is_finite
            segment.nonfinite += not is_finite

    def _write_record(self, file: BinaryIO, kind: int, number: int, payload: bytes) -> None:
        segment = self._segments[-1]
        record = _encode_record(kind, number, payload)
        try:
            written = file.write(record)
            if written != len(record):
                raise OSError(f"only {written} of {len(record)} bytes were written")
        except OSError:
            with contextlib.suppress(OSError):  # what was written in part would end the segment
                file.truncate(segment.size)
                file.seek(segment.size)
            raise
        segment.size += len(record)

    def _begin_segment(self) -> BinaryIO:
        if self._lock_file is None:
            self._made_directory = not self.folder.parents[1].exists()
            create_private_folder(self.folder)
            self._lock_session()
        index = self._segments[-1].index + 1 if self._segments else 1
        path = self.folder / f"{index:08d}.journal"
        file = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        if self._file is not None:
            self._file.close()
        last = self._segments[-1].last if self._segments else self._position.acknowledged
        self._segments.append(_Segment(path, index, last=last))
        if self._description:
            self._write_record(file, _DESCRIPTION, 0, self._description)
        return file

    def _make_room(self, last_in_flight: int) -> None:
        """Drop steps until the session is within its bound."""
        while sum(segment.size for segment in self._segments) > self._max_bytes:
            closed = self._segments[:-1]
            with_finite = next((segment for segment in closed if segment.finite), None)
            segment = with_finite or next((segment for segment in closed if segment.nonfinite), None)
            if segment is None:
                break
            self._reader = None
            self._drop_steps(segment, last_in_flight, keeps_nonfinite=with_finite is not None)

    def _drop_steps(self, segment: _Segment, last_in_flight: int, *, keeps_nonfinite: bool) -> None:
        """Drop the steps of a segment that are not in flight: all of them, or those whose numbers are all finite."""
        dropped: list[int] = []
        entries = nonfinite = 0
        kept = bytearray()
        for number, kind, payload, _ in _read_records(segment.path):
            if kind in (_STEP, _REWIND):
                if number <= self._position.acknowledged:
                    continue
                if kind == _STEP and number > last_in_flight:
                    if not keeps_nonfinite or unpack_step(payload).is_finite:
                        dropped.append(number)
                        continue
                    nonfinite += 1
                entries += 1
            kept += _encode_record(kind, number, payload)
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
        for path in sorted(self.folder.glob("*.journal")):
            segment = _Segment(path, int(path.stem))
            for number, kind, payload, end in _read_records(path):
                segment.size = end
                segment.last = max(segment.last, number)
                if kind == _DESCRIPTION:
                    self._description = payload
            self._segments.append(segment)

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


def list_sessions(directory: Path, run_id: UUID | None = None) -> list[Path]:
    """Return the folders of all sessions, or those of one run, in the order in which they began."""
    folders = [directory / str(run_id)] if run_id is not None else sorted(directory.glob("*-*-*-*-*"))
    return [
        session
        for folder in folders
        if folder.is_dir()
        for session in sorted(folder.iterdir())
        if any(session.glob("*.journal"))
    ]


def read_run_id(session: Path) -> UUID | None:
    """Return the id of the run of a session, None if its folder is not named by one."""
    try:
        return UUID(session.parent.name)
    except ValueError:
        return None


def _encode_record(kind: int, number: int, payload: bytes) -> bytes:
    return _RECORD.pack(len(payload), _checksum(kind, number, payload), kind, number) + payload


def _checksum(kind: int, number: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<BQ", kind, number)))


def _read_records(path: Path, offset: int = 0) -> Iterator[tuple[int, int, bytes, int]]:
    """Iterate over number, kind, payload and end of each record. A torn or damaged one ends the segment."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        while len(header := file.read(_RECORD.size)) == _RECORD.size:
            length, checksum, kind, number = _RECORD.unpack(header)
            if length > _LONGEST_RECORD:
                return
            payload = file.read(length)
            if len(payload) < length or _checksum(kind, number, payload) != checksum:
                return
            yield number, kind, payload, file.tell()


def _decode_entry(kind: int, payload: bytes) -> Entry:
    return unpack_step(payload) if kind == _STEP else Rewind(msgspec.msgpack.decode(payload, type=int))


def _encode_generation(generation: int | None) -> int:
    return -1 if generation is None else generation
