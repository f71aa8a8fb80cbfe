"""Chunks: every block is read back bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gradmedic_diagnosis import Block, StepSeries
from gradmedic_service.telemetry.chunks import Chunk, concatenate_blocks, decode_chunk, encode_chunk, widen_block
from gradmedic_service.telemetry.codec import STORED_LENGTH, CorruptChunk, decompress, store

SERIES_NAMES = ("loss", "learning_rate")
METRIC_NAMES = ("accuracy", "π")
STATISTICS = ("grad_norm", "weight_norm", "nonfinite_count")


def step_series(length: int) -> st.SearchStrategy[StepSeries]:
    """Generate a series with any numbers, any of them absent."""
    return st.builds(
        lambda values, present: StepSeries(np.where(present, values, 0.0), present),
        arrays.arrays(np.float64, length),
        arrays.arrays(np.bool_, length),
    )


@st.composite
def blocks(draw: st.DrawFn, statistics: tuple[str, ...] | None = None) -> Block:
    """Generate blocks of any size, with NaN, infinities, denormals and absent layers."""
    steps = sorted(draw(st.sets(st.integers(0, 2**53), min_size=1, max_size=20)))
    layers = draw(st.integers(0, 5))
    sampled = draw(arrays.arrays(np.bool_, len(steps)))
    rows = int(np.count_nonzero(sampled))
    names = statistics or STATISTICS[: draw(st.integers(1, 3))]
    present = draw(arrays.arrays(np.bool_, (rows, layers)))
    values = draw(arrays.arrays(np.float32, (rows, layers, len(names))))
    return Block(
        steps=np.array(steps, dtype=np.int64),
        sampled=sampled,
        skipped=draw(arrays.arrays(np.bool_, len(steps))),
        statistics=names,
        values=np.where(present[:, :, None], values, np.float32(0)),
        present=present,
        series={name: draw(step_series(len(steps))) for name in draw(st.sets(st.sampled_from(SERIES_NAMES)))},
        metrics={name: draw(step_series(len(steps))) for name in draw(st.sets(st.sampled_from(METRIC_NAMES)))},
    )


def assert_same(left: Block, right: Block) -> None:
    """Check that two blocks are equal, NaN included."""
    assert left.statistics == right.statistics
    for name in ("steps", "sampled", "skipped", "values", "present"):
        left_array, right_array = getattr(left, name), getattr(right, name)
        assert left_array.dtype == right_array.dtype
        np.testing.assert_array_equal(left_array, right_array)
    for left_series, right_series in ((left.series, right.series), (left.metrics, right.metrics)):
        assert left_series.keys() == right_series.keys()
        for name in left_series:
            np.testing.assert_array_equal(left_series[name].values, right_series[name].values)
            np.testing.assert_array_equal(left_series[name].present, right_series[name].present)


@given(blocks())
def test_a_block_is_read_back_unchanged(block: Block) -> None:
    """A block is read back unchanged, with NaN, infinities and absent layers."""
    assert_same(decode_chunk(encode_chunk(block)), block)


@given(blocks(), st.booleans())
def test_a_block_is_read_back_whether_or_not_it_is_compressed(block: Block, is_compressed: bool) -> None:
    """A chunk that compresses nothing and one that does hold the same block."""
    assert_same(decode_chunk(encode_chunk(block, is_compressed=is_compressed)), block)


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 65_535, 65_536, 65_537, 300_000])
def test_stored_bytes_are_read_as_a_zstd_frame(length: int) -> None:
    """Bytes of any length that `store` frames are read back by zstd; up to `STORED_LENGTH` they stay as they are."""
    data = bytes(range(251)) * (length // 251 + 1)
    stored = store(data[:length])
    assert decompress(stored) == data[:length]
    assert (data[:length] in stored) == (length <= STORED_LENGTH)


@given(blocks())
def test_one_statistic_is_read_alone(block: Block) -> None:
    """A statistic that is read alone equals the one of the block, with layers first."""
    chunk = Chunk(encode_chunk(block))
    for index, name in enumerate(block.statistics):
        np.testing.assert_array_equal(chunk.read_statistic(name), block.values[:, :, index].T)
    np.testing.assert_array_equal(chunk.present, block.present.T)


@given(blocks(), st.data())
def test_parts_of_a_block_concatenate_to_it(block: Block, data: st.DataObject) -> None:
    """However a block is cut, its parts concatenate to it."""
    cut = data.draw(st.integers(1, len(block)))
    pieces = [piece for piece in (block.cut(0, cut), block.cut(cut, len(block))) if len(piece)]
    assert_same(concatenate_blocks(pieces), block)


@given(blocks(statistics=STATISTICS), blocks(statistics=STATISTICS))
def test_layers_of_only_one_block_are_absent_in_the_other(first: Block, second: Block) -> None:
    """After concatenation, layers and series that only one block has are absent in the steps of the other."""
    joined = concatenate_blocks([first, second])
    layers = max(first.present.shape[1], second.present.shape[1])
    split = first.present.shape[0]
    assert joined.present.shape == (split + second.present.shape[0], layers)
    assert not joined.present[:split, first.present.shape[1] :].any()
    np.testing.assert_array_equal(joined.values[split:, : second.present.shape[1]], second.values)
    assert joined.metrics.keys() == first.metrics.keys() | second.metrics.keys()
    for name, series in joined.metrics.items():
        expected = first.metrics[name].present if name in first.metrics else np.zeros(len(first), dtype=np.bool_)
        np.testing.assert_array_equal(series.present[: len(first)], expected)
    assert_same(decode_chunk(encode_chunk(joined)), joined)


@given(blocks(), st.data())
def test_truncated_chunks_are_refused(block: Block, data: st.DataObject) -> None:
    """Truncated bytes raise CorruptChunk."""
    encoded = encode_chunk(block)
    length = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(CorruptChunk):
        decode_chunk(encoded[:length])


def test_chunks_of_another_version_are_refused() -> None:
    """A chunk of another format version raises CorruptChunk with that version."""
    with pytest.raises(CorruptChunk, match="version 9"):
        Chunk(b"\x09rest")


def test_drifting_norms_compress_to_25_bits() -> None:
    """Of the 32 bits of a noisy norm, 23 are noise; sign and exponent take less than two bits."""
    random = np.random.default_rng(0)
    start = random.lognormal(sigma=3, size=(1, 100, 8))
    values = (start * np.exp(np.cumsum(random.normal(scale=0.02, size=(50, 100, 8)), axis=0))).astype(np.float32)
    block = Block(
        steps=np.arange(50, dtype=np.int64),
        sampled=np.ones(50, dtype=np.bool_),
        skipped=np.zeros(50, dtype=np.bool_),
        statistics=tuple("abcdefgh"),
        values=values,
        present=np.ones((50, 100), dtype=np.bool_),
    )
    assert 8 * len(encode_chunk(block)) / values.size < 23 + 2


def test_a_block_with_every_layer_is_not_copied() -> None:
    """Widening a block to the number of layers that it has returns the same object."""
    block = decode_chunk(encode_chunk(smallest_block()))
    assert widen_block(block, block.present.shape[1]) is block


def smallest_block() -> Block:
    """Return a block of one step, one layer and one statistic."""
    return Block(
        steps=np.array([7], dtype=np.int64),
        sampled=np.array([True]),
        skipped=np.array([False]),
        statistics=("grad_norm",),
        values=np.ones((1, 1, 1), dtype=np.float32),
        present=np.ones((1, 1), dtype=np.bool_),
    )
