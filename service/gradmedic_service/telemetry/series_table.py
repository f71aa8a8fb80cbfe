"""The answer of `GET /runs/{id}/steps` in its two forms, JSON and msgpack.

Both hold the same. JSON is for people and small answers. A heatmap of 100 layers is 50,000 numbers; as float32 bytes
they are a tenth of the JSON, and a browser needs no parsing. Where no value of a bucket is finite, a number is null in
JSON and 0 in msgpack; `count` and `nonfinite`, which are always there, show that. NaN never means absent. Both are made
part by part, so that a large answer is never in memory beside its table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.series import SeriesResult

NUMBERS = ("min", "mean", "max")
"""The numbers of a bucket that `field` selects; its counts are always there."""
COUNTS = ("count", "nonfinite", "infinite")
EMPTY_ARRAY, ARRAY_32 = b"\x90", b"\xdd"
"""The empty array of msgpack, and the first byte of an array whose length follows as 32 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class SeriesTable:
    """Series over common buckets; arrays are `[series, bucket]`."""

    names: Sequence[tuple[str, str | None]]
    """Statistic and layer of each series."""
    first_step: NDArray[np.int64]
    last_step: NDArray[np.int64]
    numbers: Mapping[str, NDArray[np.float64]]
    """Each of NUMBERS, of the finite values; undefined where no value is finite."""
    count: NDArray[np.int64]
    nonfinite: NDArray[np.int64]
    infinite: NDArray[np.int64]

    def json_parts(self, run_id: UUID, fields: Collection[str]) -> Iterator[bytes]:
        """Yield the table as JSON, series by series; the numbers that `fields` leaves out are empty lists."""
        steps = self.first_step.tolist(), self.last_step.tolist()
        empty = SeriesResult(run_id=run_id, first_step=steps[0], last_step=steps[1], series=[])
        yield msgspec.json.encode(empty).removesuffix(b"]}")
        encoded_counts: dict[bytes, msgspec.Raw] = {}  # most series have the same, which are a third of the answer
        for row, (statistic, layer) in enumerate(self.names):
            is_finite = self.count[row] > self.nonfinite[row]
            series: dict[str, Any] = {"statistic": statistic, "layer": layer}
            for name in NUMBERS:
                series[name] = _with_nulls(self.numbers[name][row], is_finite) if name in fields else []
            for name in COUNTS:
                counts = getattr(self, name)[row]
                key = counts.tobytes()
                if key not in encoded_counts:
                    encoded_counts[key] = msgspec.Raw(msgspec.json.encode(counts.tolist()))
                series[name] = encoded_counts[key]
            yield (b"," if row else b"") + msgspec.json.encode(series)
        yield b"]}"

    def msgpack_parts(self, run_id: UUID, fields: Collection[str]) -> Iterator[bytes]:
        """Yield the table as msgpack, series by series; the numbers that `fields` leaves out are missing."""
        steps = {"first_step": self.first_step.tolist(), "last_step": self.last_step.tolist()}
        empty = msgspec.msgpack.encode({"run_id": str(run_id), **steps, "series": []})
        yield empty.removesuffix(EMPTY_ARRAY) + ARRAY_32 + len(self.names).to_bytes(4, "big")
        for row, (statistic, layer) in enumerate(self.names):
            is_finite = self.count[row] > self.nonfinite[row]
            dtype = np.dtype("<f8") if layer is None else np.dtype("<f4")
            series: dict[str, Any] = {"statistic": statistic, "layer": layer}
            for name in NUMBERS:
                if name in fields:
                    series[name] = np.where(is_finite, self.numbers[name][row], 0.0).astype(dtype).tobytes()
            for name in COUNTS:
                series[name] = getattr(self, name)[row].astype("<u4").tobytes()
            yield msgspec.msgpack.encode(series)


def _with_nulls(values: NDArray[np.float64], is_finite: NDArray[np.bool_]) -> list[float | None]:
    """Return the values with None where no value of the bucket is finite."""
    numbers: list[float | None] = values.tolist()
    if is_finite.all():
        return numbers
    return [value if finite else None for value, finite in zip(numbers, is_finite.tolist(), strict=True)]
