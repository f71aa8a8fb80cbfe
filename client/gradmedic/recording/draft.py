"""A step as `log()` leaves it, and how it becomes a `Step`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from gradmedic.recording.instrumentation import PendingMeasurement, PendingNumber
from gradmedic.recording.spike_detector import SpikeDetector, Totals, measure_totals
from gradmedic.recording.step import Row, Step

UnreadNumber = float | PendingNumber | None
"""A number that may still be on a device; None if it was not given."""

Ordered = TypeVar("Ordered", bound=float)


class Draft(NamedTuple):
    """A step some of whose numbers may still be on a device. A tuple, because that costs the training least."""

    number: int
    time: float
    """Seconds since the Unix epoch."""
    loss: UnreadNumber
    learning_rate: UnreadNumber
    metrics: Mapping[str, UnreadNumber]
    measurements: list[PendingMeasurement]
    row: Row | None
    """Statistics that were given to `log()`."""
    is_spike: bool | None = None
    """Whether the step jumps; None if numbers on a device decide it, which were not waited for."""


def complete_step(draft: Draft) -> Step:
    """Return the step of a draft, waiting for devices if needed."""
    measurements = [measurement.read() for measurement in draft.measurements]
    learning_rate = read_number(draft.learning_rate)
    if learning_rate is None:
        learning_rate = largest(measurement.learning_rate for measurement in measurements)
    metrics = {name: number for name, unread in draft.metrics.items() if (number := read_number(unread)) is not None}
    for measurement in measurements:
        metrics.update(measurement.probes)
    step = Step(
        number=draft.number,
        time=draft.time,
        loss=read_number(draft.loss),
        learning_rate=learning_rate,
        loss_scale=largest(measurement.loss_scale for measurement in measurements),
        clip_coefficient=_smallest(measurement.clip_coefficient for measurement in measurements),
        output_gradient_norm=_join_norms(measurement.output_gradient_norm for measurement in measurements),
        skipped=any(measurement.skipped for measurement in measurements)
        and not any(measurement.has_update for measurement in measurements),
        metrics=metrics,
        row=_join_rows([draft.row, *(measurement.row for measurement in measurements)]),
        guard_actions=tuple(action.at(draft.number) for each in measurements for action in each.guard_actions),
    )
    evidence = [measurement.evidence for measurement in measurements if measurement.evidence]
    if not evidence or (step.is_finite and not step.lacks_gradients and not step.skipped):
        return step
    return dataclasses.replace(step, metrics={**metrics, **{name: each[name] for each in evidence for name in each}})


def join_steps(step: Step, addition: Step) -> Step:
    """Return a step with what was logged for it later: metrics, layers, and what it lacks of the rest."""
    return dataclasses.replace(
        step,
        loss=addition.loss if step.loss is None else step.loss,
        learning_rate=addition.learning_rate if step.learning_rate is None else step.learning_rate,
        metrics={**step.metrics, **addition.metrics},
        row=_extend_row(step.row, addition.row),
    )


def fits_row(row: Row | None, addition: Row | None) -> bool:
    """Whether all that `addition` has can be added to `row`: further layers, with at least the same statistics."""
    if row is None or addition is None:
        return True
    return set(row.statistics) <= set(addition.statistics) and not np.isin(addition.layers, row.layers).any()


def find_spike(
    spikes: SpikeDetector, number: int, loss: UnreadNumber, measurements: Iterable[PendingMeasurement], row: Row | None
) -> bool | None:
    """Return whether a step jumps, or is the first with a non-finite number; None if a device would be waited for."""
    if type(loss) is not float and loss is not None:
        return None
    totals: list[Totals] = []
    for measurement in measurements:
        measured = measurement.read_totals()
        if measured is None:
            return None
        totals += measured
    if row is not None:
        totals.append(measure_totals(row))
    return spikes.update_totals(number, loss, totals)


def read_number(number: UnreadNumber) -> float | None:
    """Return a number, waiting for its device if needed."""
    return number if number is None or isinstance(number, float) else number.read()


def largest(values: Iterable[Ordered | None]) -> Ordered | None:
    """Return the largest of the values that are not None; None if there are none."""
    return max((value for value in values if value is not None), default=None)


def _join_norms(norms: Iterable[float | None]) -> float | None:
    """Return the norm of several vectors as one, None if there are none."""
    present = [norm for norm in norms if norm is not None]
    return math.hypot(*present) if present else None


def _smallest(values: Iterable[Ordered | None]) -> Ordered | None:
    return min((value for value in values if value is not None), default=None)


def _extend_row(row: Row | None, addition: Row | None) -> Row | None:
    """Return a row with the layers of another one that it lacks. An addition without its statistics is left out."""
    if row is None or addition is None or not set(row.statistics) <= set(addition.statistics):
        return addition if row is None else row
    is_new = ~np.isin(addition.layers, row.layers)
    return _join_rows([row, Row(addition.statistics, addition.layers[is_new], addition.values[is_new])])


def _join_rows(rows: Iterable[Row | None]) -> Row | None:
    present = [row for row in rows if row is not None]
    if len(present) < 2:
        return present[0] if present else None
    common = tuple(name for name in present[0].statistics if all(name in row.statistics for row in present))
    columns = [[row.statistics.index(name) for name in common] for row in present]
    return Row(
        common,
        np.concatenate([row.layers for row in present]),
        np.concatenate([row.values[:, order] for row, order in zip(present, columns, strict=True)]),
    )
