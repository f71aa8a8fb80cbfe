"""Exports the steps of a run at full resolution as a table, in parts: CSV or Parquet.

The table has a row for each step and a column for each series; a column of a statistic is named `grad_norm/layer`. A
value that is absent is empty (CSV) or null (Parquet); NaN and the infinities are values.

A few chunks at a time are in memory. Each part is read in a transaction of its own, so that a slow reader holds no lock
and no connection. If the run is rewound or deleted meanwhile, the download ends with an error.
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

from gradmedic.protocol.numbers import name_nonfinite
from gradmedic_service.database.engine import Connection, Database
from gradmedic_service.telemetry import chunk_repository, repository
from gradmedic_service.telemetry.chunks import Chunk
from gradmedic_service.telemetry.errors import NotAcceptable
from gradmedic_service.telemetry.series_accumulator import SeriesSelection

CSV_MEDIA_TYPE = "text/csv"
PARQUET_MEDIA_TYPE = "application/vnd.apache.parquet"
MEDIA_TYPES = (CSV_MEDIA_TYPE, PARQUET_MEDIA_TYPE)
CHUNKS_PER_PART = 8
"""Number of chunks in a part, some 400 to 800 steps: a row group of Parquet."""

CELLS_AT_ONCE = 100_000
"""Cells of a CSV file that are text in memory at a time, some 10 MB."""
PART_BYTES = 16 * 2**20
"""Bytes of memory for the stored chunks of a part and its text."""
COLUMN_BYTES = 100 * 24
"""Bytes of memory for a column of a chunk, at most 99 steps: values, masks, and their copies in the file's format."""
PARQUET_VALUE_BYTES = 16
"""Bytes of memory for a value of a row group: the value, its mask, and both in pyarrow's format."""
PARQUET_GROUP_BYTES = 2048
"""Bytes that pyarrow keeps for each column of each row group until the end of the file (measured with pyarrow 24)."""

Column = tuple[NDArray[Any], NDArray[np.bool_]]
"""Values of a column, and the mask of those that are present."""


class RunChanged(Exception):
    """The run was rewound or deleted while it was exported."""


class Table(Protocol):
    """Encodes a table as bytes, part by part."""

    def encode_rows(self, steps: NDArray[np.int64], columns: Sequence[Column]) -> Iterator[bytes]:
        """Yield the bytes of the next rows."""

    def encode_end(self) -> bytes:
        """Return the bytes that end the table."""


def count_rows(connection: Connection, run_id: UUID, first: int, last: int) -> int:
    """Return the largest number of rows of a table of the steps from `first` to `last`; at least 1."""
    return max(1, chunk_repository.count_steps(connection, run_id, first, last))


def create_table(media_type: str, selection: SeriesSelection, rows: int) -> Table:
    """Return the table of a media type, for at most so many rows.

    Raises NotAcceptable where the extra that it needs is not installed.
    """
    if media_type == CSV_MEDIA_TYPE:
        return CsvTable(selection)
    return ParquetTable(selection, math.ceil(rows / _count_row_groups(rows)))


def count_memory(media_type: str, columns: int, rows: int) -> int:
    """Return about how many bytes of memory an export takes."""
    size = PART_BYTES + columns * COLUMN_BYTES
    if media_type == PARQUET_MEDIA_TYPE:
        groups = _count_row_groups(rows)
        size += columns * (math.ceil(rows / groups) * PARQUET_VALUE_BYTES + groups * PARQUET_GROUP_BYTES)
    return size


def _count_row_groups(rows: int) -> int:
    """Return the number of row groups that takes least memory: one holds values, and the file keeps facts of each."""
    return max(1, round(math.sqrt(rows * PARQUET_VALUE_BYTES / PARQUET_GROUP_BYTES)))


def name_columns(selection: SeriesSelection) -> list[str]:
    """Return the names of the columns after `step`."""
    return [
        *(f"{statistic}/{layer}" for statistic in selection.statistics for layer, _ in selection.layers),
        *selection.series,
    ]


def stream_table(
    database: Database, run_id: UUID, generation: int, selection: SeriesSelection, first: int, last: int, table: Table
) -> Iterator[bytes]:
    """Yield the bytes of a table of the steps from `first` to `last`, part by part. Raises RunChanged."""
    while True:
        with database.reading_rows() as connection:
            run = repository.read_run(connection, run_id)
            if run is None or run.generation != generation:
                raise RunChanged(str(run_id))
            part = chunk_repository.read_first_chunks(connection, run_id, first, last, CHUNKS_PER_PART)
            chunks = [Chunk(data) for data in part]
        if not chunks:
            yield table.encode_end()
            return
        for chunk in chunks:
            steps = chunk.steps
            in_range = (steps >= first) & (steps <= last)
            yield from table.encode_rows(steps[in_range], _read_columns(chunk, selection, in_range))
            first = int(steps[-1]) + 1


def _read_columns(chunk: Chunk, selection: SeriesSelection, in_range: NDArray[np.bool_]) -> list[Column]:
    columns: list[Column] = []
    count = len(in_range)
    sampled = np.flatnonzero(chunk.sampled)
    for name in selection.statistics:
        matrix = chunk.read_statistic(name)
        for _, position in selection.layers:
            values, present = np.zeros(count, dtype=np.float32), np.zeros(count, dtype=np.bool_)
            if position < len(matrix):
                values[sampled], present[sampled] = matrix[position], chunk.present[position]
            columns.append((values[in_range], present[in_range]))
    for name in selection.series:
        series = chunk.series.get(name) or chunk.metrics.get(name)
        if series is None:
            columns.append((np.zeros(int(in_range.sum())), np.zeros(int(in_range.sum()), dtype=np.bool_)))
        else:
            columns.append((series.values[in_range], series.present[in_range]))
    return columns


class CsvTable:
    """A table as CSV (RFC 4180) with a header."""

    def __init__(self, selection: SeriesSelection) -> None:
        self._header: list[str] | None = ["step", *name_columns(selection)]

    def encode_rows(self, steps: NDArray[np.int64], columns: Sequence[Column]) -> Iterator[bytes]:
        """Yield the bytes of the next rows."""
        rows = max(1, CELLS_AT_ONCE // (1 + len(columns)))
        for start in range(0, len(steps), rows):
            at_once = slice(start, start + rows)
            texts = [
                [
                    _to_text(value) if is_present else ""
                    for value, is_present in zip(values[at_once].tolist(), present[at_once], strict=True)
                ]
                for values, present in columns
            ]
            buffer = io.StringIO()
            writer = csv.writer(buffer)
            self._write_header(writer)
            writer.writerows(zip(steps[at_once].tolist(), *texts, strict=True))
            yield buffer.getvalue().encode()

    def encode_end(self) -> bytes:
        """Return the header if there was no row, else nothing."""
        buffer = io.StringIO()
        self._write_header(csv.writer(buffer))
        return buffer.getvalue().encode()

    def _write_header(self, writer: Any) -> None:
        if self._header is not None:
            writer.writerow(self._header)
            self._header = None


def _to_text(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return name_nonfinite(value)


class ParquetTable:
    """A table as Apache Parquet; needs the extra `parquet`.

    Args:
        selection: the columns.
        group_rows: rows of a row group; the last one has fewer.
    """

    def __init__(self, selection: SeriesSelection, group_rows: int) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise NotAcceptable("Parquet needs the parquet extra: pip install 'gradmedic[parquet]'.") from None
        self._arrow = pyarrow
        statistics = len(selection.statistics) * len(selection.layers)
        names = name_columns(selection)
        self._schema = pyarrow.schema(
            [
                pyarrow.field("step", pyarrow.int64(), nullable=False),
                *(pyarrow.field(name, pyarrow.float32()) for name in names[:statistics]),
                *(pyarrow.field(name, pyarrow.float64()) for name in names[statistics:]),
            ]
        )
        self._group_rows = group_rows
        self._waiting: list[tuple[NDArray[np.int64], Sequence[Column]]] = []
        self._waiting_rows = 0
        self._buffer = io.BytesIO()
        file = pyarrow.PythonFile(_WrittenBytes(self._buffer), mode="w")
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)

    def encode_rows(self, steps: NDArray[np.int64], columns: Sequence[Column]) -> Iterator[bytes]:
        """Yield the bytes of the next row group, once there are enough rows for it."""
        self._waiting.append((steps, columns))
        self._waiting_rows += len(steps)
        if self._waiting_rows >= self._group_rows:
            self._write_group()
            yield self._read_written()

    def encode_end(self) -> bytes:
        """Return the bytes of the last row group and of the footer."""
        if self._waiting_rows:
            self._write_group()
        self._writer.close()
        return self._read_written()

    def _write_group(self) -> None:
        waiting, self._waiting, self._waiting_rows = self._waiting, [], 0
        arrays = [self._arrow.array(np.concatenate([steps for steps, _ in waiting]))]
        for parts in zip(*(columns for _, columns in waiting), strict=True):
            values = np.concatenate([values for values, _ in parts])
            present = np.concatenate([present for _, present in parts])
            arrays.append(self._arrow.array(values, mask=~present))
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))

    def _read_written(self) -> bytes:
        data = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        return data


class _WrittenBytes:
    """A file for writing only: it counts all written bytes, and its buffer holds those not read yet."""

    closed = False

    def __init__(self, buffer: io.BytesIO) -> None:
        self._buffer = buffer
        self._position = 0

    def write(self, data: Any) -> int:
        """Append bytes."""
        self._position += len(data)
        return self._buffer.write(data)

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self._position

    def flush(self) -> None:
        """Do nothing: every byte is in the buffer at once."""

    def close(self) -> None:
        """Do nothing: the file holds no resource."""
