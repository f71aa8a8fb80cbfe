"""The answer of `GET /runs/{id}/steps` in its two forms, JSON and msgpack.

One idea: both say the same. JSON is for people and small questions; a heatmap of 100 layers is 50,000 numbers, which as
float32 bytes are a tenth of the JSON and cost a browser nothing to read. Where nothing is finite, a number is null in
JSON; in msgpack it is 0, and `count` and `nonfinite`, which are always there, say so: NaN never means absent.
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
"""What may be asked for of each bucket beside its counts."""
COUNTS = ("count", "nonfinite", "infinite")


@dataclass(frozen=True, slots=True, eq=False)
class SeriesTable:
    """Series over common buckets; arrays are `[series, bucket]`."""

    names: Sequence[tuple[str, str | None]]
    """Statistic and layer."""
    first_step: NDArray[np.int64]
    last_step: NDArray[np.int64]
    numbers: Mapping[str, NDArray[np.float64]]
    """Each of NUMBERS, of the finite values; without meaning where there is none."""
    count: NDArray[np.int64]
    nonfinite: NDArray[np.int64]
    infinite: NDArray[np.int64]

    def to_json(self, run_id: UUID, fields: Collection[str]) -> bytes:
        """Return the table as JSON; the numbers that `fields` leaves out are empty lists."""
        is_finite = self.count > self.nonfinite
        series = []
        for row, (statistic, layer) in enumerate(self.names):
            low, mean, high = (
                _or_null(self.numbers[name][row], is_finite[row]) if name in fields else [] for name in NUMBERS
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
        series: list[dict[str, Any]] = []
        for row, (statistic, layer) in enumerate(self.names):
            dtype = np.dtype("<f8") if layer is None else np.dtype("<f4")
            one: dict[str, Any] = {"statistic": statistic, "layer": layer}
            for name in NUMBERS:
                if name in fields:
                    one[name] = np.where(is_finite[row], self.numbers[name][row], 0.0).astype(dtype).tobytes()
            for name in COUNTS:
                one[name] = getattr(self, name)[row].astype("<u4").tobytes()
            series.append(one)
        steps = {"first_step": self.first_step.tolist(), "last_step": self.last_step.tolist()}
        return msgspec.msgpack.encode({"run_id": str(run_id), **steps, "series": series})


def _or_null(values: NDArray[np.float64], is_there: NDArray[np.bool_]) -> list[float | None]:
    return [value if there else None for value, there in zip(values.tolist(), is_there.tolist(), strict=True)]
