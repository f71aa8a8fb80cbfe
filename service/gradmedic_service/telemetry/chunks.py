"""Chunks: the bytes of a block, that is, of consecutive steps of a run.

A chunk is a small header and sections that are compressed one by one: the frame (steps, masks), the series of the
steps, and one section for each statistic, in which the values of a layer are neighbours. Reading one statistic
decompresses that section alone.

    header    counts, names, lengths of the sections (`codec` describes the framing)
    sections  zstd: frame, series, statistics[0], statistics[1], ...

A chunk of a few steps is folded into a longer one soon, so its sections are zstd frames that compress nothing. A reader
sees no difference.

The functions are pure. NaN and the infinities come back bit by bit as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from gradmedic_diagnosis import Block, StepSeries
from gradmedic_service.telemetry.codec import (
    CorruptChunk,
    compress,
    decompress,
    join_sections,
    pack_flags,
    packed_length,
    shuffle_bytes,
    shuffle_each,
    split_sections,
    store,
    unpack_flags,
    unshuffle_bytes,
    unshuffle_each,
)

FORMAT_VERSION = 1
COMPRESSED_STEPS = 8
"""Number of steps from which on a chunk is compressed. Seven steps of recorded statistics would take 2.3 bytes a value
in place of 4, but they are folded into a longer chunk soon, and compressing them costs more than storing them."""


class _Header(msgspec.Struct, array_like=True, frozen=True):
    step_count: int
    sampled_count: int
    layer_count: int
    first_step: int
    is_all_present: bool
    statistics: tuple[str, ...]
    series: tuple[str, ...]
    metrics: tuple[str, ...]
    section_lengths: tuple[int, ...]


def encode_chunk(block: Block, *, is_compressed: bool | None = None) -> bytes:
    """Return a block as the bytes of a chunk; by default, it is compressed from `COMPRESSED_STEPS` steps on."""
    if is_compressed is None:
        is_compressed = len(block) >= COMPRESSED_STEPS
    pack = compress if is_compressed else store
    sampled_count, layer_count = block.present.shape
    is_all_present = bool(block.present.all())
    all_series = [*block.series.values(), *block.metrics.values()]
    by_statistic = block.values.transpose(2, 1, 0).astype("<f4", copy=False)
    parts = [_encode_frame(block, is_all_present), _encode_series(all_series), *shuffle_each(by_statistic)]
    sections = [pack(part) for part in parts]
    header = _Header(
        step_count=len(block),
        sampled_count=sampled_count,
        layer_count=layer_count,
        first_step=int(block.steps[0]),
        is_all_present=is_all_present,
        statistics=block.statistics,
        series=tuple(block.series),
        metrics=tuple(block.metrics),
        section_lengths=tuple(map(len, sections)),
    )
    return join_sections(FORMAT_VERSION, header, sections)


def decode_chunk(data: bytes) -> Block:
    """Return the block of a chunk. Raises CorruptChunk."""
    return Chunk(data).to_block()


class Chunk:
    """The parts of a chunk; each is decompressed when it is read. Raises CorruptChunk."""

    def __init__(self, data: bytes) -> None:
        self._header, self._sections = split_sections(FORMAT_VERSION, data, _Header)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics."""
        return self._header.statistics

    def count_values(self, layer_count: int) -> int:
        """Return the number of values of the chunk's steps in a run of `layer_count` layers, without reading them."""
        header = self._header
        per_step = len(header.series) + len(header.metrics)
        return header.sampled_count * layer_count * len(header.statistics) + header.step_count * per_step

    @property
    def steps(self) -> NDArray[np.int64]:
        """The steps, ascending."""
        return self._frame[0]

    @property
    def sampled(self) -> NDArray[np.bool_]:
        """`[step]`: whether the step carries statistics."""
        return self._frame[1]

    @property
    def skipped(self) -> NDArray[np.bool_]:
        """`[step]`: whether a loss scaler skipped the step."""
        return self._frame[2]

    @property
    def present(self) -> NDArray[np.bool_]:
        """`[layer, sampled step]`: whether an optimizer touched the layer."""
        return self._frame[3]

    @property
    def layer_count(self) -> int:
        """Number of layers that the run had."""
        return self._header.layer_count

    @property
    def series_names(self) -> tuple[str, ...]:
        """Names of the series of the steps and of the metrics."""
        return (*self._header.series, *self._header.metrics)

    def read_statistic(self, name: str) -> NDArray[np.float32]:
        """Return a statistic as `[layer, sampled step]`; 0 where the layer was absent."""
        header = self._header
        section = self._sections[2 + header.statistics.index(name)]
        shape = (header.layer_count, header.sampled_count)
        return unshuffle_bytes(decompress(section), np.dtype("<f4"), shape)

    @property
    def series(self) -> Mapping[str, StepSeries]:
        """The series of the steps by name: loss, learning rate, ..."""
        return self._all_series[0]

    @property
    def metrics(self) -> Mapping[str, StepSeries]:
        """The user's metrics by name."""
        return self._all_series[1]

    def to_block(self) -> Block:
        """Return the whole chunk as a block."""
        header = self._header
        parts = [decompress(section) for section in self._sections[2:]]
        by_statistic = unshuffle_each(parts, np.dtype("<f4"), (header.layer_count, header.sampled_count))
        return Block(
            steps=self.steps,
            sampled=self.sampled,
            skipped=self.skipped,
            statistics=header.statistics,
            values=by_statistic.transpose(2, 1, 0),
            present=np.ascontiguousarray(self.present.T),
            series=self.series,
            metrics=self.metrics,
        )

    @cached_property
    def _frame(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        header = self._header
        data = decompress(self._sections[0])
        steps_length = header.step_count * 8
        flags_length = packed_length(header.step_count)
        present_shape = (header.layer_count, header.sampled_count)
        present_length = 0 if header.is_all_present else packed_length(header.layer_count * header.sampled_count)
        if len(data) != steps_length + 2 * flags_length + present_length:
            raise CorruptChunk("the frame has the wrong length")
        increments = unshuffle_bytes(data[:steps_length], np.dtype("<i8"), (header.step_count,))
        flags = data[steps_length:]
        if header.is_all_present:
            present = np.ones(present_shape, dtype=np.bool_)
        else:
            present = unpack_flags(flags[2 * flags_length :], header.layer_count * header.sampled_count)
        return (
            np.cumsum(increments, dtype=np.int64) + header.first_step,
            unpack_flags(flags[:flags_length], header.step_count),
            unpack_flags(flags[flags_length : 2 * flags_length], header.step_count),
            present.reshape(present_shape),
        )

    @cached_property
    def _all_series(self) -> tuple[dict[str, StepSeries], dict[str, StepSeries]]:
        header = self._header
        count, length = len(header.series) + len(header.metrics), header.step_count
        data = decompress(self._sections[1])
        if len(data) != count * length * 8 + packed_length(count * length):
            raise CorruptChunk("the series have the wrong length")
        values = unshuffle_bytes(data[: count * length * 8], np.dtype("<f8"), (count, length))
        present = unpack_flags(data[count * length * 8 :], count * length).reshape(count, length)
        all_series = [StepSeries(row, mask) for row, mask in zip(values, present, strict=True)]
        metrics_start = len(header.series)
        return (
            dict(zip(header.series, all_series[:metrics_start], strict=True)),
            dict(zip(header.metrics, all_series[metrics_start:], strict=True)),
        )


def concatenate_blocks(blocks: Sequence[Block]) -> Block:
    """Return blocks of one run as one block, in order.

    A layer or series that a block lacks is absent in its steps.
    """
    layer_count = max(block.present.shape[1] for block in blocks)
    widened = [widen_block(block, layer_count) for block in blocks]
    return Block(
        steps=np.concatenate([block.steps for block in blocks]),
        sampled=np.concatenate([block.sampled for block in blocks]),
        skipped=np.concatenate([block.skipped for block in blocks]),
        statistics=blocks[0].statistics,
        values=np.concatenate([block.values for block in widened]),
        present=np.concatenate([block.present for block in widened]),
        series=_concatenate_series([block.series for block in blocks], [len(block) for block in blocks]),
        metrics=_concatenate_series([block.metrics for block in blocks], [len(block) for block in blocks]),
    )


def widen_block(block: Block, layer_count: int) -> Block:
    """Return the block with `layer_count` layers; the added ones are absent in every step."""
    missing = layer_count - block.present.shape[1]
    if missing == 0:
        return block
    return Block(
        steps=block.steps,
        sampled=block.sampled,
        skipped=block.skipped,
        statistics=block.statistics,
        values=np.pad(block.values, ((0, 0), (0, missing), (0, 0))),
        present=np.pad(block.present, ((0, 0), (0, missing))),
        series=block.series,
        metrics=block.metrics,
    )


def _concatenate_series(parts: Sequence[Mapping[str, StepSeries]], lengths: Sequence[int]) -> dict[str, StepSeries]:
    absent = [StepSeries(np.zeros(length), np.zeros(length, dtype=np.bool_)) for length in lengths]
    result: dict[str, StepSeries] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        pieces = [part.get(name, absence) for part, absence in zip(parts, absent, strict=True)]
        result[name] = StepSeries(
            np.concatenate([piece.values for piece in pieces]), np.concatenate([piece.present for piece in pieces])
        )
    return result


def _encode_frame(block: Block, is_all_present: bool) -> bytes:
    increments = np.zeros(len(block), dtype="<i8")
    np.subtract(block.steps[1:], block.steps[:-1], out=increments[1:])
    parts = [shuffle_bytes(increments), pack_flags(block.sampled), pack_flags(block.skipped)]
    if not is_all_present:
        parts.append(pack_flags(block.present.T))
    return b"".join(parts)


def _encode_series(all_series: Sequence[StepSeries]) -> bytes:
    if not all_series:
        return b""
    values = np.array([series.values for series in all_series], dtype="<f8")
    return shuffle_bytes(values) + pack_flags(np.array([series.present for series in all_series], dtype=np.bool_))
