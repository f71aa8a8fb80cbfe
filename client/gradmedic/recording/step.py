"""One step of a run as it waits to be sent, and the encoding of a block of steps.

A step has the statistics of the layers that it touched. They become columns of a block only when the service has
the layers. So layers may appear at any time, and a block that did not arrive may be cut again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.guards import MOST_GUARD_ACTIONS, GuardAction

_STEP_BYTES = 400
"""About the memory of a step beside its arrays, measured with sys.getsizeof over its parts."""
_METRIC_BYTES = 120
"""About the memory of one metric."""
_ACTION_BYTES = 800
"""About the memory of one guard action."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """The statistics of one sampled step, for the layers that an optimizer touched."""

    statistics: tuple[str, ...]
    layers: NDArray[np.int32]
    """Positions in the run's list of layers, as the client counts them."""
    values: NDArray[np.float32]
    """`[touched layer, statistic]`."""

    def column(self, statistic: str) -> NDArray[np.float32] | None:
        """Return one statistic of every touched layer, or None if it was not taken."""
        return self.values[:, self.statistics.index(statistic)] if statistic in self.statistics else None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Step:
    """One step. A field is None if it was not given."""

    number: int
    time: float
    """Seconds since the Unix epoch."""
    loss: float | None = None
    learning_rate: float | None = None
    loss_scale: float | None = None
    clip_coefficient: float | None = None
    output_gradient_norm: float | None = None
    skipped: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    row: Row | None = None
    """None if the step is not sampled."""
    guard_actions: tuple[GuardAction, ...] = ()
    """What guards did in the step."""

    @property
    def nbytes(self) -> int:
        """About the memory that the step takes."""
        arrays = 0 if self.row is None else self.row.values.nbytes
        return _STEP_BYTES + _METRIC_BYTES * len(self.metrics) + _ACTION_BYTES * len(self.guard_actions) + arrays

    @property
    def is_finite(self) -> bool:
        """Whether every number of the step is finite, the elements of its gradients included."""
        if self.loss is not None and not math.isfinite(self.loss):
            return False
        if self.row is None:
            return True
        nonfinite = self.row.column("nonfinite_count")
        return bool(np.isfinite(self.row.values).all()) and (nonfinite is None or not nonfinite.any())

    @property
    def lacks_gradients(self) -> bool:
        """Whether the step is sampled, and no layer has a gradient other than zero."""
        norms = None if self.row is None else self.row.column("grad_norm")
        return norms is not None and not norms.any()


@dataclass(frozen=True, slots=True)
class Rewind:
    """The job resumed from a checkpoint, or a guard went back: the next step follows `step`."""

    step: int
    """The last step that stays."""
    guard_action: GuardAction | None = None
    """The action of the guard that went back; None if the script resumed from a checkpoint."""


_SERIES = ("loss", "learning_rate", "loss_scale", "clip_coefficient", "output_gradient_norm")
"""Numbers of a step that become series of a block."""

_PackedRow = tuple[tuple[str, ...], bytes, bytes]


class _PackedStep(msgspec.Struct, array_like=True):
    """What `pack_step` encodes, in this order. New fields come last, with a default, so that old journals are read."""

    number: int
    time: float
    loss: float | None
    learning_rate: float | None
    loss_scale: float | None
    clip_coefficient: float | None
    skipped: bool
    metrics: dict[str, float]
    row: _PackedRow | None
    output_gradient_norm: float | None = None
    guard_actions: tuple[GuardAction, ...] = ()


Entry = Step | Rewind
"""An entry of the outbox."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the service keeps the layers and statistics of a run."""

    statistics: tuple[str, ...]
    """The statistics of the run, in its order."""
    positions: NDArray[np.intp]
    """The service's position of each layer, by the client's position; -1 for a layer that the service does not have."""
    width: int
    """Number of layers that the service has."""


def encode_block(
    steps: Sequence[Step],
    columns: Columns,
    *,
    max_metrics: int | None = None,
    max_guard_actions: int = MOST_GUARD_ACTIONS,
    generation: int | None = None,
) -> bytes:
    """Encode steps as the msgpack body of `POST /runs/{id}/steps` (`StepsAppend`).

    A row that lacks one of the run's statistics is left out, and its step counts as not sampled. Values of layers that
    the service does not have, metrics beyond the first `max_metrics` and guard actions beyond the first
    `max_guard_actions` of the block are left out.
    """
    rows = [step.row if step.row and has_statistics(step.row, columns) else None for step in steps]
    body: dict[str, Any] = {"steps": [step.number for step in steps], "time": [step.time for step in steps]}
    if generation is not None:
        body["generation"] = generation
    for name in _SERIES:
        series = [getattr(step, name) for step in steps]
        if any(value is not None for value in series):
            body[name] = series
    if any(step.skipped for step in steps):
        body["skipped"] = [step.skipped for step in steps]
    names = metric_names(steps)[:max_metrics]
    if names:
        body["metrics"] = {name: [step.metrics.get(name) for step in steps] for name in names}
    actions = [action for step in steps for action in step.guard_actions][:max_guard_actions]
    if actions:
        body["guard_actions"] = actions
    body["sampled"] = [row is not None for row in rows]
    sampled = [row for row in rows if row is not None]
    if sampled:
        values, present = _to_columns(sampled, columns)
        body["statistics"] = {name: values[i].tobytes() for i, name in enumerate(columns.statistics)}
        body["present"] = np.packbits(present, bitorder="little").tobytes()
    return msgspec.msgpack.encode(body)


def pack_step(step: Step) -> bytes:
    """Encode a step for the journal."""
    row = step.row
    return msgspec.msgpack.encode(
        _PackedStep(
            number=step.number,
            time=step.time,
            loss=step.loss,
            learning_rate=step.learning_rate,
            loss_scale=step.loss_scale,
            clip_coefficient=step.clip_coefficient,
            skipped=step.skipped,
            metrics=dict(step.metrics),
            row=None if row is None else (row.statistics, row.layers.tobytes(), row.values.tobytes()),
            output_gradient_norm=step.output_gradient_norm,
            guard_actions=step.guard_actions,
        )
    )


def unpack_step(packed: bytes) -> Step:
    """Decode a step that `pack_step` encoded.

    Raises:
        ValueError: these are not the bytes of a step.
    """
    step = msgspec.msgpack.decode(packed, type=_PackedStep)
    row = None
    if step.row is not None:
        statistics, layers, values = step.row
        row = Row(
            statistics,
            np.frombuffer(layers, dtype=np.int32),
            np.frombuffer(values, dtype=np.float32).reshape(-1, len(statistics)),
        )
        if len(row.layers) != len(row.values) or (row.layers < 0).any():
            raise ValueError("the layers of a step do not fit its values")
    return Step(
        number=step.number,
        time=step.time,
        loss=step.loss,
        learning_rate=step.learning_rate,
        loss_scale=step.loss_scale,
        clip_coefficient=step.clip_coefficient,
        output_gradient_norm=step.output_gradient_norm,
        skipped=step.skipped,
        metrics=step.metrics,
        row=row,
        guard_actions=step.guard_actions,
    )


def pack_rewind(rewind: Rewind) -> bytes:
    """Encode a rewind for the journal. Without a guard action it is the step alone, as in the first versions."""
    if rewind.guard_action is None:
        return msgspec.msgpack.encode(rewind.step)
    return msgspec.msgpack.encode((rewind.step, rewind.guard_action))


def unpack_rewind(packed: bytes) -> Rewind:
    """Decode a rewind that `pack_rewind` encoded.

    Raises:
        ValueError: these are not the bytes of a rewind.
    """
    rewind = msgspec.msgpack.decode(packed, type=int | tuple[int, GuardAction])
    return Rewind(rewind) if isinstance(rewind, int) else Rewind(*rewind)


def metric_names(steps: Sequence[Step]) -> list[str]:
    """Return the names of the metrics of some steps, each once, in their order."""
    return list(dict.fromkeys(name for step in steps for name in step.metrics))


def has_statistics(row: Row, columns: Columns) -> bool:
    """Return whether the row has every statistic of the run."""
    return row.statistics == columns.statistics or set(columns.statistics) <= set(row.statistics)


def has_layers(row: Row, columns: Columns) -> bool:
    """Return whether the service has every layer of the row."""
    return bool((row.layers < len(columns.positions)).all()) and bool((columns.positions[row.layers] >= 0).all())


def _to_columns(rows: Sequence[Row], columns: Columns) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return values `[statistic, sampled step, layer]`, little-endian, and present `[sampled step, layer]`."""
    values = np.zeros((len(columns.statistics), len(rows), columns.width), dtype="<f4")
    present = np.zeros((len(rows), columns.width), dtype=np.bool_)
    for i, row in enumerate(rows):
        layers, measured = row.layers, row.values
        if not has_layers(row, columns):
            is_known = layers < len(columns.positions)
            is_known[is_known] = columns.positions[layers[is_known]] >= 0
            layers, measured = layers[is_known], measured[is_known]
        positions = columns.positions[layers]
        present[i, positions] = True
        order = [row.statistics.index(name) for name in columns.statistics]
        values[:, i, positions] = measured[:, order].T
    return values, present
