"""How arrays become bytes: shuffled, compressed, and framed with a header.

Bytes of equal weight are put side by side before compression: exponents of neighbouring norms repeat, mantissas do not
(byte shuffle, as in Blosc). What is stored is a header that tells the lengths of the sections behind it,
so that each can be unpacked by itself:

    1 byte    format version
    4 bytes   length of the header, little-endian
    header    msgpack
    sections  zstd
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

COMPRESSION_LEVEL = 1
"""On recorded statistics a hundredth larger than level 3, for two thirds of its time."""
_PREFIX_LENGTH = 5
_codecs = threading.local()


class CorruptChunk(ValueError):
    """The bytes are not what this version of the service can read."""


class Header(Protocol):
    """A `msgspec.Struct` that tells the lengths of the sections."""

    @property
    def section_lengths(self) -> tuple[int, ...]:
        """In bytes, in order."""


H = TypeVar("H", bound=Header)


def join_sections(version: int, header: Header, sections: Sequence[bytes]) -> bytes:
    """Return header and sections as one."""
    packed_header = msgspec.msgpack.encode(header)
    return b"".join([bytes([version]), len(packed_header).to_bytes(4, "little"), packed_header, *sections])


def split_sections(version: int, data: bytes, kind: type[H]) -> tuple[H, list[memoryview]]:
    """Undo `join_sections`. Raises CorruptChunk."""
    if not data or data[0] != version:
        raise CorruptChunk(f"format version {data[0] if data else 'missing'}, expected {version}")
    header_end = _PREFIX_LENGTH + int.from_bytes(data[1:_PREFIX_LENGTH], "little")
    try:
        header = msgspec.msgpack.decode(data[_PREFIX_LENGTH:header_end], type=kind)
    except msgspec.MsgspecError as error:
        raise CorruptChunk(f"header: {error}") from None
    ends = [header_end]
    for length in header.section_lengths:
        ends.append(ends[-1] + length)
    if len(data) != ends[-1]:
        raise CorruptChunk(f"{len(data)} bytes, expected {ends[-1]}")
    view = memoryview(data)
    return header, [view[start:end] for start, end in pairwise(ends)]


def shuffled(array: NDArray[Any]) -> bytes:
    """Return the first bytes of every element, then the second ones, ..."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.itemsize).T.tobytes()


def unshuffled(
    data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], rows: NDArray[np.int64] | None = None
) -> NDArray[Any]:
    """Undo `shuffled`, for some rows of the last axis but one, or all. Raises CorruptChunk."""
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise CorruptChunk("a section is of the wrong length")
    planes = np.frombuffer(data, dtype=np.uint8)
    if rows is None:
        return np.ascontiguousarray(planes.reshape(dtype.itemsize, -1).T).view(dtype).reshape(shape)
    chosen = np.moveaxis(planes.reshape(dtype.itemsize, *shape)[..., rows, :], 0, -1)
    return np.ascontiguousarray(chosen).view(dtype)[..., 0]


def packed(mask: NDArray[np.bool_]) -> bytes:
    """Return eight flags a byte, the first in the lowest bit."""
    return np.packbits(mask, bitorder="little").tobytes()


def unpacked(data: bytes, count: int) -> NDArray[np.bool_]:
    """Undo `packed`."""
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count, bitorder="little").view(np.bool_)


def bits_length(count: int) -> int:
    """Return how many bytes `count` flags take."""
    return (count + 7) // 8


def compress(data: bytes) -> bytes:
    """Return the bytes as a zstd frame."""
    compressor: zstandard.ZstdCompressor | None = getattr(_codecs, "compressor", None)
    if compressor is None:
        compressor = _codecs.compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)
    return compressor.compress(data)


def decompress(section: bytes | memoryview) -> bytes:
    """Return what `compress` was given. Raises CorruptChunk."""
    decompressor: zstandard.ZstdDecompressor | None = getattr(_codecs, "decompressor", None)
    if decompressor is None:
        decompressor = _codecs.decompressor = zstandard.ZstdDecompressor()
    try:
        return decompressor.decompress(section)
    except zstandard.ZstdError as error:
        raise CorruptChunk(str(error)) from None
