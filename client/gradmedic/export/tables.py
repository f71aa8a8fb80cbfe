"""Writes all steps of a run to a table: CSV, JSON Lines or Parquet.

CSV and Parquet have the columns of the service's own tables: `step`, then `grad_norm/LAYER` for each statistic and
layer, then the series of the steps and the metrics. JSON Lines has an object for each step, without what is absent. NaN
and the infinities are values; an absent number is empty or null.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from gradmedic.api import Client
from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.numbers import name_nonfinite
from gradmedic.protocol.packed_blocks import BlockArrays
from gradmedic.protocol.runs import RunDetail
from gradmedic.protocol.statistics import SERIES

_ROW_GROUP_VALUES = 2**22
"""Values of a row group of Parquet, about: 16 to 32 MB of memory."""

Column = tuple[NDArray[np.float32] | NDArray[np.float64], NDArray[np.bool_]]
"""The values of a column, one for each step, and the mask of those that are present."""


class TableWriter(Protocol):
    """Writes blocks to a file, one after another."""

    def write(self, block: BlockArrays) -> None:
        """Write the steps of a block."""

    def close(self) -> None:
        """Write the end of the file."""


def write_table(
    client: Client,
    run: RunDetail,
    table_format: str,
    file: BinaryIO,
    on_block: Callable[[int], None] = lambda _done: None,
) -> int:
    """Write the steps that a run has now, and return their number.

    Args:
        client: client of the service.
        run: the run.
        table_format: `csv`, `jsonl` or `parquet`.
        file: receives the bytes.
        on_block: called after each block, with the number after its last step.

    Raises:
        ConfigurationError: Parquet needs an extra that is not installed.
        UsageError: the run was rewound meanwhile.
    """
    writers: dict[str, Callable[[RunDetail, BinaryIO], TableWriter]] = {
        "csv": CsvWriter,
        "jsonl": JsonLinesWriter,
        "parquet": ParquetWriter,
    }
    writer = writers[table_format](run, file)
    steps = 0
    if run.last_step is not None:
        for block in client.runs.blocks(run.id, to_step=run.last_step, generation=run.generation):
            writer.write(block)
            steps += len(block.steps)
            on_block(int(block.steps[-1]) + 1)
    writer.close()
    return steps


class CsvWriter:
    """A table as CSV, with the names of the columns in the first line."""

    def __init__(self, run: RunDetail, file: BinaryIO) -> None:
        self._run = run
        self._file = file
        self._write_rows([("step", *column_names(run))])

    def write(self, block: BlockArrays) -> None:
        """Write the steps of a block."""
        texts = [
            [_to_text(value) if is_present else "" for value, is_present in zip(values.tolist(), present, strict=True)]
            for values, present in read_columns(block, self._run)
        ]
        self._write_rows(zip(block.steps.tolist(), *texts, strict=True))

    def close(self) -> None:
        """Do nothing: CSV has no end."""

    def _write_rows(self, rows: Iterator[tuple[object, ...]] | list[tuple[str, ...]]) -> None:
        buffer = io.StringIO()
        csv.writer(buffer).writerows(rows)
        self._file.write(buffer.getvalue().encode())


class JsonLinesWriter:
    """An object for each step: `{"step": 0, "loss": 2.3, "statistics": {"grad_norm": {"layer": 0.5}}}`."""

    def __init__(self, run: RunDetail, file: BinaryIO) -> None:
        self._layers = [layer.name for layer in run.layers]
        self._file = file

    def write(self, block: BlockArrays) -> None:
        """Write the steps of a block."""
        rows = np.cumsum(block.sampled) - 1
        for position, step in enumerate(block.steps.tolist()):
            content: dict[str, object] = {"step": step}
            for name, values in block.series.items():
                if values.present[position]:
                    content[name] = _to_number(float(values.values[position]))
            metrics = {
                name: _to_number(float(values.values[position]))
                for name, values in block.metrics.items()
                if values.present[position]
            }
            if metrics:
                content["metrics"] = metrics
            if block.skipped[position]:
                content["skipped"] = True
            if block.sampled[position]:
                content["statistics"] = self._statistics_of(block, int(rows[position]))
            self._file.write(msgspec.json.encode(content) + b"\n")

    def close(self) -> None:
        """Do nothing: JSON Lines has no end."""

    def _statistics_of(self, block: BlockArrays, row: int) -> dict[str, dict[str, object]]:
        present = np.flatnonzero(block.present[row]).tolist()
        return {
            name: {self._layers[layer]: _to_number(float(matrix[row, layer])) for layer in present}
            for name, matrix in block.statistics.items()
        }


class ParquetWriter:
    """A table as Apache Parquet; needs the extra `parquet`."""

    def __init__(self, run: RunDetail, file: BinaryIO) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise ConfigurationError("Parquet needs the parquet extra: pip install 'gradmedic[parquet]'") from error
        self._arrow = pyarrow
        self._run = run
        names = column_names(run)
        statistics = len(run.statistics) * len(run.layers)
        self._schema = pyarrow.schema(
            [
                pyarrow.field("step", pyarrow.int64(), nullable=False),
                *(pyarrow.field(name, pyarrow.float32()) for name in names[:statistics]),
                *(pyarrow.field(name, pyarrow.float64()) for name in names[statistics:]),
            ]
        )
        self._group_rows = max(1, _ROW_GROUP_VALUES // (1 + len(names)))
        self._waiting: list[tuple[NDArray[np.int64], list[Column]]] = []
        self._waiting_rows = 0
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)

    def write(self, block: BlockArrays) -> None:
        """Keep the steps of a block, and write a row group once there are enough."""
        self._waiting.append((block.steps, list(read_columns(block, self._run))))
        self._waiting_rows += len(block.steps)
        if self._waiting_rows >= self._group_rows:
            self._write_group()

    def close(self) -> None:
        """Write the last row group and the footer."""
        if self._waiting:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        waiting, self._waiting, self._waiting_rows = self._waiting, [], 0
        arrays = [self._arrow.array(np.concatenate([steps for steps, _ in waiting]))]
        for parts in zip(*(columns for _, columns in waiting), strict=True):
            values = np.concatenate([values for values, _ in parts])
            present = np.concatenate([present for _, present in parts])
            arrays.append(self._arrow.array(values, mask=~present))
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))


def column_names(run: RunDetail) -> list[str]:
    """Return the names of the columns after `step`."""
    statistics = [f"{statistic}/{layer.name}" for statistic in run.statistics for layer in run.layers]
    return [*statistics, *SERIES, *run.metrics]


def read_columns(block: BlockArrays, run: RunDetail) -> Iterator[Column]:
    """Yield the columns of a block after `step`, in the order of `column_names`."""
    count = len(block.steps)
    sampled = np.flatnonzero(block.sampled)
    layers = block.present.shape[1]
    for statistic in run.statistics:
        matrix = block.statistics.get(statistic)
        for layer in range(len(run.layers)):
            values, present = np.zeros(count, np.float32), np.zeros(count, np.bool_)
            if matrix is not None and layer < layers:  # layers may have been appended later
                values[sampled] = matrix[:, layer]
                present[sampled] = block.present[:, layer]
            yield values, present
    for name in (*SERIES, *run.metrics):
        given = block.series.get(name) or block.metrics.get(name)
        yield (np.zeros(count), np.zeros(count, np.bool_)) if given is None else (given.values, given.present)


def _to_text(value: float) -> str:
    return repr(value) if math.isfinite(value) else name_nonfinite(value)


def _to_number(value: float) -> float | str:
    return value if math.isfinite(value) else name_nonfinite(value)
