"""The catalogue of remedies: for each its id, what it changes, its parameters with their ranges, and code to paste.

The service refuses remedies that are not in the catalogue, the diagnosis advises only remedies of it, and
`gradmedic.torch` applies them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from gradmedic.protocol.names import closest_first
from gradmedic.protocol.remedies.modules import MODULE_REMEDIES
from gradmedic.protocol.remedies.script import SCRIPT_REMEDIES
from gradmedic.protocol.remedies.updates import UPDATE_REMEDIES
from gradmedic.protocol.remedy_kind import RemedyKind
from gradmedic.protocol.schema import SCHEMA, Scalar, Text
from gradmedic.protocol.service import FieldError


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One fix, by id and parameters."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: Text
    """Id of the remedy in the catalogue, for example `clip_grad_norm`."""
    parameters: dict[Text, Scalar] = field(default_factory=dict)
    """Values of the remedy's parameters, by name."""


REMEDIES: Mapping[str, RemedyKind] = MappingProxyType({**UPDATE_REMEDIES, **MODULE_REMEDIES, **SCRIPT_REMEDIES})
"""The catalogue: every remedy, by id."""

SET_PARAMETER = "set_parameter"
"""Id of the one remedy outside the catalogue. It sets parameters of the trainable itself, by their own names."""

MAX_COMBINED = 16
"""The largest number of remedies in one candidate."""


def remedy_errors(path: str, remedies: Sequence[Remedy]) -> Iterator[FieldError]:
    """Yield an error for each remedy of a candidate that is unknown or repeated, or has a bad parameter.

    >>> [error.message for error in remedy_errors("remedies[0]", [Remedy(id="warm_up", parameters={"steps": 0})])]
    ['must be from 1 to 1e+09, not 0']
    """
    if len(remedies) > MAX_COMBINED:
        yield FieldError(path=path, message=f"combines {len(remedies)} remedies; at most {MAX_COMBINED} are allowed")
        return
    seen: set[str] = set()
    for index, remedy in enumerate(remedies):
        remedy_path = f"{path}[{index}]"
        if remedy.id in seen:
            yield FieldError(path=f"{remedy_path}.id", message=f"repeats {remedy.id!r}: a remedy is applied once")
        seen.add(remedy.id)
        if remedy.id == SET_PARAMETER:
            continue  # its parameters are the trainable's, which are checked elsewhere
        kind = REMEDIES.get(remedy.id)
        if kind is None:
            ids = ", ".join(closest_first(remedy.id, [*REMEDIES, SET_PARAMETER]))
            yield FieldError(path=f"{remedy_path}.id", message=f"{remedy.id!r} is not one of {ids}")
            continue
        for name in kind.parameters.keys() - remedy.parameters.keys():
            yield FieldError(path=f"{remedy_path}.parameters.{name}", message="is required")
        for name, value in remedy.parameters.items():
            parameter = kind.parameters.get(name)
            if parameter is None:
                expected = ", ".join(kind.parameters) or "none"
                yield FieldError(
                    path=f"{remedy_path}.parameters.{name}", message=f"there is no such parameter; it has {expected}"
                )
            elif (message := parameter.error(value)) is not None:
                yield FieldError(path=f"{remedy_path}.parameters.{name}", message=message)


def describe_remedies(remedies: Sequence[Remedy]) -> str:
    """Return the remedies of a candidate as one line of text.

    >>> describe_remedies([Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0}), Remedy(id="add_residual")])
    'clip_grad_norm(1.0) + add_residual()'
    >>> describe_remedies([])
    'control'
    """
    written = []
    for remedy in remedies:
        has_several = len(remedy.parameters) > 1
        values = (f"{name}={value}" if has_several else str(value) for name, value in remedy.parameters.items())
        written.append(f"{remedy.id}({', '.join(values)})")
    return " + ".join(written) or "control"
