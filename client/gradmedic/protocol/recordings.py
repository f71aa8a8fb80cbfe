"""Recordings: files with all steps of one run, without what identifies the run.

A file is written and read block by block, so that its length does not decide how much memory it takes. Its form:

    20 bytes  `gradmedic recording` and a line feed
    1 byte    format version
    frames    1 byte kind, 4 bytes length, 4 bytes length once decompressed (both little-endian), zlib bytes

The frames are one header (`H`), any number of blocks (`B`) and one end (`E`), each a msgpack map: `RecordingHeader`,
`PackedBlock`, `RecordingEnd`. In the file, the bytes of a block's statistics and series are shuffled before they are
compressed: the first byte of every element, then the second byte of every element, and so on (as in Blosc). A recording
is data: nothing in it is executed. A file with more, less or other bytes than it should have is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, BinaryIO, TypeVar

import msgspec
import numpy as np

from gradmedic.protocol.diagnosis import DiagnosisAtStep, VerdictChange
from gradmedic.protocol.packed_blocks import BlockArrays, PackedBlock, PackedBlockError, pack_block, unpack_block
from gradmedic.protocol.runs import Layer, Training
from gradmedic.protocol.statistics import SERIES, STATISTICS

MAGIC = b"gradmedic recording\n"
FORMAT_VERSION = 1
_HEADER, _BLOCK, _END = b"H", b"B", b"E"
MOST_FRAME_BYTES = {_HEADER: 2**25, _BLOCK: 2**28, _END: 2**10}
"""Largest size of a frame of each kind, as stored and decompressed: a frame is in memory as a whole. A layer takes some
300 bytes of the header. A service takes blocks of 4 million values, which are 16 MiB, unless it is set otherwise."""
MOST_BYTES = 2**36
"""Largest size of all frames together, decompressed: 64 GiB, which a million steps of 2,000 layers fill."""
MOST_LAYERS = 100_000
"""Largest number of layers."""
MOST_GUARDS = 10_000
"""Largest number of guard actions."""

_PREFIX_BYTES = 9
_COMPRESSION_LEVEL = 6
_FLOAT32_BYTES, _INT64_BYTES = 4, 8

T = TypeVar("T")


class RecordingError(ValueError):
    """The file is no recording, is damaged, or is larger than a recording may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedReview:
    """A user's review of the verdict. Its note is left out, because a text cannot be made anonymous."""

    answer: str
    """`right` or `wrong`."""
    verdict: str | None
    """The true verdict. None if the answer is `right` or the user does not know it."""
    level: str | None
    """The true level. None if the answer is `right` or the user does not know it."""
    step: int | None
    """Step of the diagnosis that was reviewed. None if the run had no step."""
    judged_verdict: str
    """The verdict that was reviewed."""
    judged_level: str
    """The level that was reviewed."""
    diagnosis_version: str
    """Version of gradmedic that gave the verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedVerdict:
    """The service's diagnosis when the run was exported, without findings: `replay` makes them again."""

    step: int | None
    """The last step that the diagnosis had read."""
    verdict: str
    learning: str
    level: str
    score: float
    since_step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedGuard:
    """An action of a guard. Its numbers and its explanation are left out, because they cannot be made anonymous."""

    generation: int
    """Number of rewinds before the action."""
    step: int
    """Step in which the guard acted."""
    to_step: int | None
    """The last step that a rewind kept. None for every other action."""
    action: str
    """Kind of the action."""
    reason: str
    """Reason for the action."""
    is_dropped: bool
    """Whether a later rewind dropped the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingHeader:
    """What a recording contains besides the steps."""

    gradmedic_version: str
    """Version of gradmedic that wrote the file."""
    framework: str | None
    """Framework and its version."""
    layers: Annotated[list[Layer], msgspec.Meta(max_length=MOST_LAYERS)]
    """The layers of the run, with hashed names."""
    training: Training | None
    """Facts about the training."""
    statistics: list[str]
    """The statistics that every sampled step carries."""
    muted_detectors: list[str]
    """Ids of detectors whose findings are hidden."""
    verdict: RecordedVerdict
    """The diagnosis that the service gave."""
    history: list[VerdictChange]
    """Every change of the diagnosis that the service gave, the oldest first."""
    review: RecordedReview | None
    """A user's review of the verdict."""
    guard_actions: Annotated[list[RecordedGuard], msgspec.Meta(max_length=MOST_GUARDS)] = field(default_factory=list)
    """The newest actions of the guards of the run, the newest first. Older files have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingEnd:
    """The last frame of a recording."""

    steps: int
    """Number of steps in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A recording, and its diagnosis by the version of gradmedic that is installed."""

    header: RecordingHeader
    """What the recording contains besides the steps."""
    diagnosis: DiagnosisAtStep
    """The diagnosis."""
    history: list[VerdictChange]
    """Every change of the diagnosis, the oldest first."""


class RecordingWriter:
    """Writes a recording block by block. `close` ends the file; a file without its end is refused by readers.

    Args:
        file: open for writing bytes.
        header: what the recording contains besides the steps.

    Raises:
        RecordingError: the header or a block is larger than a recording may have it.
    """

    def __init__(self, file: BinaryIO, header: RecordingHeader) -> None:
        self._file = file
        self._steps = 0
        file.write(MAGIC + bytes([FORMAT_VERSION]))
        self._write(_HEADER, header)

    def add(self, block: BlockArrays) -> None:
        """Write the next steps."""
        self._write(_BLOCK, _shuffle_block(pack_block(block)))
        self._steps += len(block.steps)

    def close(self) -> None:
        """Write the end of the file."""
        self._write(_END, RecordingEnd(steps=self._steps))

    def _write(self, kind: bytes, content: Any) -> None:
        raw = msgspec.msgpack.encode(content)
        if len(raw) > MOST_FRAME_BYTES[kind]:
            raise RecordingError(f"a part has {len(raw)} bytes; at most {MOST_FRAME_BYTES[kind]} are allowed")
        data = zlib.compress(raw, _COMPRESSION_LEVEL)
        lengths = len(data).to_bytes(4, "little") + len(raw).to_bytes(4, "little")
        self._file.write(kind + lengths + data)


class RecordingReader:
    """Reads a recording block by block.

    Args:
        path: the file.

    Raises:
        RecordingError: the file cannot be opened, is no recording, is damaged, or is too large.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._bytes = 0
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise RecordingError(f"{path} cannot be read: {error.strerror}") from None
        try:
            self.header = self._read_header()
            """What the recording contains besides the steps."""
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> RecordingReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def read_blocks(self) -> Iterator[BlockArrays]:
        """Yield the steps, block by block. Raises RecordingError, also if the file ends too early."""
        steps, last_step = 0, -1
        while True:
            kind, raw = self._read_frame()
            if kind == _END:
                end = self._decode(raw, RecordingEnd)
                if end.steps != steps or self._file.read(1):
                    raise self._error(f"is damaged: {steps} steps were read, and its end names {end.steps}")
                return
            if kind != _BLOCK:
                raise self._error("is damaged: it has a second header")
            block = self._unpack(self._decode(raw, PackedBlock))
            if block.steps[0] <= last_step:
                raise self._error(f"is damaged: step {block.steps[0]} comes after step {last_step}")
            steps, last_step = steps + len(block.steps), int(block.steps[-1])
            yield block

    def _read_header(self) -> RecordingHeader:
        start = self._file.read(len(MAGIC) + 1)
        if start[: len(MAGIC)] != MAGIC:
            raise self._error("is not a recording of gradmedic")
        if start[len(MAGIC) :] != bytes([FORMAT_VERSION]):
            version = start[len(MAGIC)] if len(start) > len(MAGIC) else "missing"
            raise self._error(f"has format version {version}; this gradmedic reads version {FORMAT_VERSION}")
        kind, raw = self._read_frame()
        if kind != _HEADER:
            raise self._error("is damaged: it does not begin with a header")
        header = self._decode(raw, RecordingHeader)
        self._check_names("statistic", header.statistics, STATISTICS)
        return header

    def _read_frame(self) -> tuple[bytes, bytes]:
        prefix = self._file.read(_PREFIX_BYTES)
        if len(prefix) < _PREFIX_BYTES:
            raise self._error("is damaged: it ends too early")
        length, raw_length = (int.from_bytes(prefix[start : start + 4], "little") for start in (1, 5))
        self._bytes += raw_length
        most = MOST_FRAME_BYTES.get(prefix[:1])
        if most is None:
            raise self._error("is damaged: it has a part of no known kind")
        if max(length, raw_length) > most:
            raise self._error(f"has a part of {max(length, raw_length)} bytes; at most {most} are allowed")
        if self._bytes > MOST_BYTES:
            raise self._error(f"is larger than {MOST_BYTES} bytes once decompressed")
        data = self._file.read(length)
        if len(data) < length:
            raise self._error("is damaged: it ends too early")
        return prefix[:1], self._decompress(data, raw_length)

    def _decompress(self, data: bytes, raw_length: int) -> bytes:
        decompressor = zlib.decompressobj()
        try:
            raw = decompressor.decompress(data, raw_length + 1)
        except zlib.error:
            raise self._error("is damaged: a part cannot be decompressed") from None
        if len(raw) != raw_length or not decompressor.eof or decompressor.unused_data:
            raise self._error("is damaged: a part has another length than it names")
        return raw

    def _decode(self, raw: bytes, type_: type[T]) -> T:
        try:
            return msgspec.msgpack.decode(raw, type=type_)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise self._error(f"is damaged: {error}") from None

    def _unpack(self, packed: PackedBlock) -> BlockArrays:
        header = self.header
        if packed.layers != len(header.layers):
            raise self._error(f"is damaged: a block has {packed.layers} layers, and the run {len(header.layers)}")
        if list(packed.statistics) != header.statistics:
            raise self._error("is damaged: a block has other statistics than the run")
        self._check_names("series", packed.series, SERIES)
        try:
            return unpack_block(_unshuffle_block(packed))
        except PackedBlockError as error:
            raise self._error(f"is damaged: {error}") from None

    def _check_names(self, kind: str, names: Any, known: tuple[str, ...]) -> None:
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None:
            raise self._error(f"has the {kind} {unknown[:80]!r}, which this gradmedic does not have")

    def _error(self, message: str) -> RecordingError:
        return RecordingError(f"{self._name} {message}")


def _shuffle_block(packed: PackedBlock) -> PackedBlock:
    return _change_bytes(packed, _shuffle)


def _unshuffle_block(packed: PackedBlock) -> PackedBlock:
    return _change_bytes(packed, _unshuffle)


def _change_bytes(packed: PackedBlock, change: Any) -> PackedBlock:
    def change_series(parts: Any) -> Any:
        return {name: replace(part, values=change(part.values, _INT64_BYTES)) for name, part in parts.items()}

    return replace(
        packed,
        steps=change(packed.steps, _INT64_BYTES),
        statistics={name: change(data, _FLOAT32_BYTES) for name, data in packed.statistics.items()},
        series=change_series(packed.series),
        metrics=change_series(packed.metrics),
    )


def _shuffle(data: bytes, size: int) -> bytes:
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, size).T.tobytes()


def _unshuffle(data: bytes, size: int) -> bytes:
    """Undo `_shuffle`. Bytes of a wrong length stay as they are; `unpack_block` refuses them."""
    if len(data) % size:
        return data
    return np.frombuffer(data, dtype=np.uint8).reshape(size, -1).T.tobytes()
