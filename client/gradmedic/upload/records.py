"""Numbered records with checksums in a file, and how to read on behind a damaged one.

A record is a header (length of the payload, checksum, kind, number) and a payload. The checksum covers kind, number and
payload, and a wrong length makes it wrong. So a record is recognized without the records before it. Behind bytes that
are no whole record, the next place is searched at which there is one. The files of version 0.1.0 have the same records.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

_HEADER = struct.Struct("<IIBQ")
"""Length of the payload, checksum, kind and number."""
_NUMBERED = struct.Struct("<BQ")
_LONGEST_PAYLOAD = 2**28 - 1
_POSSIBLE_HEADER = re.compile(rb"(?s)(?=.{3}[\x00-\x0f].{4}[\x01-\x04].{5}\x00{3})")
"""Places at which a header may begin: a length up to _LONGEST_PAYLOAD, a kind, and a number below 2**40."""


class RecordKind(IntEnum):
    """What the payload of a record is."""

    DESCRIPTION = 1
    STEP = 2
    REWIND = 3
    FINAL_STATUS = 4


_KINDS = frozenset(RecordKind)


@dataclass(frozen=True, slots=True)
class Record:
    """A record, or bytes that are none."""

    kind: RecordKind | None
    """None for bytes that cannot be read as a record."""
    number: int
    payload: bytes
    begin: int
    """Offset of the first byte in the file."""
    end: int
    """Offset behind the last byte."""

    @property
    def is_entry(self) -> bool:
        """Whether this is a step or a rewind."""
        return self.kind in (RecordKind.STEP, RecordKind.REWIND)


def encode_record(kind: RecordKind, number: int, payload: bytes) -> bytes:
    """Return the bytes of a record."""
    return _HEADER.pack(len(payload), _checksum(kind, number, payload), kind, number) + payload


def decode_record(data: bytes | memoryview, begin: int = 0) -> Record | None:
    """Return the record that the bytes begin with, None if they begin with none.

    Args:
        data: bytes of a file.
        begin: offset of the first of them in the file.
    """
    if len(data) < _HEADER.size:
        return None
    length, checksum, kind, number = _HEADER.unpack_from(data)
    payload = data[_HEADER.size : _HEADER.size + length]
    if kind not in _KINDS or len(payload) < length or _checksum(kind, number, payload) != checksum:
        return None
    return Record(RecordKind(kind), number, bytes(payload), begin, begin + _HEADER.size + length)


def read_records(path: Path, offset: int = 0) -> Iterator[Record]:
    """Iterate over the records of a file from an offset. Bytes that are no record come as a `Record` of no kind.

    A file that does not exist has no records.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        while True:
            record = _read_record(file, offset)
            if record is None:
                file.seek(offset)
                rest = file.read()
                if not rest:
                    return
                record = Record(None, 0, b"", offset, offset + _find_record(rest))
                file.seek(record.end)
            yield record
            offset = record.end


def _read_record(file: BinaryIO, begin: int) -> Record | None:
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    length = _HEADER.unpack(header)[0]
    return None if length > _LONGEST_PAYLOAD else decode_record(header + file.read(length), begin)


def _find_record(data: bytes) -> int:
    """Return the offset of the first record behind the first byte, or the number of bytes if there is none."""
    view = memoryview(data)
    for place in _POSSIBLE_HEADER.finditer(data, 1):
        if decode_record(view[place.start() :]) is not None:
            return place.start()
    return len(data)


def _checksum(kind: int, number: int, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(_NUMBERED.pack(kind, number)))
