"""Steps at full resolution as a table that leaves in parts: CSV or Parquet.

One idea: a row a step, a column a series, and never more in memory than a few chunks. Each part is read in a
transaction of its own, so that a slow reader holds no lock and no connection; a run that is rewound meanwhile breaks
the download off instead of mixing two pasts.

A column of a statistic is named `grad_norm/layer`. A value that is not there is empty (CSV) or null (Parquet); NaN and
infinities are values.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from gradmedic_service.database.engine import Database
from gradmedic_service.telemetry import repository
from gradmedic_service.telemetry.buckets import Selection
from gradmedic_service.telemetry.chunks import Chunk
from gradmedic_service.telemetry.errors import NotAcceptable

CSV_MEDIA_TYPE = "text/csv"
PARQUET_MEDIA_TYPE = "application/vnd.apache.parquet"
MEDIA_TYPES = (CSV_MEDIA_TYPE, PARQUET_MEDIA_TYPE)
CHUNKS_OF_A_PART = 8
"""Some 400 to 800 steps: a row group of Parquet."""

Column = tuple[NDArray[Any], NDArray[np.bool_]]
"""Values, and which of them are there."""


class RewoundMeanwhile(Exception):
    """The run was rewound or deleted while it was read."""


class Table(Protocol):
    """Writes parts of a table as bytes."""

    def part(self, steps: NDArray[np.int64], columns: Sequence[Column]) -> bytes:
        """Return the bytes of some rows."""

    def end(self) -> bytes:
        """Return what closes the table."""


def table_of(media_type: str, selection: Selection) -> Table:
    """Return the writer of a media type. Raises NotAcceptable where what it needs is not installed."""
    return CsvTable(selection) if media_type == CSV_MEDIA_TYPE else ParquetTable(selection)


def column_names(selection: Selection) -> list[str]:
    """Name the columns behind `step`."""
    return [
        *(f"{statistic}/{layer}" for statistic in selection.statistics for layer, _ in selection.layers),
        *selection.series,
    ]


def stream(
    database: Database, run_id: UUID, generation: int, selection: Selection, first: int, last: int, table: Table
) -> Iterator[bytes]:
    """Yield a table of the steps from `first` to `last`, in parts."""
    while True:
        with database.reading_rows() as connection:
            run = repository.read_state(connection, run_id)
            if run is None or run.generation != generation:
                raise RewoundMeanwhile(str(run_id))
            parts = [Chunk(data) for data in repository.first_chunks(connection, run_id, first, last, CHUNKS_OF_A_PART)]
        if not parts:
            yield table.end()
            return
        for chunk in parts:
            steps = chunk.steps
            inside = (steps >= first) & (steps <= last)
            yield table.part(steps[inside], _columns(chunk, selection, inside))
            first = int(steps[-1]) + 1


def _columns(chunk: Chunk, selection: Selection, inside: NDArray[np.bool_]) -> list[Column]:
    columns: list[Column] = []
    count = len(inside)
    sampled = np.flatnonzero(chunk.sampled)
    for name in selection.statistics:
        matrix = chunk.statistic(name)
        for _, position in selection.layers:
            values, present = np.zeros(count, dtype=np.float32), np.zeros(count, dtype=np.bool_)
            if position < len(matrix):
                values[sampled], present[sampled] = matrix[position], chunk.present[position]
            columns.append((values[inside], present[inside]))
    for name in selection.series:
        series = chunk.series.get(name) or chunk.metrics.get(name)
        if series is None:
            columns.append((np.zeros(int(inside.sum())), np.zeros(int(inside.sum()), dtype=np.bool_)))
        else:
            columns.append((series.values[inside], series.present[inside]))
    return columns


class CsvTable:
    """RFC 4180, with a header."""

    def __init__(self, selection: Selection) -> None:
        self._header: list[str] | None = ["step", *column_names(selection)]

    def part(self, steps: NDArray[np.int64], columns: Sequence[Column]) -> bytes:
        """Return some rows."""
        texts = [
            [_text(value) if is_there else "" for value, is_there in zip(values.tolist(), present, strict=True)]
            for values, present in columns
        ]
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        self._write_header(writer)
        writer.writerows(zip(steps.tolist(), *texts, strict=True))
        return buffer.getvalue().encode()

    def end(self) -> bytes:
        """Return the header, if there was no row."""
        buffer = io.StringIO()
        self._write_header(csv.writer(buffer))
        return buffer.getvalue().encode()

    def _write_header(self, writer: Any) -> None:
        if self._header is not None:
            writer.writerow(self._header)
            self._header = None


def _text(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class ParquetTable:
    """Apache Parquet; needs the extra `parquet`."""

    def __init__(self, selection: Selection) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise NotAcceptable("Parquet needs the parquet extra: pip install 'gradmedic[parquet]'.") from None
        self._arrow = pyarrow
        statistics = len(selection.statistics) * len(selection.layers)
        names = column_names(selection)
        self._schema = pyarrow.schema(
            [
                pyarrow.field("step", pyarrow.int64(), nullable=False),
                *(pyarrow.field(name, pyarrow.float32()) for name in names[:statistics]),
                *(pyarrow.field(name, pyarrow.float64()) for name in names[statistics:]),
            ]
        )
        self._sink = io.BytesIO()
        self._writer = pyarrow.parquet.ParquetWriter(pyarrow.PythonFile(_Tail(self._sink), mode="w"), self._schema)

    def part(self, steps: NDArray[np.int64], columns: Sequence[Column]) -> bytes:
        """Return a row group."""
        arrays = [self._arrow.array(steps)]
        arrays += [self._arrow.array(values, mask=~present) for values, present in columns]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        return self._taken()

    def end(self) -> bytes:
        """Return the footer."""
        self._writer.close()
        return self._taken()

    def _taken(self) -> bytes:
        data = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return data


class _Tail:
    """A file of which only what was written last is kept."""

    closed = False

    def __init__(self, sink: io.BytesIO) -> None:
        self._sink = sink
        self._position = 0

    def write(self, data: Any) -> int:
        """Append."""
        self._position += len(data)
        return self._sink.write(data)

    def tell(self) -> int:
        """Return how much was ever written."""
        return self._position

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing to release."""
