"""What is left of a request without the parts that the service refused.

The service names each bad field by its path, such as `layers[3].shape[0]` or `metrics.accuracy`. A part that the
request needs, such as the project, is never removed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from gradmedic.protocol.service import FieldError
from gradmedic.recording.step import Step, metric_names

_NEEDED = frozenset({"id", "project", "layers", "append_layers", "statistics", "status"})
"""The fields of a description that are not removed."""
_LISTS_OF_LAYERS = ("layers", "append_layers")
_LISTS = frozenset({"tags", "muted_detectors", "statistics", "optimizers"})
"""The lists from which a single item may be removed. Other lists, such as a shape, have a meaning only as a whole."""
_NUMBERS = frozenset({"loss", "learning_rate", "loss_scale", "clip_coefficient", "output_gradient_norm"})
_INDEX = re.compile(r"\[(\d+)\]")

_Place = tuple[Any, Any]
"""A mapping and a key, or a list and an index."""


def remove_fields(body: dict[str, Any], errors: Iterable[FieldError]) -> list[FieldError]:
    """Remove the refused parts from the JSON body of a description; return the errors that named one.

    A layer stays, because the values of others are found by its position. A refused name of a layer is replaced.
    """
    found = [(error, place) for error in errors if (place := _find_place(body, error.path)) is not None]
    places = {(id(container), key): (container, key) for _, (container, key) in found}
    # The last items of a list first, so that the indices of the others stay.
    for container, key in sorted(places.values(), key=lambda place: str(place[1]).zfill(9), reverse=True):
        if container is body and key == "config" and (numbers := _numbers_of(body[key])):
            body[key] = numbers
        elif key == "name" and container is not body:
            _rename_layer(container, body)
        else:
            del container[key]
    return [error for error, _ in found]


def to_smallest(body: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON body of a description with only what it needs."""
    smallest = {name: value for name, value in body.items() if name in _NEEDED and value is not None}
    for name in _LISTS_OF_LAYERS:
        if name in smallest:
            smallest[name] = [{"name": layer["name"]} for layer in smallest[name]]
    return smallest


def without_refused(
    block: Sequence[Step],
    errors: Iterable[FieldError],
    sampled: Sequence[int],
    known_metrics: Collection[str],
    *,
    removes_whole_series: bool = False,
) -> list[Step]:
    """Return the steps of a block without the parts that the service refused.

    Args:
        block: the steps.
        errors: the errors of the service.
        sampled: positions in `block` of the steps that were sent with statistics.
        known_metrics: names of metrics that the service has accepted. Of too many metrics, the others are removed.
        removes_whole_series: whether to remove a part from all steps of the block, where the error names one step.
    """
    steps: list[Step | None] = list(block)

    def change(positions: Iterable[int], **changes: Any) -> None:
        for i in positions:
            step = steps[i]
            if step is not None and any(getattr(step, name) != value for name, value in changes.items()):
                steps[i] = dataclasses.replace(step, **changes)

    for error in errors:
        field = re.split(r"[.\[]", error.path, maxsplit=1)[0]
        index = _INDEX.search(error.path)
        at = None if index is None or removes_whole_series else int(index.group(1))
        everywhere = range(len(block))
        if field == "metrics":
            refused = _find_metrics(error.path, metric_names(block), known_metrics)
            for i in everywhere:
                if (step := steps[i]) is not None:
                    change([i], metrics={name: value for name, value in step.metrics.items() if name not in refused})
        elif field in _NUMBERS:
            change(everywhere if at is None else everywhere[at : at + 1], **{field: None})
        elif field in ("statistics", "present", "sampled"):
            positions = sampled if at is None or field != "statistics" else sampled[at : at + 1]
            for i in positions:
                if (step := steps[i]) is not None and step.row is not None:
                    steps[i] = dataclasses.replace(step, row=None)
        elif field == "skipped":
            change(everywhere, skipped=False)
        elif field in ("steps", "time") and at is not None and at < len(block):
            steps[at] = None
    return [step for step in steps if step is not None]


def _find_place(body: dict[str, Any], path: str) -> _Place | None:
    """Return the smallest part that contains the field of a path and may be removed, None if there is none."""
    found: _Place | None = None
    part: Any = body
    field = ""
    while path:
        if isinstance(part, dict):
            keys = [key for key in part if path == key or path.startswith((f"{key}.", f"{key}["))]
            if not keys:
                break
            key: Any = max(keys, key=len)
            path = path[len(key) :].removeprefix(".")
            is_layer = part is not body and field in _LISTS_OF_LAYERS
            if (part is body and key in _NEEDED) or (key == "name" and part is not body and not is_layer):
                pass  # the part as a whole may still be removed
            else:
                found = (part, key)
            field = field if is_layer else key
        elif isinstance(part, list):
            index = _INDEX.match(path)
            if index is None or int(index.group(1)) >= len(part):
                break
            key = int(index.group(1))
            path = path[index.end() :].removeprefix(".")
            found = (part, key) if field in _LISTS else found
        else:
            break
        part = part[key]
    return found


def _numbers_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the numbers of a configuration, None if it has nothing else or none of them."""
    numbers = {name: value for name, value in config.items() if isinstance(value, (int, float))}
    return numbers if 0 < len(numbers) < len(config) else None


def _rename_layer(layer: dict[str, Any], body: dict[str, Any]) -> None:
    """Replace the name of a layer by one with its position."""
    layers = next(body[name] for name in _LISTS_OF_LAYERS if any(each is layer for each in body.get(name) or ()))
    position = next(i for i, each in enumerate(layers) if each is layer)
    name = f"layer {position}"
    taken = {each["name"] for each in layers}
    while name in taken:
        name += "'"
    layer["name"] = name


def _find_metrics(path: str, names: Sequence[str], known: Collection[str]) -> set[str]:
    """Return the names of the metrics that a path refuses. Of too many, those that the service does not have."""
    named = [name for name in names if path == f"metrics.{name}" or path.startswith(f"metrics.{name}[")]
    if named:
        return {max(named, key=len)}
    return {name for name in names if name not in known} or set(names)
