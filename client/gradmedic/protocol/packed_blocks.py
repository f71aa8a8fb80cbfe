"""Stored blocks as bytes: the answer to `GET /runs/{id}/blocks`, and the blocks of a recording.

Arrays are little-endian bytes. Flags are bits, the first one in the lowest bit. NaN and the infinities are values: only
the masks show that something is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

LONGEST_BLOCK = 1_000_000
"""Largest number of steps in a packed block. A service that accepts longer blocks has no reason to: they hold 8 MB of
every series."""
MOST_VALUES = 2**27
"""Largest number of values of the statistics in a packed block: 512 MiB."""


MOST_SERIES = 100
"""Largest number of statistics, and of series, in a packed block: far more than there are."""
MOST_METRICS = 10_000
"""Largest number of metrics in a packed block. A service of the default settings takes a thousand names for a run."""


class PackedBlockError(ValueError):
    """The bytes of a block do not fit together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSeries:
    """One number per step, as bytes."""

    values: bytes
    """float64, `[step]`. 0 where the series is absent."""
    present: bytes
    """Flags, `[step]`: whether the step has a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBlock:
    """Consecutive steps of a run, as bytes."""

    steps: bytes
    """int64: the numbers of the steps, ascending."""
    sampled: bytes
    """Flags, `[step]`: whether the step carries statistics."""
    skipped: bytes
    """Flags, `[step]`: whether a loss scaler or a guard skipped the step."""
    layers: int
    """Number of layers."""
    present: bytes
    """Flags, `[sampled step, layer]`: whether an optimizer touched the layer in that step."""
    statistics: Annotated[dict[str, bytes], msgspec.Meta(max_length=MOST_SERIES)]
    """float32, `[sampled step, layer]`, by the name of the statistic. 0 where the layer is absent."""
    series: Annotated[dict[str, PackedSeries], msgspec.Meta(max_length=MOST_SERIES)]
    """The series of the steps that were sent, by name: `loss`, `learning_rate`, ..."""
    metrics: Annotated[dict[str, PackedSeries], msgspec.Meta(max_length=MOST_METRICS)]
    """The user's own metrics, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksResult:
    """Answer to `GET /runs/{id}/blocks`."""

    generation: int
    """Number of times that the run was rewound."""
    next_step: int | None
    """First step of the next request. Null at the end."""
    blocks: list[PackedBlock]
    """The blocks, in order."""


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """One number per step. `values[step]` counts only where `present[step]` is true."""

    values: NDArray[np.float64]
    present: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BlockArrays:
    """Consecutive steps of a run, as arrays."""

    steps: NDArray[np.int64]
    sampled: NDArray[np.bool_]
    skipped: NDArray[np.bool_]
    present: NDArray[np.bool_]
    """`[sampled step, layer]`."""
    statistics: Mapping[str, NDArray[np.float32]]
    """`[sampled step, layer]`, by name."""
    series: Mapping[str, Values]
    metrics: Mapping[str, Values]


def pack_block(block: BlockArrays) -> PackedBlock:
    """Return a block as bytes."""
    return PackedBlock(
        steps=block.steps.astype("<i8").tobytes(),
        sampled=pack_flags(block.sampled),
        skipped=pack_flags(block.skipped),
        layers=block.present.shape[1],
        present=pack_flags(block.present),
        statistics={name: values.astype("<f4", copy=False).tobytes() for name, values in block.statistics.items()},
        series={name: _pack_values(values) for name, values in block.series.items()},
        metrics={name: _pack_values(values) for name, values in block.metrics.items()},
    )


def unpack_block(packed: PackedBlock) -> BlockArrays:
    """Return the arrays of a packed block. Raises PackedBlockError."""
    steps = _numbers("steps", packed.steps, "<i8", None)
    count = len(steps)
    if not 0 < count <= LONGEST_BLOCK:
        raise PackedBlockError(f"a block has {count} steps; from 1 to {LONGEST_BLOCK} are allowed")
    if steps[0] < 0 or (count > 1 and int(np.diff(steps).min()) <= 0):
        raise PackedBlockError("the steps of a block do not increase from 0 on")
    sampled = unpack_flags("sampled", packed.sampled, count)
    rows = int(np.count_nonzero(sampled))
    if packed.layers < 0 or rows * packed.layers * max(1, len(packed.statistics)) > MOST_VALUES:
        raise PackedBlockError(f"a block has more than {MOST_VALUES} values")
    return BlockArrays(
        steps=steps,
        sampled=sampled,
        skipped=unpack_flags("skipped", packed.skipped, count),
        present=unpack_flags("present", packed.present, rows * packed.layers).reshape(rows, packed.layers),
        statistics={
            name: _numbers(name, data, "<f4", rows * packed.layers).reshape(rows, packed.layers)
            for name, data in packed.statistics.items()
        },
        series={name: _unpack_values(name, series, count) for name, series in packed.series.items()},
        metrics={name: _unpack_values(name, series, count) for name, series in packed.metrics.items()},
    )


def pack_flags(flags: NDArray[np.bool_]) -> bytes:
    """Return flags with eight in each byte, the first flag in the lowest bit."""
    return np.packbits(flags, bitorder="little").tobytes()


def unpack_flags(name: str, data: bytes, count: int) -> NDArray[np.bool_]:
    """Undo `pack_flags`. Raises PackedBlockError, which names the field."""
    if len(data) != (count + 7) // 8:
        raise PackedBlockError(f"{name} has {len(data)} bytes; {(count + 7) // 8} are expected")
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count, bitorder="little").view(np.bool_)


def _pack_values(values: Values) -> PackedSeries:
    return PackedSeries(values=values.values.astype("<f8", copy=False).tobytes(), present=pack_flags(values.present))


def _unpack_values(name: str, series: PackedSeries, count: int) -> Values:
    return Values(_numbers(name, series.values, "<f8", count), unpack_flags(name, series.present, count))


def _numbers(name: str, data: bytes, kind: str, count: int | None) -> NDArray[Any]:
    dtype = np.dtype(kind)
    if len(data) % dtype.itemsize or (count is not None and len(data) != count * dtype.itemsize):
        expected = "a multiple of 8" if count is None else str(count * dtype.itemsize)
        raise PackedBlockError(f"{name} has {len(data)} bytes; {expected} are expected")
    return np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="), copy=False)
