"""Rollups: buckets of many steps, at several resolutions.

A bucket holds the aggregates of consecutive steps: minimum, mean and maximum of the finite values, and the numbers of
all, of non-finite and of infinite values. Level 0 are the full chunks. A rollup is a row of a level above 0: it has one
bucket for each of `ROLLUP_FACTOR` rows of the level below. Counts, minimum and maximum are exact at every level; the
mean of a statistic is stored as float32, like the values themselves. Infinite values are rare: a section without any
leaves out their counts.

    header    names, shape (`codec` describes the framing)
    sections  zstd: counts, series, statistics[0], statistics[1], ...

The functions are pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gradmedic_diagnosis import Block
from gradmedic_service.telemetry.codec import (
    CorruptChunk,
    compress,
    decompress,
    join_sections,
    shuffle_bytes,
    split_sections,
    unshuffle_bytes,
)

FORMAT_VERSION = 1
ROLLUP_FACTOR = 16
"""Number of rows of a level that one row of the next level covers.

Reading n points reads at most n times this many buckets. A bucket of level 1 covers at least 50 steps, so that all
levels together add a tenth to the stored bytes.
"""

AGGREGATE_NAMES = ("low", "mean", "high", "count", "nonfinite", "infinite")
"""Names of the fields of `Aggregates`."""


@dataclass(frozen=True, slots=True, eq=False)
class Aggregates:
    """Aggregates of each bucket, the last axis; `low`, `mean` and `high` are 0 where no value is finite."""

    low: NDArray[Any]
    mean: NDArray[Any]
    high: NDArray[Any]
    count: NDArray[np.uint32]
    nonfinite: NDArray[np.uint32]
    infinite: NDArray[np.uint32]
    """Number of infinite values; `nonfinite` counts them too, the rest of it is NaN."""

    def as_row(self) -> Aggregates:
        """Return the aggregates of one series as `[1, bucket]`."""
        return Aggregates(*(getattr(self, name)[None] for name in AGGREGATE_NAMES))

    def merge(self) -> Aggregates:
        """Return the aggregates of all buckets together, as one bucket."""
        finite = (self.count - self.nonfinite).astype(np.float64)
        is_finite = finite > 0
        total = finite.sum(axis=-1, keepdims=True)
        weights = np.divide(finite, total, out=np.zeros_like(finite), where=total > 0)
        low = np.where(is_finite, self.low, np.inf).min(axis=-1, keepdims=True, initial=np.inf)
        high = np.where(is_finite, self.high, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
        # Weight before summing, so that numbers near the largest do not overflow.
        mean = (self.mean * weights).sum(axis=-1, keepdims=True)
        return Aggregates(
            low=np.where(total > 0, low, 0).astype(self.low.dtype),
            mean=np.where(total > 0, np.clip(mean, low, high), 0).astype(self.mean.dtype),
            high=np.where(total > 0, high, 0).astype(self.high.dtype),
            count=self.count.sum(axis=-1, keepdims=True, dtype=np.uint32),
            nonfinite=self.nonfinite.sum(axis=-1, keepdims=True, dtype=np.uint32),
            infinite=self.infinite.sum(axis=-1, keepdims=True, dtype=np.uint32),
        )


def concatenate_aggregates(parts: Sequence[Aggregates]) -> Aggregates:
    """Return the buckets of all parts, in order."""
    return Aggregates(*(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in AGGREGATE_NAMES))


class _Header(msgspec.Struct, array_like=True, frozen=True):
    layer_count: int
    first_step: tuple[int, ...]
    last_step: tuple[int, ...]
    statistics: tuple[str, ...]
    series: tuple[str, ...]
    """Names of the series of the steps and of the metrics."""
    section_lengths: tuple[int, ...]


class Rollup:
    """The parts of a stored rollup; each is decompressed when it is read. Raises CorruptChunk."""

    def __init__(self, data: bytes) -> None:
        self._header, self._sections = split_sections(FORMAT_VERSION, data, _Header)
        self.first_step = np.array(self._header.first_step, dtype=np.int64)
        """First step of each bucket."""
        self.last_step = np.array(self._header.last_step, dtype=np.int64)
        """Last step of each bucket."""
        self.layer_count = self._header.layer_count
        self.statistics = self._header.statistics
        self.series_names = self._header.series

    def read_statistic(self, name: str) -> Aggregates:
        """Return the aggregates of a statistic as `[layer, bucket]`."""
        shape = (self.layer_count, len(self.first_step))
        data = decompress(self._sections[2 + self.statistics.index(name)])
        length = 4 * shape[0] * shape[1]
        if len(data) not in (4 * length, 5 * length):
            raise CorruptChunk("a section has the wrong length")
        numbers = unshuffle_bytes(data[: 3 * length], np.dtype("<f4"), (3, *shape))
        nonfinite = unshuffle_bytes(data[3 * length : 4 * length], np.dtype("<u4"), shape)
        infinite = np.zeros_like(nonfinite)
        if len(data) > 4 * length:
            infinite = unshuffle_bytes(data[4 * length :], np.dtype("<u4"), shape)
        return Aggregates(numbers[0], numbers[1], numbers[2], self._count, nonfinite, infinite)

    @cached_property
    def series(self) -> Mapping[str, Aggregates]:
        """Aggregates of each series and metric, as `[bucket]`."""
        names = self._header.series
        shape = (len(names), len(self.first_step))
        data = decompress(self._sections[1])
        counts_start = 3 * 8 * shape[0] * shape[1]
        numbers = unshuffle_bytes(data[:counts_start], np.dtype("<f8"), (3, *shape))
        stored_counts = (len(data) - counts_start) // (4 * shape[0] * shape[1]) if names else 2
        counts = unshuffle_bytes(data[counts_start:], np.dtype("<u4"), (stored_counts, *shape))
        if stored_counts == 2:  # no value is infinite
            counts = np.concatenate([counts, np.zeros_like(counts[:1])])
        return {
            name: Aggregates(*(part[row] for part in numbers), *(part[row] for part in counts))
            for row, name in enumerate(names)
        }

    @cached_property
    def _count(self) -> NDArray[np.uint32]:
        shape = (self.layer_count, len(self.first_step))
        return unshuffle_bytes(decompress(self._sections[0]), np.dtype("<u4"), shape)


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """Aggregates of the steps of one full chunk, or of one whole rollup of the level below."""

    first_step: int
    last_step: int
    statistics: tuple[str, ...]
    values: Aggregates
    """Aggregates as `[statistic, layer, 1]`; `count` is `[layer, 1]`."""
    series: Mapping[str, Aggregates]
    """Aggregates of each series and metric, as `[1]`."""


def bucket_of_block(block: Block) -> Bucket:
    """Return the steps of a block as one bucket."""
    all_series = {**block.series, **block.metrics}
    return Bucket(
        int(block.steps[0]),
        int(block.steps[-1]),
        block.statistics,
        _aggregate(block.values.transpose(2, 1, 0), block.present.T),
        {name: _aggregate(series.values, series.present) for name, series in all_series.items()},
    )


def bucket_of_rollup(rollup: Rollup) -> Bucket:
    """Return the buckets of a rollup as one bucket."""
    by_statistic = [rollup.read_statistic(name) for name in rollup.statistics]
    low, mean, high, nonfinite, infinite = (
        np.stack([getattr(aggregates, name) for aggregates in by_statistic])
        for name in AGGREGATE_NAMES
        if name != "count"
    )
    return Bucket(
        int(rollup.first_step[0]),
        int(rollup.last_step[-1]),
        rollup.statistics,
        Aggregates(low, mean, high, by_statistic[0].count, nonfinite, infinite).merge(),
        {name: aggregates.merge() for name, aggregates in rollup.series.items()},
    )


def _aggregate(values: NDArray[Any], present: NDArray[np.bool_]) -> Aggregates:
    """Return the values along the last axis as one bucket; the fast path needs all to be present and finite."""
    if not (values.shape[-1] and present.all() and np.isfinite(values).all()):
        return aggregate_each(values, present).merge()
    low, high = values.min(axis=-1, keepdims=True), values.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = values.mean(axis=-1, keepdims=True, dtype=np.float64)
    if not np.isfinite(mean).all():
        return aggregate_each(values, present).merge()
    count = np.full((*present.shape[:-1], 1), present.shape[-1], dtype=np.uint32)
    nonfinite = np.zeros(low.shape, dtype=np.uint32)
    return Aggregates(low, np.clip(mean, low, high).astype(values.dtype), high, count, nonfinite, nonfinite)


def aggregate_each(values: NDArray[Any], present: NDArray[np.bool_]) -> Aggregates:
    """Return each value as a bucket of its own."""
    is_finite = present & np.isfinite(values)
    finite = np.where(is_finite, values, 0)
    nonfinite = (present & ~is_finite).astype(np.uint32)
    infinite = (present & np.isinf(values)).astype(np.uint32) if nonfinite.any() else nonfinite
    return Aggregates(finite, finite, finite, present.astype(np.uint32), nonfinite, infinite)


def encode_rollup(buckets: Sequence[Bucket]) -> bytes:
    """Return consecutive buckets as the bytes of a rollup. A layer or series that a bucket lacks has no value in it."""
    statistics = buckets[0].statistics
    layer_count = max(len(bucket.values.count) for bucket in buckets)
    shape = (len(statistics), layer_count, len(buckets))
    count = np.zeros(shape[1:], dtype="<u4")
    nonfinite, infinite = np.zeros(shape, dtype="<u4"), np.zeros(shape, dtype="<u4")
    numbers = np.zeros((3, *shape), dtype="<f4")
    for index, bucket in enumerate(buckets):
        values = bucket.values
        layers = len(values.count)
        count[:layers, index] = values.count[:, 0]
        nonfinite[:, :layers, index] = values.nonfinite[..., 0]
        infinite[:, :layers, index] = values.infinite[..., 0]
        for row, number in enumerate((values.low, values.mean, values.high)):
            numbers[row, :, :layers, index] = number[..., 0]
    names = tuple(dict.fromkeys(name for bucket in buckets for name in bucket.series))
    no_number, no_count = np.zeros(1), np.zeros(1, dtype=np.uint32)
    empty = Aggregates(no_number, no_number, no_number, no_count, no_count, no_count)
    series = [[bucket.series.get(name, empty) for bucket in buckets] for name in names]
    sections = [compress(shuffle_bytes(count)), compress(_encode_series(series))]
    sections += [
        compress(shuffle_bytes(numbers[:, index]) + shuffle_bytes(nonfinite[index]) + _shuffle_if_any(infinite[index]))
        for index in range(len(statistics))
    ]
    header = _Header(
        layer_count=layer_count,
        first_step=tuple(bucket.first_step for bucket in buckets),
        last_step=tuple(bucket.last_step for bucket in buckets),
        statistics=statistics,
        series=names,
        section_lengths=tuple(map(len, sections)),
    )
    return join_sections(FORMAT_VERSION, header, sections)


def _encode_series(series: Sequence[Sequence[Aggregates]]) -> bytes:
    if not series:
        return b""
    table = np.array(
        [[[getattr(bucket, name)[0] for bucket in buckets] for buckets in series] for name in AGGREGATE_NAMES],
        dtype="<f8",
    )
    counts = table[3:].astype("<u4")
    return shuffle_bytes(table[:3]) + (shuffle_bytes(counts) if counts[2].any() else shuffle_bytes(counts[:2]))


def _shuffle_if_any(counts: NDArray[np.uint32]) -> bytes:
    return shuffle_bytes(counts) if counts.any() else b""
