"""What a `Watch` measures between two calls of `log()`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradmedic.protocol.numbers import to_float32
from gradmedic.recording.action_draft import ActionDraft
from gradmedic.recording.instrumentation import Measurement
from gradmedic.recording.spike_detector import Totals
from gradmedic.recording.step import Row
from gradmedic.torch.columns import NONFINITE_COUNT, WATCHED_STATISTICS
from gradmedic.torch.optimizers import read_number
from gradmedic.torch.probes import ProbeValues
from gradmedic.torch.statistics import HostArray, MeasuredArray
from gradmedic.torch.updates import UpdateMeasurement
from gradmedic.torch.watched_layers import WatchedParameter

_MAX_ARRAYS = 300
"""Arrays that are held of one step: those of a hundred optimizer steps. More are merged into one, so that a script that
seldom or never calls `log()` does not fill the memory."""


_GRAD_NORM = WATCHED_STATISTICS.index("grad_norm")
_TOTAL_COLUMNS = tuple((name, WATCHED_STATISTICS.index(name)) for name in ("grad_norm", "update_norm"))
"""Columns of the statistics that have a total over all layers."""


@dataclass(frozen=True, slots=True)
class _PartialTable:
    """Some statistics of some layers."""

    positions: NDArray[np.int32]
    """Positions of the layers in the run."""
    columns: slice
    """Columns of the statistics in the whole table."""
    array: MeasuredArray
    rows: NDArray[np.int_] | None
    """Row of each layer in the array; None if the array has just these layers."""


class StepMeasurement:
    """The measurements since the last `log()`, usually of one optimizer step. They may not have arrived yet.

    Args:
        statistics: names of the table's columns.
        before_read: function that is called when the measurement is read.
    """

    __slots__ = (
        "_before_read", "_before_step", "_flags", "_parts", "_statistics", "_steps_left_out", "_steps_taken",
        "clip_coefficients", "evidence", "found_inf", "guard_actions", "has_numbers", "has_stepped", "is_unwatched",
        "learning_rate", "output_gradient_norms", "probes", "scale_after", "scale_before",
    )  # fmt: skip

    def __init__(self, statistics: tuple[str, ...], before_read: Callable[[], None]) -> None:
        self._statistics = statistics
        self._before_read = before_read
        self._parts: list[_PartialTable] = []
        self._flags: tuple[tuple[NDArray[np.int32], MeasuredArray], ...] = ()
        self.has_numbers = False
        """Whether there are statistics of layers, or may be."""
        self.has_stepped = False
        """Whether an optimizer has stepped."""
        self.is_unwatched = False
        """Whether only something that is not watched changed the layers. Then no layer counts as present."""
        self._steps_taken = self._steps_left_out = 0  # of optimizers
        self._before_step = 0, 0  # parts and flags before the last optimizer step
        self.guard_actions: Sequence[ActionDraft] = ()
        """What guards did."""
        self.learning_rate: float | None = None
        """The largest learning rate of the optimizers that stepped."""
        self.clip_coefficients: list[MeasuredArray] = []
        self.output_gradient_norms: Sequence[MeasuredArray] = ()
        """Norms of the loss's gradient at outputs, whose squares add up; none if it was not measured."""
        self.probes: Sequence[ProbeValues] = ()
        self.evidence: Sequence[ProbeValues] = ()
        """Probes that belong to the step only if it has a non-finite number, or no layer has a gradient."""
        self.found_inf: list[MeasuredArray] = []
        """Of optimizer steps with a loss scaler: whether the step was skipped."""
        self.scale_before: MeasuredArray | None = None
        """Loss scale at the last `log()`."""
        self.scale_after: MeasuredArray | None = None
        """Loss scale now."""

    def add_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Record that an optimizer steps."""
        self.has_stepped = True
        self._steps_taken += 1
        self._before_step = len(self._parts), len(self._flags)
        rates = [rate for group in optimizer.param_groups if (rate := read_number(group.get("lr"))) is not None]
        if self.learning_rate is not None:
            rates.append(self.learning_rate)
        self.learning_rate = max(rates, default=None)

    def drop_optimizer_step(self) -> None:
        """Remove the statistics of the last optimizer step, which a guard has left out."""
        self._steps_taken -= 1
        self._steps_left_out += 1
        parts, flags = self._before_step
        del self._parts[parts:]
        self._flags = self._flags[:flags]

    def add_clip_coefficient(self, coefficient: MeasuredArray) -> None:
        """Add what gradients were multiplied by."""
        if len(self.clip_coefficients) >= _MAX_ARRAYS:
            self._merge_clip_coefficients()
        self.clip_coefficients.append(coefficient)

    def add(
        self,
        watched: Sequence[WatchedParameter],
        columns: slice,
        array: MeasuredArray,
        rows: NDArray[np.int_] | None = None,
    ) -> None:
        """Add some statistics of some layers. Later ones replace earlier ones.

        Args:
            watched: the parameters.
            columns: columns of the statistics in the whole table.
            array: the statistics, `[parameter, statistic]`.
            rows: rows of the parameters in the array, if it has others too.
        """
        if len(self._parts) >= _MAX_ARRAYS:
            self._merge()
        self.has_numbers = True
        self._parts.append(_PartialTable(_list_positions(watched), columns, array, rows))

    def add_flags(self, watched: Sequence[WatchedParameter], array: MeasuredArray) -> None:
        """Add what `measure_flags` measured of some layers. Of an optimizer step too many, it is dropped."""
        self.has_numbers = True
        if len(self._flags) < _MAX_ARRAYS:
            self._flags = (*self._flags, (_list_positions(watched), array))

    def discard_statistics(self) -> None:
        """Remove the statistics of layers."""
        self._parts.clear()

    def join_on_device(self, watched: Sequence[WatchedParameter]) -> Tensor:
        """Return the table `[parameter, statistic]` of these parameters, on the device where it was measured."""
        if not watched:  # a guard has hidden the gradients
            return torch.zeros((0, len(self._statistics)))
        row_of = {parameter.position: row for row, parameter in enumerate(watched)}
        table: Tensor | None = None
        for part in self._parts:
            measured = part.array.tensor()
            measured = measured.reshape(len(measured), -1)
            if part.rows is not None:
                measured = measured[torch.from_numpy(part.rows).to(measured.device)]
            if table is None:
                table = measured.new_zeros((len(watched), len(self._statistics)))
            rows = torch.tensor([row_of[position] for position in part.positions.tolist()], device=table.device)
            table[rows, part.columns] = measured.to(table)
        return torch.zeros((len(watched), len(self._statistics))) if table is None else table

    def read_totals(self) -> Sequence[Totals] | None:
        """Return the totals over all layers, none if no layer was measured; None if a device would be waited for."""
        if self.found_inf or self._flags:
            return None
        if not self._parts:
            return ()
        if not all(part.array.is_ready for part in self._parts):
            return None
        is_finite, squares = True, {"grad_norm": 0.0, "update_norm": 0.0}
        for part in self._parts:
            array = part.array.read()
            if not array.size:  # of sharded layers that the processes did not measure together
                continue
            array = array.reshape(len(array), -1)
            if part.rows is not None:
                array = array[part.rows]
            first, end, _ = part.columns.indices(len(self._statistics))
            is_finite = is_finite and math.isfinite(array.sum())
            if first <= NONFINITE_COUNT < end:
                is_finite = is_finite and not array[:, NONFINITE_COUNT - first].any()
            for name, column in _TOTAL_COLUMNS:
                if first <= column < end:
                    values = array[:, column - first]
                    squares[name] += float(values.dot(values))
        return (Totals(is_finite, squares["grad_norm"], squares["update_norm"]),)

    @property
    def may_need_evidence(self) -> bool:
        """Whether a gradient is non-finite, or all are zero, or a device is still to show that."""
        if (
            self._steps_left_out
            or self._flags
            or any(not array.is_ready or array.read().max() > 0 for array in self.found_inf)
        ):
            return True
        has_gradient = not self._parts
        for part in self._parts:
            first, end, _ = part.columns.indices(len(self._statistics))
            if not first <= NONFINITE_COUNT < end:
                continue
            if not part.array.is_ready:
                return True
            array = part.array.read()
            if not array.size:
                return False  # the processes did not measure the step together
            array = array.reshape(len(array), -1)
            array = array if part.rows is None else array[part.rows]
            if array[:, NONFINITE_COUNT - first].any():
                return True
            has_gradient = has_gradient or bool(array[:, _GRAD_NORM - first].any())
        return not has_gradient

    def read(self) -> Measurement:
        """Return the measurement, waiting for the device if need be."""
        self._before_read()
        is_skipped = any(array.read().max() > 0 for array in self.found_inf)
        is_skipped = is_skipped or (self._steps_left_out > 0 and self._steps_taken == 0)
        scale = None
        if self.scale_before is not None and self.scale_after is not None:
            scale, scale_after = float(self.scale_before.read()[0]), float(self.scale_after.read()[0])
            is_skipped = is_skipped or (not self.has_stepped and scale_after < scale)
        norms = [float(array.read()[0]) / (scale or 1.0) for array in self.output_gradient_norms]
        coefficients = [float(array.read()[0]) for array in self.clip_coefficients]
        return Measurement(
            row=None if is_skipped else self._read_row(),
            learning_rate=self.learning_rate,
            loss_scale=scale,
            clip_coefficient=float(np.min(coefficients)) if coefficients else None,  # NaN if any is NaN
            output_gradient_norm=math.hypot(*norms) if norms and self.has_stepped and not is_skipped else None,
            skipped=is_skipped,
            has_update=self._steps_taken > 0 and not is_skipped,
            guard_actions=self.guard_actions,
            probes={name: value for part in self.probes for name, value in part.read(scale or 1.0)},
            evidence={name: value for part in self.evidence for name, value in part.read()},
        )

    def _read_row(self) -> Row | None:
        """Return the statistics of all touched layers. Of several optimizer steps, the last one counts.

        Only of `nonfinite_count`, the largest counts.
        """
        if self.is_unwatched and not self._parts:
            return Row(self._statistics, np.zeros(0, dtype=np.int32), np.zeros((0, len(self._statistics)), np.float32))
        if not self._parts:
            return self._read_flags()
        if any(part.array.read().size == 0 for part in self._parts):
            return None
        positions, values = self._join()
        return Row(self._statistics, positions, to_float32(values))

    def _read_flags(self) -> Row | None:
        """Return a row of the layers with a non-finite gradient, None if there are none.

        The step was not sampled, so that some numbers are not known exactly: at least one element is not finite, and
        the update is taken to be like the gradient.
        """
        found: dict[int, tuple[float, float]] = {}
        for positions, array in self._flags:
            largest, weights = array.read().T
            for i in np.flatnonzero(~np.isfinite(largest)):
                found.setdefault(int(positions[i]), (float(largest[i]), float(weights[i])))
        if not found:
            return None
        positions = np.array(sorted(found), dtype=np.int32)
        values = np.zeros((len(positions), len(self._statistics)))
        numbers = np.array([found[position] for position in positions])
        for name in ("grad_norm", "grad_abs_max", "update_norm"):
            values[:, self._statistics.index(name)] = numbers[:, 0]
        values[:, self._statistics.index("grad_mean")] = math.nan
        values[:, NONFINITE_COUNT] = 1.0
        values[:, self._statistics.index("weight_norm")] = numbers[:, 1]
        return Row(self._statistics, positions, to_float32(values))

    def _merge(self) -> None:
        """Replace all that is held by what `read` would return of it."""
        positions, values = self._join()
        self._parts = [_PartialTable(positions, slice(None), HostArray(values), None)]
        self._merge_clip_coefficients()
        if self.found_inf:
            self.found_inf = [HostArray(np.max([array.read() for array in self.found_inf], axis=0))]

    def _merge_clip_coefficients(self) -> None:
        if self.clip_coefficients:
            self.clip_coefficients = [HostArray(np.min([array.read() for array in self.clip_coefficients], axis=0))]

    def _join(self) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Return the positions of the touched layers, and their table `[layer, statistic]`."""
        first = self._parts[0].positions
        if all(np.array_equal(part.positions, first) for part in self._parts):
            touched, rows = first, slice(None)  # the usual case, and several times faster
        else:
            # np.unique would load numpy.ma: a megabyte, and some 20 ms in which the training waits for the interpreter.
            every = {position for part in self._parts for position in part.positions.tolist()}
            touched = np.array(sorted(every), dtype=np.int32)
            rows = None
        values = np.zeros((len(touched), len(self._statistics)))
        largest_count = np.zeros(len(touched))
        for part in self._parts:
            array = part.array.read()
            array = array.reshape(len(array), -1)
            part_rows = np.searchsorted(touched, part.positions) if rows is None else rows
            values[part_rows, part.columns] = array if part.rows is None else array[part.rows]
            np.maximum(largest_count, values[:, NONFINITE_COUNT], out=largest_count)
        values[:, NONFINITE_COUNT] = largest_count
        return touched, values


def _list_positions(watched: Sequence[WatchedParameter]) -> NDArray[np.int32]:
    return np.fromiter((parameter.position for parameter in watched), dtype=np.int32, count=len(watched))


class OptimizerUpdate:
    """A step of an optimizer that has not returned yet."""

    __slots__ = ("by_device", "has_closure", "measurement")

    def __init__(self, has_closure: bool, measurement: StepMeasurement) -> None:
        self.has_closure = has_closure
        self.measurement = measurement
        """Measurement to which the statistics are added."""
        self.by_device: list[tuple[list[WatchedParameter], UpdateMeasurement]] = []
