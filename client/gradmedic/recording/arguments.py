"""Reads the arguments of `log()`. What cannot be recorded is left out and logged once."""

from __future__ import annotations

import operator
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradmedic.protocol.names import name_error
from gradmedic.protocol.numbers import MAX_EXACT_INTEGER, to_float32
from gradmedic.protocol.probes import PREFIX
from gradmedic.protocol.runs import Layer
from gradmedic.protocol.statistics import SERIES, STATISTICS, STATISTICS_TABLE
from gradmedic.recording.array_statistics import ARRAY_STATISTICS, measure_gradient
from gradmedic.recording.draft import Draft, UnreadNumber, find_spike, read_number
from gradmedic.recording.instrumentation import Instrumentation, PendingMeasurement
from gradmedic.recording.layers import LayerRegistry
from gradmedic.recording.one_time_warnings import OneTimeWarnings
from gradmedic.recording.spike_detector import SpikeDetector
from gradmedic.recording.step import Row
from gradmedic.recording.tree import flatten, is_nested

Number = Any
"""A Python or numpy number, or a tensor with one element."""

_EXCERPT = 50
"""Characters of a wrong name that a warning shows."""


class ArgumentReader:
    """Reads the arguments of one run. Used by the training thread.

    Args:
        layers: layers of the run; new ones are added.
        instrumentations: instrumentations of the run, which may own tensors.
        warnings: take what is left out.
    """

    def __init__(
        self, layers: LayerRegistry, instrumentations: Sequence[Instrumentation], warnings: OneTimeWarnings
    ) -> None:
        self._layers = layers
        self._instrumentations = instrumentations
        self._warn = warnings.warn
        self._valid_metric_names: set[str] = set()

    def read_step_number(self, step: int, last_step: int, *, may_join: bool) -> int | None:
        """Return the number of a step, or None if the step cannot be recorded under it.

        Args:
            step: number that was given.
            last_step: number of the last step.
            may_join: whether what is logged may belong to the last step.
        """
        try:
            number = operator.index(step)
        except TypeError:
            self._warn("step type", f"step must be an integer, not {step!r}; the step is left out")
            return None
        if may_join and number == last_step:
            return number
        if number <= last_step or number < 0:
            self._warn(
                "step order",
                f"step {number} is left out: it does not follow step {last_step}. Give log() growing numbers, and call "
                "run.rewind(step) after loading a checkpoint",
            )
            return None
        if number > MAX_EXACT_INTEGER:
            self._warn("step size", f"step {number} is left out: steps end at {MAX_EXACT_INTEGER}")
            return None
        return number

    def read_draft(
        self,
        number: int,
        loss: Number | None,
        learning_rate: Number | None,
        metrics: Mapping[str, Number],
        measurements: list[PendingMeasurement],
        gradients: Any,
        statistics: Mapping[str, Mapping[str, Number]] | None,
        spikes: SpikeDetector | None,
    ) -> Draft:
        """Return the draft of a step: what was measured, and what `log()` was given.

        Args:
            number: number of the step.
            loss: argument of `log()`.
            learning_rate: the same.
            metrics: the same.
            gradients: the same.
            statistics: the same.
            measurements: what was measured since the last step.
            spikes: detector of the run's spikes; None for an addition to the last step.
        """
        unread = None if loss is None else self.read_number("loss", loss)
        row = None if gradients is None and statistics is None else self.read_row(gradients, statistics)
        is_spike = None
        if spikes is not None:
            has_row = row is not None
            for measurement in measurements:
                has_row = has_row or measurement.has_numbers
            if has_row or (unread is not None and type(unread) is not float):
                is_spike = find_spike(spikes, number, unread, measurements, row)
            else:  # the usual step, with the fewest calls: after a training step, the caches are cold
                is_spike = spikes.update_totals(number, unread, ())
        return Draft(
            number,
            time.time(),
            unread,
            None if learning_rate is None else self.read_number("learning_rate", learning_rate),
            self.read_metrics(metrics) if metrics else {},
            measurements,
            row,
            is_spike,
        )

    def read_number(self, name: str, value: Number | None) -> UnreadNumber:
        """Return a number, or start to copy it from a device; None if it is no number."""
        if value is None or type(value) is float:
            return value
        for instrumentation in self._instrumentations:
            unread = instrumentation.start_reading(value)
            if unread is not None:
                return unread
        try:
            return float(value.item() if hasattr(value, "item") else value)
        except Exception as error:
            self._warn(f"number {name}", f"{name} is left out where it is not a number: {error}")
            return None

    def split_loss(self, values: Mapping[str, Any]) -> tuple[Number | None, dict[str, Number]]:
        """Return the loss in a mapping that `log()` was given in place of a loss, and the other values as metrics."""
        metrics = dict(self._flatten("the values", values))
        return metrics.pop("loss", None), metrics

    def join_metrics(self, metrics: Mapping[str, Number], more: dict[str, Number]) -> dict[str, Number]:
        """Return both mappings as one."""
        if not isinstance(metrics, Mapping):
            self._warn("metrics", f"metrics must map names to numbers; {type(metrics)} is left out")
            return more
        return {**metrics, **more}

    def read_metrics(self, metrics: Mapping[str, Number]) -> dict[str, UnreadNumber]:
        """Return the numbers of the metrics whose names the service accepts."""
        numbers: dict[str, UnreadNumber] = {}
        for name, value in metrics.items():  # no comprehension: it is a call, and the caches are cold after a step
            if self._is_metric_name(str(name)):
                numbers[str(name)] = self.read_number(name, value)
        return numbers

    def read_row(
        self, gradients: Mapping[str, Any] | None, statistics: Mapping[str, Mapping[str, Number]] | None
    ) -> Row | None:
        """Return the row of gradients or statistics; one of them is not None."""
        if self._instrumentations or (gradients is not None and statistics is not None):
            self._warn(
                "two sources",
                "gradients and statistics given to log() are left out: a run gets them from watch(), from gradients= "
                "or from statistics=, not from several of them",
            )
            return None
        return self._read_gradients(gradients) if statistics is None else self._read_statistics(statistics)

    def _read_gradients(self, gradients: Mapping[str, Any] | None) -> Row | None:
        if not is_nested(gradients):
            self._warn(
                "gradients",
                f"gradients must map names of layers to arrays, nested or not; {type(gradients)} is left out",
            )
            return None
        layers, values = [], []
        for name, gradient in self._flatten("gradients", gradients):
            try:
                array = np.asarray(gradient)
                measured = measure_gradient(array)
            except Exception as error:
                self._warn(f"gradient {name}", f"the gradient of {name} is left out: {error}")
                continue
            position = self._find_position(name, list(array.shape))
            if position is not None:
                layers.append(position)
                values.append(measured)
        return _to_row(ARRAY_STATISTICS, layers, values)

    def _read_statistics(self, statistics: Mapping[str, Mapping[str, Number]]) -> Row | None:
        if not isinstance(statistics, Mapping) or not all(isinstance(row, Mapping) for row in statistics.values()):
            self._warn("statistics", 'statistics must map like {"layer": {"grad_norm": 0.3}}; others are left out')
            return None
        common = [name for name in STATISTICS if all(name in layer for layer in statistics.values())]
        for layer, numbers in statistics.items():
            left_out = sorted(set(numbers) - set(common))
            if left_out:
                self._warn(
                    f"statistics {left_out}",
                    f"{', '.join(left_out)} of {layer} is left out: statistics are {', '.join(STATISTICS)}, "
                    "and every layer of a step has the same ones",
                )
        if not common:
            return None
        layers, values = [], []
        for name, numbers in statistics.items():
            if (error := _range_error(common, numbers)) is not None:
                self._warn(f"range {name}", f"the statistics of {name} are left out: {error}")
                continue
            unread = [self.read_number(f"{statistic} of {name}", numbers[statistic]) for statistic in common]
            row = [number for value in unread if (number := read_number(value)) is not None]
            position = self._find_position(name, None) if len(row) == len(common) else None
            if position is not None:
                layers.append(position)
                values.append(tuple(row))
        return _to_row(tuple(common), layers, values)

    def _flatten(self, argument: str, tree: Any) -> list[tuple[str, Any]]:
        """Return the leaves of nested values with their dotted paths."""
        try:
            return list(flatten(tree))
        except Exception as error:
            self._warn(f"tree {argument}", f"{argument} are left out: {error}")
            return []

    def _find_position(self, name: object, shape: list[int] | None) -> int | None:
        """Return the position of a layer, adding a new one; None if the service does not accept the name."""
        name = str(name)
        position = self._layers.position(name)
        if position is None:
            if (error := name_error(name)) is not None:
                self._warn(f"layer {name}", f"the layer {name[:_EXCERPT]!r} is left out: its name {error}")
                return None
            numel = None if shape is None else int(np.prod(shape, dtype=np.int64))
            position = self._layers.add(Layer(name=name, shape=shape, numel=numel))
        return position

    def _is_metric_name(self, name: str) -> bool:
        """Return whether the service accepts a metric of this name. For one that it does not, it refuses the block."""
        if name in self._valid_metric_names:
            return True
        error = name_error(name)
        if name in SERIES or name in STATISTICS or name.startswith(PREFIX):
            error = "is a name that gradmedic gives a meaning of its own; choose another"
        if error is not None:
            self._warn(f"metric {name}", f"the metric {name[:_EXCERPT]!r} is left out: {error}")
            return False
        self._valid_metric_names.add(name)
        return True


def _range_error(statistics: Sequence[str], numbers: Mapping[str, Number]) -> str | None:
    """Return which statistic of a layer is out of its range, None if none is: the service refuses a block with one."""
    for name in statistics:
        row = STATISTICS_TABLE[name]
        try:
            value = float(numbers[name])
        except (TypeError, ValueError):
            continue  # it is left out where it is read
        if not row.is_signed and (value < row.minimum or value > row.maximum):
            return f"{name} must be from {row.minimum:g} to {row.maximum:g}, not {value:g}"
    return None


def _to_row(statistics: tuple[str, ...], layers: Sequence[int], values: Sequence[tuple[float, ...]]) -> Row:
    array = np.array(values, dtype=np.float64).reshape(len(layers), len(statistics))
    return Row(statistics, np.array(layers, dtype=np.int32), to_float32(array))
