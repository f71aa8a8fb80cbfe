"""Rollups: many steps as a few buckets, at several resolutions.

One idea: a rollup row stands for `FACTOR` rows of the level below it, with a bucket for each, and level 0 are the full
chunks. A bucket keeps what `buckets` shows: minimum, mean and maximum of the finite values, how many values there are,
how many of them are not finite, and how many of those infinite. Counts are exact at every level, so are minimum and
maximum; the mean of a statistic is kept as float32, like the values themselves. Infinite values are rare: a section
ends without their counts where it has none.

    header    names, shape (`packing` describes how it is framed)
    sections  zstd: frame, series, statistics[0], statistics[1], ...

Pure: chunks in, bytes out, and back.
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
    shuffled,
    split_sections,
    unshuffled,
)

FORMAT_VERSION = 1
FACTOR = 16
"""Rows that make one of the next level. A picture of n buckets reads at most n rows' worth of buckets times this, and a
bucket of level 1 stands for 50 steps and more: all levels together add a tenth to what is stored."""


PARTS = ("low", "mean", "high", "count", "nonfinite", "infinite")
"""The fields of `Extremes`."""


@dataclass(frozen=True, slots=True, eq=False)
class Extremes:
    """Numbers per bucket, the last axis; `low`, `mean` and `high` are 0 where nothing is finite."""

    low: NDArray[Any]
    mean: NDArray[Any]
    high: NDArray[Any]
    count: NDArray[np.uint32]
    nonfinite: NDArray[np.uint32]
    infinite: NDArray[np.uint32]
    """Of those that are not finite; the others are NaN."""

    def as_row(self) -> Extremes:
        """Return a single series as the only row of a table."""
        return Extremes(*(getattr(self, name)[None] for name in PARTS))

    def merged(self) -> Extremes:
        """Return all buckets as one."""
        finite = (self.count - self.nonfinite).astype(np.float64)
        is_finite = finite > 0
        total = finite.sum(axis=-1, keepdims=True)
        weights = np.divide(finite, total, out=np.zeros_like(finite), where=total > 0)
        low = np.where(is_finite, self.low, np.inf).min(axis=-1, keepdims=True, initial=np.inf)
        high = np.where(is_finite, self.high, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
        # Weights before the sum, so that numbers near the largest do not overflow.
        mean = (self.mean * weights).sum(axis=-1, keepdims=True)
        return Extremes(
            low=np.where(total > 0, low, 0).astype(self.low.dtype),
            mean=np.where(total > 0, np.clip(mean, low, high), 0).astype(self.mean.dtype),
            high=np.where(total > 0, high, 0).astype(self.high.dtype),
            count=self.count.sum(axis=-1, keepdims=True, dtype=np.uint32),
            nonfinite=self.nonfinite.sum(axis=-1, keepdims=True, dtype=np.uint32),
            infinite=self.infinite.sum(axis=-1, keepdims=True, dtype=np.uint32),
        )


def joined(parts: Sequence[Extremes]) -> Extremes:
    """Return the buckets of all, in order."""
    return Extremes(*(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in PARTS))


class _Header(msgspec.Struct, array_like=True, frozen=True):
    layer_count: int
    first_step: tuple[int, ...]
    last_step: tuple[int, ...]
    statistics: tuple[str, ...]
    series: tuple[str, ...]
    """Of the steps, metrics included."""
    section_lengths: tuple[int, ...]


class Rollup:
    """The parts of a stored rollup row, each unpacked when it is asked for. Raises CorruptChunk."""

    def __init__(self, data: bytes) -> None:
        self._header, self._sections = split_sections(FORMAT_VERSION, data, _Header)
        self.first_step = np.array(self._header.first_step, dtype=np.int64)
        """Of each bucket."""
        self.last_step = np.array(self._header.last_step, dtype=np.int64)
        self.layer_count = self._header.layer_count
        self.statistics = self._header.statistics
        self.series_names = self._header.series

    def statistic(self, name: str, layers: NDArray[np.int64] | None = None) -> Extremes:
        """Return `[layer, bucket]` of a statistic, for some layers or all."""
        shape = (self.layer_count, len(self.first_step))
        data = decompress(self._sections[2 + self.statistics.index(name)])
        length = 4 * shape[0] * shape[1]
        if len(data) not in (4 * length, 5 * length):
            raise CorruptChunk("a section is of the wrong length")
        numbers = unshuffled(data[: 3 * length], np.dtype("<f4"), (3, *shape), layers)
        nonfinite = unshuffled(data[3 * length : 4 * length], np.dtype("<u4"), shape, layers)
        infinite = np.zeros_like(nonfinite)
        if len(data) > 4 * length:
            infinite = unshuffled(data[4 * length :], np.dtype("<u4"), shape, layers)
        count = self._count if layers is None else self._count[layers]
        return Extremes(numbers[0], numbers[1], numbers[2], count, nonfinite, infinite)

    @cached_property
    def series(self) -> Mapping[str, Extremes]:
        """The series of the steps and the metrics, `[bucket]` each."""
        names = self._header.series
        shape = (len(names), len(self.first_step))
        data = decompress(self._sections[1])
        split = 3 * 8 * shape[0] * shape[1]
        numbers = unshuffled(data[:split], np.dtype("<f8"), (3, *shape))
        kinds = (len(data) - split) // (4 * shape[0] * shape[1]) if names else 2
        stored = unshuffled(data[split:], np.dtype("<u4"), (kinds, *shape))
        counts = stored if kinds > 2 else np.concatenate([stored, np.zeros_like(stored[:1])])
        return {
            name: Extremes(*(part[row] for part in numbers), *(part[row] for part in counts))
            for row, name in enumerate(names)
        }

    @cached_property
    def _count(self) -> NDArray[np.uint32]:
        shape = (self.layer_count, len(self.first_step))
        return unshuffled(decompress(self._sections[0]), np.dtype("<u4"), shape)


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """One bucket: a full chunk, or a whole row of the level below."""

    first_step: int
    last_step: int
    statistics: tuple[str, ...]
    values: Extremes
    """`[statistic, layer, 1]`; `count` is `[layer, 1]`."""
    series: Mapping[str, Extremes]
    """`[1]` each."""


def bucket_of(part: Block | Rollup) -> Bucket:
    """Return the steps of a chunk, or a row, as one bucket."""
    if isinstance(part, Block):
        numbered = {**part.series, **part.metrics}
        return Bucket(
            int(part.steps[0]),
            int(part.steps[-1]),
            part.statistics,
            _merged(part.values.transpose(2, 1, 0), part.present.T),
            {name: _merged(one.values, one.present) for name, one in numbered.items()},
        )
    each = [part.statistic(name) for name in part.statistics]
    low, mean, high, nonfinite, infinite = (
        np.stack([getattr(one, name) for one in each]) for name in PARTS if name != "count"
    )
    return Bucket(
        int(part.first_step[0]),
        int(part.last_step[-1]),
        part.statistics,
        Extremes(low, mean, high, each[0].count, nonfinite, infinite).merged(),
        {name: one.merged() for name, one in part.series.items()},
    )


def _merged(values: NDArray[Any], present: NDArray[np.bool_]) -> Extremes:
    """Return values along the last axis as one bucket; quickly where each is there and finite, as nearly always."""
    if not (values.shape[-1] and present.all() and np.isfinite(values).all()):
        return each_by_itself(values, present).merged()
    low, high = values.min(axis=-1, keepdims=True), values.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = values.mean(axis=-1, keepdims=True, dtype=np.float64)
    if not np.isfinite(mean).all():
        return each_by_itself(values, present).merged()
    count = np.full((*present.shape[:-1], 1), present.shape[-1], dtype=np.uint32)
    nonfinite = np.zeros(low.shape, dtype=np.uint32)
    return Extremes(low, np.clip(mean, low, high).astype(values.dtype), high, count, nonfinite, nonfinite)


def each_by_itself(values: NDArray[Any], present: NDArray[np.bool_]) -> Extremes:
    """Return every value as a bucket of its own."""
    finite = present & np.isfinite(values)
    known = np.where(finite, values, 0)
    nonfinite = (present & ~finite).astype(np.uint32)
    infinite = (present & np.isinf(values)).astype(np.uint32) if nonfinite.any() else nonfinite
    return Extremes(known, known, known, present.astype(np.uint32), nonfinite, infinite)


def encode(buckets: Sequence[Bucket]) -> bytes:
    """Return consecutive buckets as a row. Layers and series that one of them lacks have no value in it."""
    statistics = buckets[0].statistics
    layer_count = max(len(bucket.values.count) for bucket in buckets)
    shape = (len(statistics), layer_count, len(buckets))
    count = np.zeros(shape[1:], dtype="<u4")
    nonfinite, infinite = np.zeros(shape, dtype="<u4"), np.zeros(shape, dtype="<u4")
    numbers = np.zeros((3, *shape), dtype="<f4")
    for index, bucket in enumerate(buckets):
        values = bucket.values
        known = len(values.count)
        count[:known, index] = values.count[:, 0]
        nonfinite[:, :known, index] = values.nonfinite[..., 0]
        infinite[:, :known, index] = values.infinite[..., 0]
        for row, extreme in enumerate((values.low, values.mean, values.high)):
            numbers[row, :, :known, index] = extreme[..., 0]
    names = tuple(dict.fromkeys(name for bucket in buckets for name in bucket.series))
    nothing, none = np.zeros(1), np.zeros(1, dtype=np.uint32)
    empty = Extremes(nothing, nothing, nothing, none, none, none)
    series = [[bucket.series.get(name, empty) for bucket in buckets] for name in names]
    sections = [compress(shuffled(count)), compress(_packed_series(series))]
    sections += [
        compress(shuffled(numbers[:, index]) + shuffled(nonfinite[index]) + _shuffled_if_any(infinite[index]))
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


def _packed_series(series: Sequence[Sequence[Extremes]]) -> bytes:
    if not series:
        return b""
    parts = np.array([[[getattr(one, part)[0] for one in row] for row in series] for part in PARTS], dtype="<f8")
    counts = parts[3:].astype("<u4")
    return shuffled(parts[:3]) + (shuffled(counts) if counts[2].any() else shuffled(counts[:2]))


def _shuffled_if_any(counts: NDArray[np.uint32]) -> bytes:
    return shuffled(counts) if counts.any() else b""
