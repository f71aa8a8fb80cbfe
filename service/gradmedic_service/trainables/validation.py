"""Checks of a trainable that a worker declares."""

from __future__ import annotations

from collections.abc import Iterator

from gradmedic.protocol.remedies import REMEDIES
from gradmedic.protocol.service import FieldError
from gradmedic.protocol.trainables import (
    LONGEST_TIMEOUT,
    PARAMETER_TYPES,
    Trainable,
    TrainableParameter,
    value_error,
)


def trainable_errors(trainable: Trainable, path: str) -> Iterator[FieldError]:
    """Yield an error for each field of a declared trainable that is not allowed."""
    if not 0 < trainable.timeout <= LONGEST_TIMEOUT:
        yield FieldError(path=f"{path}.timeout", message=f"must be above 0 and at most {LONGEST_TIMEOUT:g} seconds")
    names: set[str] = set()
    for index, parameter in enumerate(trainable.parameters):
        parameter_path = f"{path}.parameters[{index}]"
        if parameter.name in names:
            yield FieldError(path=f"{parameter_path}.name", message=f"repeats {parameter.name!r}")
        names.add(parameter.name)
        yield from _parameter_errors(parameter, parameter_path)


def _parameter_errors(parameter: TrainableParameter, path: str) -> Iterator[FieldError]:
    if parameter.type not in PARAMETER_TYPES:
        yield FieldError(path=f"{path}.type", message=f"{parameter.type!r} is not one of {', '.join(PARAMETER_TYPES)}")
        return
    if parameter.type == "str" and not parameter.choices:
        yield FieldError(path=f"{path}.choices", message="is required: a text must be one of its choices")
    if parameter.default is not None and (message := value_error(parameter, parameter.default)) is not None:
        yield FieldError(path=f"{path}.default", message=message)
    if parameter.remedy is not None and (message := _remedy_error(parameter, parameter.remedy)) is not None:
        yield FieldError(path=f"{path}.remedy", message=message)


def _remedy_error(parameter: TrainableParameter, remedy: str) -> str | None:
    """Return why a parameter cannot carry out the remedy that it names; None if it can."""
    remedy_id, _, remedy_parameter = remedy.partition(".")
    kind = REMEDIES.get(remedy_id)
    if kind is None:
        return f"{remedy_id!r} is not one of {', '.join(REMEDIES)}"
    if kind.parameters:
        if remedy_parameter in kind.parameters:
            return None
        return f"must name a parameter: one of {', '.join(f'{remedy_id}.{name}' for name in kind.parameters)}"
    if remedy_parameter:
        return f"{remedy_id} has no parameters"
    return None if parameter.type == "bool" else f"{remedy_id} has no parameters, so that this one must be a bool"
