"""Decodes the body of `POST /runs/{id}/steps` to a block.

Both forms, JSON and msgpack, become a `ReceivedBlock`, and every rule is checked on that. `decode_block` checks what it
can check without the run, before the run is locked; `ReceivedBlock.fit` checks the rest under the lock.

A hostile body takes little memory. The values of JSON are counted on its bytes before they are built. A msgpack body is
cut into its fields first, and each field is decoded once its bytes are few enough.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from pydantic_core import SchemaValidator, ValidationError

from gradmedic.protocol.guards import GuardAction
from gradmedic.protocol.names import name_error
from gradmedic.protocol.numbers import MAX_EXACT_INTEGER, to_float32
from gradmedic.protocol.schema import NumberOrNull
from gradmedic.protocol.service import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE, FieldError, Limits
from gradmedic.protocol.statistics import SERIES, SERIES_TABLE, STATISTICS, STATISTICS_TABLE
from gradmedic.protocol.steps import StepsAppend
from gradmedic_diagnosis import Block, StepSeries
from gradmedic_service.guards.validation import block_errors as guard_errors
from gradmedic_service.http.bodies import NAME_MARKS, VALUE_MARKS, has_more
from gradmedic_service.http.errors import (
    MAX_PATH_LENGTH,
    InvalidRequest,
    MalformedBody,
    UnsupportedMediaType,
    field_path,
)
from gradmedic_service.http.validation import errors_of, stopping_validator
from gradmedic_service.telemetry.codec import packed_length, unpack_flags
from gradmedic_service.telemetry.packed_fields import (
    decode_actions,
    decode_bytes,
    decode_list,
    is_null,
    split_fields,
    split_map,
)
from gradmedic_service.telemetry.plain_json import Rows, read_plain

STEPS_APPEND = TypeAdapter(StepsAppend)
STEPS_VALIDATOR = stopping_validator(STEPS_APPEND)
SERIES_VALIDATOR = stopping_validator(TypeAdapter(list[NumberOrNull]))
MAX_JSON_VALUES = 2**20
"""Values and names in a block of JSON: a number of two bytes takes 64 bytes while it is decoded. Msgpack needs no such
limit."""
MAX_JSON_NAMES = 2**14
"""Names in a block of JSON: pydantic reports every one that is unknown or has a wrong value."""
LARGEST_STEP = MAX_EXACT_INTEGER
LARGEST_GENERATION = 2**31 - 1
FLOAT32_BYTES = 4

Matrix = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedBlock:
    """A block that is consistent in itself; `fit` checks whether it fits its run."""

    generation: int | None
    steps: NDArray[np.int64]
    sampled: Mask
    skipped: Mask
    series: Mapping[str, StepSeries]
    metrics: Mapping[str, StepSeries]
    statistics: Mapping[str, Matrix]
    """Each statistic as `[sampled step, layer]`, 0 where the layer is absent."""
    present: Mask
    """`[sampled step, layer]`: whether an optimizer touched the layer."""
    guard_actions: Sequence[GuardAction] = ()
    """The actions of guards in these steps, in their order."""

    def count_values(self, steps: int) -> int:
        """Return the number of values of the last `steps` steps: sampled steps x layers x statistics."""
        sampled = int(np.count_nonzero(self.sampled[len(self.steps) - steps :]))
        return sampled * int(self.present.shape[1]) * len(self.statistics)

    def fit(self, statistics: Sequence[str], layer_counts: Sequence[int]) -> Block:
        """Return the block with the statistics and layers of its run. Raises InvalidRequest where it does not fit.

        Args:
            statistics: statistics of the run, in its order.
            layer_counts: numbers of layers that the run has had, ascending. In a block of an earlier number, the later
                layers are absent.
        """
        sampled_count, width = self.present.shape
        layer_count = layer_counts[-1]
        if sampled_count:
            errors = list(self._find_misfits(statistics, layer_counts, width))
            if errors:
                raise InvalidRequest(errors)
        # The values of a statistic are neighbours in memory, as in the body and in a chunk.
        by_statistic = np.zeros((len(statistics), sampled_count, layer_count), dtype=np.float32)
        present = np.zeros((sampled_count, layer_count), dtype=np.bool_)
        if sampled_count:
            present[:, :width] = self.present
            for index, name in enumerate(statistics):
                by_statistic[index, :, :width] = self.statistics[name]
        return Block(
            steps=self.steps,
            sampled=self.sampled,
            skipped=self.skipped,
            statistics=tuple(statistics),
            values=by_statistic.transpose(1, 2, 0),
            present=present,
            series=self.series,
            metrics=self.metrics,
        )

    def _find_misfits(self, statistics: Sequence[str], layer_counts: Sequence[int], width: int) -> Iterable[FieldError]:
        recorded = ", ".join(statistics)
        for name in self.statistics:
            if name not in statistics:
                yield FieldError(path=f"statistics.{name}", message=f"the run does not record it, only {recorded}")
        for name in statistics:
            if name not in self.statistics:
                message = "is missing; every sampled step carries every statistic of the run"
                yield FieldError(path=f"statistics.{name}", message=message)
        if self.statistics and width not in layer_counts:
            path = f"statistics.{next(iter(self.statistics))}"
            yield FieldError(
                path=path, message=f"the second dimension, layers, must be {layer_counts[-1]}; got {width}"
            )


def decode_block(body: bytes, media_type: str, limits: Limits) -> ReceivedBlock:
    """Decode a body of either form. Raises MalformedBody, UnsupportedMediaType, InvalidRequest."""
    if media_type == JSON_MEDIA_TYPE:
        return _from_json(body, limits)
    if media_type == MSGPACK_MEDIA_TYPE:
        return _from_msgpack(body, limits)
    raise UnsupportedMediaType(
        f"Content-Type is {media_type or 'missing'}; send {JSON_MEDIA_TYPE} or {MSGPACK_MEDIA_TYPE}."
    )


def _from_json(body: bytes, limits: Limits) -> ReceivedBlock:
    if has_more(body, VALUE_MARKS, MAX_JSON_VALUES):
        raise InvalidRequest.at("body", f"has more than {MAX_JSON_VALUES} values; send fewer steps at once, or msgpack")
    if has_more(body, NAME_MARKS, MAX_JSON_NAMES):
        raise InvalidRequest.at("body", f"has more than {MAX_JSON_NAMES} names")
    append, rows_by_name = read_plain(body, STEPS_VALIDATOR) or _validate_json(body)
    check = _BlockCheck(
        append, limits, append.metrics.keys(), append.metrics.items(), has_statistics=bool(rows_by_name)
    )
    statistics: dict[str, Matrix] = {}
    absences: dict[str, Mask] = {}
    rows_expected = int(np.count_nonzero(check.sampled))
    for name, rows in rows_by_name.items():
        path = f"statistics.{name}"
        width = len(rows[0]) if rows else 0
        if not check.has_statistic(name) or not check.has_rows(path, len(rows), rows_expected):
            continue
        ragged = [index for index, row in enumerate(rows) if len(row) != width]
        if ragged:
            check.refuse(
                f"{path}[{ragged[0]}]", f"must have {width} layers as in {path}[0]; got {len(rows[ragged[0]])}"
            )
            continue
        wide, absences[name] = _to_matrix(rows, width)
        statistics[name] = to_float32(wide)
    check.raise_if_refused()
    check.check_widths(statistics)
    check.check_absences(absences)
    check.check_ranges(statistics)
    absent = next(iter(absences.values()), np.zeros((rows_expected, 0), dtype=np.bool_))
    return check.to_block(statistics, ~absent)


def _validate_json(body: bytes) -> tuple[StepsAppend, dict[str, Rows]]:
    """Return a block and its statistics. Raises MalformedBody, InvalidRequest."""
    try:
        append: StepsAppend = STEPS_VALIDATOR.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            message = first["msg"].removeprefix("Invalid JSON: ")
            raise MalformedBody(f"The body is not JSON: {message}.") from None
        raise InvalidRequest(errors_of(error)) from None
    return append, append.statistics


def _to_matrix(rows: Rows, width: int) -> tuple[NDArray[np.float64], Mask]:
    """Return rows of one length as `[sampled step, layer]`, 0 where a number is absent, and where one is absent."""
    shape = len(rows), width
    try:
        numbers = struct.pack(f"{len(rows) * width}d", *chain.from_iterable(rows))
    except struct.error:  # because of a null
        wide = np.array(rows, dtype=np.float64).reshape(shape)
        absent = np.isnan(wide)
        for row, column in np.argwhere(absent):
            absent[row, column] = rows[row][column] is None
        wide[absent] = 0.0
        return wide, absent
    return np.frombuffer(numbers).reshape(shape), np.zeros(shape, dtype=np.bool_)


def _from_msgpack(body: bytes, limits: Limits) -> ReceivedBlock:
    fields = split_fields(body)
    statistics_field = None if is_null(fields.get("statistics")) else fields["statistics"]
    packed_statistics = split_map(statistics_field, "statistics", "a map from names to bytes", len(STATISTICS))
    packed_metrics = split_map(fields.get("metrics"), "metrics", "a map from names to lists", limits.max_metrics)
    packed_present = fields.get("present")
    packed_actions = fields.get("guard_actions")
    others = ("statistics", "metrics", "present", "guard_actions")
    lists = {name: raw for name, raw in fields.items() if name not in others}
    content = {name: decode_list(raw, name, limits.max_steps_per_block) for name, raw in lists.items()}
    if packed_actions is not None:
        content["guard_actions"] = decode_actions(packed_actions)
    append = _validate(STEPS_VALIDATOR, content)
    metrics = ((name, _decode_metric(name, raw, limits)) for name, raw in packed_metrics.items())
    check = _BlockCheck(append, limits, packed_metrics.keys(), metrics, has_statistics=bool(packed_statistics))
    rows_expected = int(np.count_nonzero(check.sampled))
    statistics: dict[str, Matrix] = {}
    for name, raw in packed_statistics.items():
        path = f"statistics.{name}"
        if not check.has_statistic(name):
            continue
        data = decode_bytes(raw)
        if data is None:
            check.refuse(path, "must be the bytes of a little-endian float32 array [sampled step, layer]")
        elif len(data) % (FLOAT32_BYTES * rows_expected or len(data) or 1):
            check.refuse(
                path, f"{len(data)} bytes are no whole number of float32 layers in {rows_expected} sampled steps"
            )
        elif data and not rows_expected:
            check.refuse(path, f"must be empty where no step is sampled; got {len(data)} bytes")
        else:
            width = len(data) // (FLOAT32_BYTES * rows_expected) if rows_expected else 0
            statistics[name] = np.frombuffer(data, dtype="<f4").reshape(rows_expected, width)
    check.raise_if_refused()
    check.check_widths(statistics)
    width = next((matrix.shape[1] for matrix in statistics.values()), 0)
    present = _unpack_present(packed_present, (rows_expected, width))
    if not present.all():
        statistics = {name: np.where(present, matrix, np.float32(0)) for name, matrix in statistics.items()}
    check.check_ranges(statistics)
    return check.to_block(statistics, present)


def _decode_metric(name: str, raw: msgspec.Raw, limits: Limits) -> list[float | None]:
    values = decode_list(raw, field_path(["metrics", name]), limits.max_steps_per_block)
    return cast("list[float | None]", _validate(SERIES_VALIDATOR, values, ("metrics", name)))


def _validate(validator: SchemaValidator, content: Any, path: Sequence[str | int] = ()) -> Any:
    """Return validated content. Raises InvalidRequest."""
    try:
        return validator.validate_python(content)
    except ValidationError as error:
        raise InvalidRequest(errors_of(error, path)) from None


def _unpack_present(raw: msgspec.Raw | None, shape: tuple[int, int]) -> Mask:
    if raw is None or is_null(raw):
        return np.ones(shape, dtype=np.bool_)
    count = shape[0] * shape[1]
    expected = packed_length(count)
    packed = decode_bytes(raw)
    if packed is None:
        raise InvalidRequest.at("present", "must be bytes, eight layers each")
    if len(packed) != expected:
        message = f"must be {expected} bytes for [{shape[0]} sampled steps, {shape[1]} layers]; got {len(packed)}"
        raise InvalidRequest.at("present", message)
    return unpack_flags(packed, count).reshape(shape)


class _BlockCheck:
    """Collects the errors of a block, and builds the block if there are none."""

    def __init__(
        self,
        append: StepsAppend,
        limits: Limits,
        metric_names: Collection[str],
        metrics: Iterable[tuple[str, list[float | None]]],
        *,
        has_statistics: bool,
    ) -> None:
        self._errors: list[FieldError] = []
        self._append = append
        self._limits = limits
        self._count = len(append.steps)
        self._steps = self._check_steps(append.steps)
        self.sampled = self._flags_from_list("sampled", append.sampled, default=has_statistics)
        self._skipped = self._flags_from_list("skipped", append.skipped, default=False)
        if append.generation is not None and not 0 <= append.generation <= LARGEST_GENERATION:
            self.refuse("generation", f"must be from 0 to {LARGEST_GENERATION}")
        self._series = {
            name: self._series_from_list(name, values)
            for name in SERIES
            if (values := getattr(append, name)) is not None
        }
        if append.guard_actions:
            self._errors += guard_errors(append.guard_actions, {*append.steps})
        self._metrics = {}
        if self._has_metric_names(metric_names):
            self._metrics = {name: self._series_from_list(f"metrics.{name}", values) for name, values in metrics}
        self.raise_if_refused()

    def refuse(self, path: str, message: str) -> None:
        """Add the error of a field."""
        self._errors.append(FieldError(path=path[:MAX_PATH_LENGTH], message=message))

    def raise_if_refused(self) -> None:
        """Raise InvalidRequest if there are errors."""
        if self._errors:
            raise InvalidRequest(self._errors)

    def has_statistic(self, name: str) -> bool:
        """Whether there is a statistic of that name; add an error if not."""
        if name in STATISTICS:
            return True
        self.refuse(f"statistics.{name}", f"is not a statistic; there are {', '.join(STATISTICS)}")
        return False

    def has_rows(self, path: str, found: int, expected: int) -> bool:
        """Whether a matrix has a row for each sampled step; add an error if not."""
        if found == expected:
            return True
        self.refuse(path, f"the first dimension, sampled steps, must be {expected}; got {found}")
        return False

    def check_widths(self, statistics: Mapping[str, Matrix]) -> None:
        """Raise InvalidRequest unless all matrices have the same number of layers and no more values than allowed."""
        if not statistics:
            return
        first, matrix = next(iter(statistics.items()))
        for name, other in statistics.items():
            if other.shape[1] != matrix.shape[1]:
                message = f"the second dimension, layers, is {other.shape[1]}, but {matrix.shape[1]} in {first}"
                self.refuse(f"statistics.{name}", message)
        values = matrix.size * len(statistics)
        if values > self._limits.max_values_per_block:
            self.refuse("statistics", f"has {values} values; at most {self._limits.max_values_per_block} are allowed")
        self.raise_if_refused()

    def check_ranges(self, statistics: Mapping[str, Matrix]) -> None:
        """Raise InvalidRequest for a value outside the range of its statistic. NaN is always allowed."""
        for name, matrix in statistics.items():
            statistic = STATISTICS_TABLE[name]
            if statistic.is_signed:
                continue
            impossible = matrix < statistic.minimum
            if math.isfinite(statistic.maximum):
                impossible |= matrix > statistic.maximum
            if impossible.any():
                row, column = (int(index) for index in np.argwhere(impossible)[0])
                has_maximum = math.isfinite(statistic.maximum)
                bounds = f"from 0 to {statistic.maximum:g}" if has_maximum else "0 or more"
                self.refuse(
                    field_path(["statistics", name, row, column]), f"must be {bounds}; got {matrix[row, column]}"
                )
        self.raise_if_refused()

    def check_absences(self, absences: Mapping[str, Mask]) -> None:
        """Raise InvalidRequest unless a layer is absent in every statistic of a step, or in none."""
        names = list(absences)
        for name in names[1:]:
            differing = np.argwhere(absences[name] != absences[names[0]])
            if len(differing):
                row, column = (int(index) for index in differing[0])
                null, number = (name, names[0]) if absences[name][row, column] else (names[0], name)
                path = field_path(["statistics", null, row, column])
                other = field_path([number, row, column])
                message = f"is null, but {other} is a number: a layer is absent in every statistic of a step or in none"
                self.refuse(path, message)
        self.raise_if_refused()

    def to_block(self, statistics: Mapping[str, Matrix], present: Mask) -> ReceivedBlock:
        """Return the block that was checked."""
        return ReceivedBlock(
            generation=self._append.generation,
            steps=self._steps,
            sampled=self.sampled,
            skipped=self._skipped,
            series=self._series,
            metrics=self._metrics,
            statistics=statistics,
            present=present,
            guard_actions=sorted(self._append.guard_actions, key=lambda action: action.step),
        )

    def _check_steps(self, steps: list[int]) -> NDArray[np.int64]:
        """Return the steps as an array. Raises InvalidRequest at once: without steps nothing else can be checked."""
        if not steps:
            raise InvalidRequest.at("steps", "must name at least one step")
        if len(steps) > self._limits.max_steps_per_block:
            message = f"has {len(steps)} steps; at most {self._limits.max_steps_per_block} are allowed"
            raise InvalidRequest.at("steps", message)
        if min(steps) < 0 or max(steps) > LARGEST_STEP:
            outside = next(index for index, step in enumerate(steps) if not 0 <= step <= LARGEST_STEP)
            raise InvalidRequest.at(f"steps[{outside}]", f"must be from 0 to {LARGEST_STEP}; got {steps[outside]}")
        checked = np.array(steps, dtype=np.int64)
        is_backward = checked[1:] <= checked[:-1]
        if is_backward.any():
            at = int(is_backward.argmax()) + 1
            word = "repeats" if steps[at] == steps[at - 1] else "comes after"
            raise InvalidRequest.at(f"steps[{at}]", f"{steps[at]} {word} {steps[at - 1]}; steps must increase")
        return checked

    def _flags_from_list(self, path: str, flags: list[bool] | None, *, default: bool) -> Mask:
        if flags is None:
            return np.full(self._count, default, dtype=np.bool_)
        if self._has_length(path, len(flags)):
            return np.array(flags, dtype=np.bool_)
        return np.zeros(self._count, dtype=np.bool_)

    def _series_from_list(self, path: str, values: list[float | None]) -> StepSeries:
        if not self._has_length(path, len(values)):
            return _empty_series()
        numbers = np.array(values, dtype=np.float64)
        present = np.ones(len(values), dtype=np.bool_)
        if np.isnan(numbers).any():
            present = np.fromiter((value is not None for value in values), dtype=np.bool_, count=len(values))
            numbers[~present] = 0.0
        return self._check_finite(path, StepSeries(numbers, present))

    def _check_finite(self, path: str, series: StepSeries) -> StepSeries:
        """Return the series; add an error if it must be finite and is not."""
        if path in SERIES_TABLE and SERIES_TABLE[path].is_finite:
            nonfinite = np.flatnonzero(~np.isfinite(series.values))
            if len(nonfinite):
                self.refuse(f"{path}[{nonfinite[0]}]", f"must be finite; got {series.values[nonfinite[0]]}")
        return series

    def _has_length(self, path: str, found: int) -> bool:
        if found == self._count:
            return True
        self.refuse(path, f"must have {self._count} values, one for each step; got {found}")
        return False

    def _has_metric_names(self, names: Collection[str]) -> bool:
        if len(names) > self._limits.max_metrics:
            self.refuse("metrics", f"has {len(names)} metrics; at most {self._limits.max_metrics} are allowed")
            return False
        for name in names:
            if (message := name_error(name, self._limits.max_name_length)) is not None:
                self.refuse(f"metrics.{name}", message)
            elif name in SERIES or name in STATISTICS:
                self.refuse(f"metrics.{name}", "is a name that gradmedic gives a meaning of its own; choose another")
            else:
                continue
            return False
        return True


def _empty_series() -> StepSeries:
    return StepSeries(np.zeros(0), np.zeros(0, dtype=np.bool_))
