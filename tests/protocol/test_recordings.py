"""The file format of recordings: what is written is read, and a damaged or huge file is refused with a clear error."""

from __future__ import annotations

import io
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmedic.protocol import recordings
from gradmedic.protocol.packed_blocks import BlockArrays, Values
from gradmedic.protocol.recordings import (
    FORMAT_VERSION,
    MAGIC,
    RecordedVerdict,
    RecordingError,
    RecordingHeader,
    RecordingReader,
    RecordingWriter,
)
from gradmedic.protocol.runs import Layer

HEADER = RecordingHeader(
    gradmedic_version="0.1.0", framework=None, layers=[Layer(name="a"), Layer(name="b")], training=None,
    statistics=["grad_norm"], muted_detectors=[], history=[], review=None,
    verdict=RecordedVerdict(
        step=None, verdict="undetermined", learning="unknown", level="unknown", score=0.0, since_step=None
    ),
)  # fmt: skip


def block(first: int, count: int = 4) -> BlockArrays:
    """Return a block of two layers with odd values."""
    every = np.ones(count, dtype=np.bool_)
    values = np.resize(np.array([0.5, np.nan, np.inf], dtype=np.float32), (count, 2))
    return BlockArrays(
        steps=np.arange(first, first + count),
        sampled=every,
        skipped=~every,
        present=np.ones((count, 2), dtype=np.bool_),
        statistics={"grad_norm": values},
        series={"loss": Values(np.linspace(2.0, 1.0, count), every)},
        metrics={},
    )


def recorded(*blocks: BlockArrays, header: RecordingHeader = HEADER) -> bytes:
    """Return the bytes of a recording."""
    file = io.BytesIO()
    writer = RecordingWriter(file, header)
    for each in blocks:
        writer.add(each)
    writer.close()
    return file.getvalue()


def read(content: bytes, folder: Path) -> list[BlockArrays]:
    """Return the blocks of a recording with these bytes."""
    path = folder / "run.gradmedic"
    path.write_bytes(content)
    with RecordingReader(path) as reader:
        return list(reader.read_blocks())


def frame(kind: bytes, raw: bytes, raw_length: int | None = None) -> bytes:
    """Return a frame."""
    data = zlib.compress(raw)
    length = len(raw) if raw_length is None else raw_length
    return kind + len(data).to_bytes(4, "little") + length.to_bytes(4, "little") + data


START = MAGIC + bytes([FORMAT_VERSION])
GOOD = recorded(block(0), block(10))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Blocks are read one by one as they were written, with the header."""
    first, second = read(GOOD, tmp_path)
    assert np.array_equal(first.statistics["grad_norm"], block(0).statistics["grad_norm"], equal_nan=True)
    assert second.steps.tolist() == [10, 11, 12, 13]
    with RecordingReader(tmp_path / "run.gradmedic") as reader:
        assert reader.header == HEADER


@pytest.mark.parametrize("length", range(0, len(GOOD), 7))
def test_a_file_that_ends_too_early_is_refused(length: int, tmp_path: Path) -> None:
    """A file that was cut anywhere is refused, and the error names the file."""
    with pytest.raises(RecordingError, match=r"^run\.gradmedic "):
        read(GOOD[:length], tmp_path)


@settings(max_examples=200)
@given(position=st.integers(0, len(GOOD) - 1), change=st.integers(1, 255))
def test_a_changed_byte_is_refused(position: int, change: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file with one other byte is refused, or the byte changes no step: it never fails in another way."""
    content = bytearray(GOOD)
    content[position] ^= change
    try:
        blocks = read(bytes(content), tmp_path_factory.mktemp("changed"))
    except RecordingError:
        return
    assert [len(each.steps) for each in blocks] == [4, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 an npz", "is not a recording"),
        (MAGIC + b"\x09", "has format version 9; this gradmedic reads version 1"),
        (GOOD + b"x", "is damaged: 8 steps were read"),
        (START + frame(b"B", b"\x80"), "does not begin with a header"),
        (START + frame(b"H", b"\x81"), "is damaged"),
        (START + frame(b"H", msgspec.msgpack.encode({"layers": 3})), "is damaged: Expected `array`"),
        (START + frame(b"H", b"\x91" * 3000 + b"\xc0"), "is damaged"),
        (START + frame(b"H", b"\x80", raw_length=5), "another length"),
        (recorded(block(5), block(0)), "step 0 comes after step 8"),
        (recorded(replace(block(0), present=np.ones((4, 3), dtype=np.bool_))), "a block has 3 layers, and the run 2"),
        (recorded(replace(block(0), statistics={})), "other statistics"),
        (recorded(replace(block(0), series={"mood": Values(np.zeros(4), np.ones(4, np.bool_))})), "series 'mood'"),
        (recorded(replace(block(0), sampled=np.zeros(4, np.bool_))), "is damaged: present has 1 bytes"),
        (recorded(replace(block(0), steps=np.array([3, 2, 1, 0]))), "do not increase"),
        (recorded(replace(block(0), steps=np.array([-1, 2, 3, 4]))), "do not increase"),
        (recorded(header=replace(HEADER, statistics=["mood"])), "statistic 'mood'"),
        (recorded(header=replace(HEADER, layers=[Layer(name="a")] * 100_001)), "length <= 100000 - at `$.layers`"),
        (START + frame(b"X", b"\x80"), "a part of no known kind"),
        (GOOD + GOOD, "is damaged"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recording(content: bytes, message: str, tmp_path: Path) -> None:
    """Each kind of damage has an error that names the file and what is wrong."""
    with pytest.raises(RecordingError, match=r"^run\.gradmedic ") as caught:
        read(content, tmp_path)
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and a folder are refused with the reason."""
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(RecordingError, match=reason):
            RecordingReader(path)


def test_a_huge_part_is_refused_unread(tmp_path: Path) -> None:
    """A part that names more bytes than allowed is refused before memory is taken for it."""
    huge = START + b"H" + (2**32 - 1).to_bytes(4, "little") * 2
    with pytest.raises(RecordingError, match="has a part of 4294967295 bytes; at most 33554432 are allowed"):
        read(huge, tmp_path)


def test_a_part_that_no_reader_takes_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is too large for a frame is refused when it is written."""
    monkeypatch.setitem(recordings.MOST_FRAME_BYTES, b"B", 100)
    with pytest.raises(RecordingError, match=r"a part has [0-9]+ bytes; at most 100 are allowed"):
        recorded(block(0))


@pytest.mark.parametrize("field", ["layers", "statistics"])
def test_many_small_things_take_no_memory(field: str, tmp_path: Path) -> None:
    """A header of millions of layers, or a block of millions of statistics, is refused before they are built."""
    if field == "layers":
        many = b"\xdd" + (2_000_000).to_bytes(4, "big") + b"\x81\xa4name\xa1a" * 2_000_000
        content = START + frame(b"H", b"\x81\xa6layers" + many)
    else:
        many = (
            b"\xdf"
            + (2_000_000).to_bytes(4, "big")
            + b"".join(b"\xa3%03d\xc4\x00" % (n % 1000) for n in range(2_000_000))
        )
        content = START + frame(b"H", msgspec.msgpack.encode(HEADER)) + frame(b"B", b"\x81\xaastatistics" + many)
    tracemalloc.start()
    try:
        with pytest.raises(RecordingError, match=rf"length <= 100(000)? - at `\$.{field}`"):
            read(content, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """A part that decompresses to more than it names is refused without the memory for it."""
    bomb = START + frame(b"H", bytes(2**26), raw_length=100)
    tracemalloc.start()
    try:
        with pytest.raises(RecordingError, match="another length"):
            read(bomb, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_all_parts_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose parts are too large together is refused."""
    monkeypatch.setattr(recordings, "MOST_BYTES", 400)
    with pytest.raises(RecordingError, match="is larger than 400 bytes once decompressed"):
        read(recorded(*[block(first) for first in range(0, 400, 10)]), tmp_path)


def test_a_long_recording_takes_the_memory_of_a_block(tmp_path: Path) -> None:
    """Writing and reading a file of 200 blocks takes no more memory than a few blocks."""
    rng, count = np.random.default_rng(0), 1000
    values: Any = rng.normal(size=(count, 2)).astype(np.float32)
    tracemalloc.start()
    try:
        with (tmp_path / "long.gradmedic").open("wb") as file:
            writer = RecordingWriter(file, HEADER)
            for number in range(200):
                writer.add(replace(block(number * count, count), statistics={"grad_norm": values}))
            writer.close()
        with RecordingReader(tmp_path / "long.gradmedic") as reader:
            assert sum(len(each.steps) for each in reader.read_blocks()) == 200 * count
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert (tmp_path / "long.gradmedic").stat().st_size > 2**20
