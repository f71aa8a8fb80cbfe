"""The answer of `GET /runs/{id}/steps` in its two forms, JSON and msgpack.

Both hold the same. JSON is for people and small answers. A heatmap of 100 layers is 50,000 numbers; as float32 bytes
they are a tenth of the JSON, and a browser needs no parsing. Where no value of a bucket is finite, a number is null in
JSON and 0 in msgpack; `count` and `nonfinite`, which are always there, show that. NaN never means absent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.series import Series, SeriesResult

NUMBERS = ("min", "mean", "max")
"""The numbers of a bucket that `field` selects; its counts are always there."""
COUNTS = ("count", "nonfinite", "infinite")


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

    def to_json(self, run_id: UUID, fields: Collection[str]) -> bytes:
        """Return the table as JSON; the numbers that `fields` leaves out are empty lists."""
        is_finite = self.count > self.nonfinite
        series = []
        for row, (statistic, layer) in enumerate(self.names):
            low, mean, high = (
                _with_nulls(self.numbers[name][row], is_finite[row]) if name in fields else [] for name in NUMBERS
            )
            count, nonfinite, infinite = (getattr(self, name)[row].tolist() for name in COUNTS)
            series.append(
                Series(
                    statistic=statistic,
                    layer=layer,
                    min=low,
                    mean=mean,
                    max=high,
                    count=count,
                    nonfinite=nonfinite,
                    infinite=infinite,
                )
            )
        result = SeriesResult(
            run_id=run_id, first_step=self.first_step.tolist(), last_step=self.last_step.tolist(), series=series
        )
        return msgspec.json.encode(result)

    def to_msgpack(self, run_id: UUID, fields: Collection[str]) -> bytes:
        """Return the table as msgpack; the numbers that `fields` leaves out are missing."""
        is_finite = self.count > self.nonfinite
        all_series: list[dict[str, Any]] = []
        for row, (statistic, layer) in enumerate(self.names):
            dtype = np.dtype("<f8") if layer is None else np.dtype("<f4")
            series: dict[str, Any] = {"statistic": statistic, "layer": layer}
            for name in NUMBERS:
                if name in fields:
                    series[name] = np.where(is_finite[row], self.numbers[name][row], 0.0).astype(dtype).tobytes()
            for name in COUNTS:
                series[name] = getattr(self, name)[row].astype("<u4").tobytes()
            all_series.append(series)
        steps = {"first_step": self.first_step.tolist(), "last_step": self.last_step.tolist()}
        return msgspec.msgpack.encode({"run_id": str(run_id), **steps, "series": all_series})


def _with_nulls(values: NDArray[np.float64], is_finite: NDArray[np.bool_]) -> list[float | None]:
    """Return the values with None where no value of the bucket is finite."""
    return [value if finite else None for value, finite in zip(values.tolist(), is_finite.tolist(), strict=True)]
