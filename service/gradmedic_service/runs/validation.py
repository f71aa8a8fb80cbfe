"""Checks of the fields of runs beyond their schema: limits, names, and numbers that agree with each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any
from uuid import UUID

from gradmedic.protocol.encoding import encode_json
from gradmedic.protocol.names import name_error
from gradmedic.protocol.numbers import MAX_EXACT_INTEGER
from gradmedic.protocol.origins import LONGEST_TEXT, MOST_BATCH_TENSORS, MOST_EXAMPLES, BatchTensor, Origin
from gradmedic.protocol.reviews import NO_REVIEW, REVIEW_ANSWERS, ReviewWrite
from gradmedic.protocol.run_lists import RunTagsChange
from gradmedic.protocol.runs import (
    DIRECTIONS,
    LAYER_ORDERS,
    OBJECTIVE_KINDS,
    STATUSES,
    Layer,
    Loss,
    Objective,
    RunCreate,
    RunUpdate,
    Training,
)
from gradmedic.protocol.service import FieldError, Limits
from gradmedic.protocol.statistics import STATISTICS
from gradmedic.protocol.verdicts import LEARNING_STATES, LEVELS, UNHEALTHY_VERDICTS, VERDICTS
from gradmedic_service.http.errors import MAX_REPORTED_FIELDS, InvalidRequest
from gradmedic_service.http.json_bodies import MAX_VALUES
from gradmedic_service.http.validation import json_errors
from gradmedic_service.projects.muting import muting_errors

MAX_DIMENSIONS = 32
MAX_LOSS_OPERATIONS = 64
"""Names of operations in the description of a loss, and in that of an origin."""
VALUES_PER_LAYER = 48
"""Values and names in the description of a layer: 18 fields of two each, and the sizes of a shape."""
FILTER_CHOICES = {
    "verdict": VERDICTS,
    "learning": LEARNING_STATES,
    "level": LEVELS,
    "status": STATUSES,
    "review": (*REVIEW_ANSWERS, NO_REVIEW),
}
"""Values of the filters that take one of a few."""
SETTABLE_STATUSES = ("running", "finished", "failed")
"""Statuses that a client may set; only the service sets `stalled`."""


def check_create(run: RunCreate, limits: Limits) -> None:
    """Raise InvalidRequest with an error for every invalid field of a new run."""
    InvalidRequest.raise_if_any(
        chain(
            _name_errors("project", run.project, limits),
            _description_errors(run, limits),
            _name_errors("group", run.group, limits),
            _name_errors("framework", run.framework, limits),
            _name_errors("trainable", run.trainable, limits),
            _statistics_errors(run.statistics),
            _layers_errors("layers", run.layers, (), limits),
            muting_errors(run.muted_detectors),
            _id_errors(run.id),
        )
    )


def check_update(update: RunUpdate, limits: Limits) -> None:
    """Raise InvalidRequest with an error for every field of a change that is invalid for any run."""
    InvalidRequest.raise_if_any(
        chain(
            _description_errors(update, limits),
            muting_errors(update.muted_detectors or ()),
            _status_errors(update.status),
        )
    )


def check_review(review: ReviewWrite, limits: Limits) -> None:
    """Raise InvalidRequest with an error for every field of a review that is invalid for any run."""
    InvalidRequest.raise_if_any(_review_errors(review, limits))


def check_tags_change(change: RunTagsChange, limits: Limits) -> None:
    """Raise InvalidRequest with an error for every tag that no run can have, or that is both added and removed."""
    errors = [*_tags_errors(change.add, limits, "add"), *_tags_errors(change.remove, limits, "remove")]
    if not change.add and not change.remove:
        errors.append(FieldError(path="add", message="names no tag, and neither does `remove`"))
    removed = {tag: index for index, tag in enumerate(change.remove)}
    for index, tag in enumerate(change.add):
        if tag in removed:
            errors.append(FieldError(path=f"add[{index}]", message=f"{tag!r} is also in remove[{removed[tag]}]"))
    InvalidRequest.raise_if_any(errors)


def check_appended_layers(layers: Sequence[Layer], existing: Sequence[str], limits: Limits) -> None:
    """Raise InvalidRequest unless the layers can be added after the existing ones."""
    InvalidRequest.raise_if_any(_layers_errors("append_layers", layers, existing, limits))


def max_values(limits: Limits) -> int:
    """Return the largest number of values and names in a body about a run.

    A byte of the config holds one at most, because it is counted as compact JSON.
    """
    return limits.max_layers * VALUES_PER_LAYER + limits.max_config_bytes + MAX_VALUES


def layer_count_error(count: int, limits: Limits) -> str | None:
    """Return why a run must not have so many layers, None if it may."""
    return f"makes {count} layers; at most {limits.max_layers} are allowed" if count > limits.max_layers else None


def check_filters(limits: Limits, **filters: str | None) -> None:
    """Raise InvalidRequest for a filter that no run can match, such as an unknown verdict or an empty name."""
    errors: list[FieldError] = []
    for name, value in filters.items():
        if value is None:
            continue
        choices = FILTER_CHOICES.get(name)
        if choices is None:
            errors += _name_errors(name, value, limits)
        elif value not in choices:
            errors.append(FieldError(path=name, message=_describe_choices(value, choices)))
    if errors:
        raise InvalidRequest(errors)


def _description_errors(described: RunCreate | RunUpdate, limits: Limits) -> Iterator[FieldError]:
    yield from _name_errors("name", described.name, limits)
    if described.notes is not None and len(described.notes) > limits.max_notes_length:
        yield FieldError(
            path="notes",
            message=f"has {len(described.notes)} characters; at most {limits.max_notes_length} are allowed",
        )
    yield from _tags_errors(described.tags or [], limits)
    if described.config:
        yield from _config_errors(described.config, limits)
    if described.training is not None:
        yield from _training_errors(described.training, limits)


def _review_errors(review: ReviewWrite, limits: Limits) -> Iterator[FieldError]:
    if review.answer not in REVIEW_ANSWERS:
        yield FieldError(path="answer", message=_describe_choices(review.answer, REVIEW_ANSWERS))
        return
    for path, value, choices in (("verdict", review.verdict, VERDICTS), ("level", review.level, LEVELS)):
        if value is not None and value not in choices:
            yield FieldError(path=path, message=_describe_choices(value, choices))
        elif value is not None and review.answer == "right":
            yield FieldError(path=path, message="belongs to the answer `wrong`; leave it out")
    if review.verdict in VERDICTS and review.level in LEVELS:
        is_unhealthy = review.verdict in UNHEALTHY_VERDICTS
        if is_unhealthy != (review.level == "critical"):
            message = f"{review.level!r} does not go with {review.verdict!r}: "
            yield FieldError(path="level", message=message + "`critical` means vanishing or exploding, and only that")
    if review.note is not None and len(review.note) > limits.max_notes_length:
        message = f"has {len(review.note)} characters; at most {limits.max_notes_length} are allowed"
        yield FieldError(path="note", message=message)
    yield from _integer_errors("step", review.step)


def _id_errors(id_: UUID | None) -> Iterator[FieldError]:
    if id_ is not None and id_.version != 7:
        yield FieldError(path="id", message=f"must be a UUID of version 7, not {id_.version}")


def _status_errors(status: str | None) -> Iterator[FieldError]:
    if status is not None and status not in SETTABLE_STATUSES:
        yield FieldError(path="status", message=_describe_choices(status, SETTABLE_STATUSES))


def _name_errors(path: str, name: str | None, limits: Limits) -> Iterator[FieldError]:
    if name is not None and (message := name_error(name, limits.max_name_length)) is not None:
        yield FieldError(path=path, message=message)


def _tags_errors(tags: list[str], limits: Limits, path: str = "tags") -> Iterator[FieldError]:
    if len(tags) > limits.max_tags:
        yield FieldError(path=path, message=f"has {len(tags)} tags; at most {limits.max_tags} are allowed")
        return
    seen: set[str] = set()
    for index, tag in enumerate(tags):
        yield from _name_errors(f"{path}[{index}]", tag, limits)
        if tag in seen:
            yield FieldError(path=f"{path}[{index}]", message=f"repeats {tag!r}")
        seen.add(tag)


def _config_errors(config: dict[str, Any], limits: Limits) -> Iterator[FieldError]:
    if not _is_within_depth(config, limits.max_config_depth):
        yield FieldError(path="config", message=f"is nested deeper than {limits.max_config_depth} levels")
        return
    errors = list(islice(json_errors("config", config), MAX_REPORTED_FIELDS))
    yield from errors
    if not errors and (size := len(encode_json(config))) > limits.max_config_bytes:
        yield FieldError(
            path="config", message=f"is {size} bytes of compact JSON; at most {limits.max_config_bytes} are allowed"
        )


def _is_within_depth(value: Any, depth: int) -> bool:
    if isinstance(value, dict | list):
        children = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_within_depth(child, depth - 1) for child in children)
    return True


def _statistics_errors(statistics: list[str]) -> Iterator[FieldError]:
    if not statistics:
        yield FieldError(path="statistics", message="names none; leave it out for grad_norm alone")
    for index, name in enumerate(statistics):
        path = f"statistics[{index}]"
        if name not in STATISTICS:
            yield FieldError(path=path, message=_describe_choices(name, STATISTICS))
        elif name in statistics[:index]:
            yield FieldError(path=path, message=f"repeats {name!r}")


def _layers_errors(path: str, layers: Sequence[Layer], existing: Sequence[str], limits: Limits) -> Iterator[FieldError]:
    if (message := layer_count_error(len(existing) + len(layers), limits)) is not None:
        yield FieldError(path=path, message=message)
        return
    position_of: dict[str, int | None] = dict.fromkeys(existing)
    for index, layer in enumerate(layers):
        yield from _layer_errors(f"{path}[{index}]", layer, limits)
        if layer.name in position_of:
            first = position_of[layer.name]
            where = "a layer that the run has" if first is None else f"{path}[{first}]"
            yield FieldError(path=f"{path}[{index}].name", message=f"{layer.name!r} is also the name of {where}")
        else:
            position_of[layer.name] = index


def _layer_errors(path: str, layer: Layer, limits: Limits) -> Iterator[FieldError]:
    for field in ("name", "kind", "role", "activation", "block"):
        yield from _name_errors(f"{path}.{field}", getattr(layer, field), limits)
    for field in ("numel", "depth", "fan_in", "fan_out", "calls"):
        yield from _integer_errors(f"{path}.{field}", getattr(layer, field))
    for field in ("initial_rms", "spectral_norm"):
        yield from _size_errors(f"{path}.{field}", getattr(layer, field))
    if layer.shape is not None:
        if len(layer.shape) > MAX_DIMENSIONS:
            yield FieldError(path=f"{path}.shape", message=f"has more than {MAX_DIMENSIONS} dimensions")
            return
        errors = [
            error for index, size in enumerate(layer.shape) for error in _integer_errors(f"{path}.shape[{index}]", size)
        ]
        yield from errors
        numel = math.prod(layer.shape)
        if not errors and layer.numel is not None and layer.numel != numel:
            yield FieldError(
                path=f"{path}.numel", message=f"is {layer.numel}, but shape {layer.shape} has {numel} elements"
            )
        if not errors and numel > MAX_EXACT_INTEGER:
            yield FieldError(path=f"{path}.shape", message=f"has more than {MAX_EXACT_INTEGER} elements")


def _training_errors(training: Training, limits: Limits) -> Iterator[FieldError]:
    yield from _name_errors("training.precision", training.precision, limits)
    yield from _name_errors("training.parameter_dtype", training.parameter_dtype, limits)
    yield from _integer_errors("training.batch_size", training.batch_size)
    if training.layer_order is not None and training.layer_order not in LAYER_ORDERS:
        yield FieldError(path="training.layer_order", message=_describe_choices(training.layer_order, LAYER_ORDERS))
    for field in ("input_rms", "input_abs_max", "target_rms"):
        yield from _size_errors(f"training.{field}", getattr(training, field))
    yield from _loss_errors(training.loss, limits)
    yield from _objective_errors(training.objective, limits)
    yield from origin_errors("training.origin", training.origin)
    if len(training.optimizers) > limits.max_layers:
        yield FieldError(path="training.optimizers", message=f"has more than {limits.max_layers} optimizers")
        return
    for index, optimizer in enumerate(training.optimizers):
        yield from _name_errors(f"training.optimizers[{index}].name", optimizer.name, limits)


def _loss_errors(loss: Loss | None, limits: Limits) -> Iterator[FieldError]:
    if loss is None:
        return
    yield from _name_errors("training.loss.kind", loss.kind, limits)
    yield from _integer_errors("training.loss.classes", loss.classes)
    if len(loss.operations) > MAX_LOSS_OPERATIONS:
        yield FieldError(path="training.loss.operations", message=f"has more than {MAX_LOSS_OPERATIONS} operations")
        return
    for index, operation in enumerate(loss.operations):
        yield from _name_errors(f"training.loss.operations[{index}]", operation, limits)


def origin_errors(path: str, origin: Origin | None) -> Iterator[FieldError]:
    """Yield an error for each field of the origin at a path that is too long or out of its range."""
    if origin is None:
        return
    source, described = origin.source, origin.input
    texts: dict[str, str | None] = {
        name: getattr(origin, name)
        for name in ("operation", "direction", "module", "kind", "reproduced", "reason", "text")
    }
    yield from _integer_errors(f"{path}.step", origin.step)
    if source is not None:
        texts |= {"source.file": source.file, "source.text": source.text}
        yield from _integer_errors(f"{path}.source.line", source.line)
    if described is not None:
        texts |= {f"input.{name}": getattr(described, name) for name in ("dtype", "special", "unit", "text")}
        for name, number in (("count", described.count), ("total", described.total)):
            yield from _integer_errors(f"{path}.input.{name}", number)
        yield from _shape_errors(f"{path}.input.shape", described.shape)
    if len(origin.batch_tensors) > MOST_BATCH_TENSORS:
        yield FieldError(path=f"{path}.batch_tensors", message=f"has more than {MOST_BATCH_TENSORS} tensors")
        return
    for index, tensor in enumerate(origin.batch_tensors):
        texts |= {f"batch_tensors[{index}].{name}": getattr(tensor, name) for name in ("dtype", "digest")}
        yield from _batch_tensor_errors(f"{path}.batch_tensors[{index}]", tensor)
    if len(origin.operations) > MAX_LOSS_OPERATIONS:
        yield FieldError(path=f"{path}.operations", message=f"has more than {MAX_LOSS_OPERATIONS} operations")
        return
    texts |= {f"operations[{index}]": operation for index, operation in enumerate(origin.operations)}
    for name, text in texts.items():
        if text is not None and len(text) > LONGEST_TEXT:
            yield FieldError(path=f"{path}.{name}", message=f"has more than {LONGEST_TEXT} characters")


def _batch_tensor_errors(path: str, tensor: BatchTensor) -> Iterator[FieldError]:
    yield from _integer_errors(f"{path}.nonfinite_count", tensor.nonfinite_count)
    yield from _shape_errors(f"{path}.shape", tensor.shape)
    if len(tensor.examples) > MOST_EXAMPLES:
        yield FieldError(path=f"{path}.examples", message=f"has more than {MOST_EXAMPLES} examples")
        return
    for index, example in enumerate(tensor.examples):
        yield from _integer_errors(f"{path}.examples[{index}]", example)


def _shape_errors(path: str, shape: Sequence[int] | None) -> Iterator[FieldError]:
    if len(shape or ()) > MAX_DIMENSIONS:
        yield FieldError(path=path, message=f"has more than {MAX_DIMENSIONS} dimensions")
        return
    for index, size in enumerate(shape or ()):
        yield from _integer_errors(f"{path}[{index}]", size)


def _objective_errors(objective: Objective | None, limits: Limits) -> Iterator[FieldError]:
    if objective is None:
        return
    if objective.kind not in OBJECTIVE_KINDS:
        yield FieldError(path="training.objective.kind", message=_describe_choices(objective.kind, OBJECTIVE_KINDS))
        return
    yield from _name_errors("training.objective.metric", objective.metric, limits)
    if (objective.kind == "metric") != (objective.metric is not None):
        yield FieldError(path="training.objective.metric", message="is needed for the kind `metric`, and for no other")
    if (objective.kind == "none") != (objective.direction is None):
        yield FieldError(path="training.objective.direction", message="is needed, but not for the kind `none`")
    elif objective.direction is not None and objective.direction not in DIRECTIONS:
        yield FieldError(
            path="training.objective.direction", message=_describe_choices(objective.direction, DIRECTIONS)
        )


def _integer_errors(path: str, value: int | None) -> Iterator[FieldError]:
    if value is not None and not 0 <= value <= MAX_EXACT_INTEGER:
        yield FieldError(path=path, message=f"must be from 0 to {MAX_EXACT_INTEGER}")


def _size_errors(path: str, value: float | None) -> Iterator[FieldError]:
    """Yield an error for a negative size; a size may be NaN or infinite."""
    if value is not None and value < 0:
        yield FieldError(path=path, message="must not be negative")


def _describe_choices(value: str, choices: Sequence[str]) -> str:
    return f"{value!r} is not one of {', '.join(choices)}"
