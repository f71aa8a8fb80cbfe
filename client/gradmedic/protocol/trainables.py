"""Trainables: the commands that may be rerun, and the values that their parameters may have.

The service checks a value when a rerun is requested. The worker checks it again, because it does not trust the service.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from gradmedic.protocol.numbers import LARGEST_INT32, is_finite
from gradmedic.protocol.schema import SCHEMA, Between, Number, OneOf, Scalar, StrictBool, StrictInt, Text

PARAMETER_TYPES = ("float", "int", "str", "bool")


LONGEST_TIMEOUT = 30 * 86400.0
"""The largest timeout of a trial, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableParameter:
    """One parameter of a trainable that a rerun may set."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: Text
    """Name of the placeholder in the command and of the key in the run's config. A dot leads into a nested mapping."""
    type: Annotated[Text, OneOf(*PARAMETER_TYPES)]
    """Type of the value."""
    minimum: Number | None = None
    """The smallest allowed value of a number. Null: no bound."""
    maximum: Number | None = None
    """The largest allowed value of a number. Null: no bound."""
    choices: list[Text] | None = None
    """The allowed values of a `str`."""
    default: Scalar | None = None
    """The value if the run's config has no such key."""
    is_optional: StrictBool = False
    """True if the parameter may have no value. The command then omits its argument."""
    remedy: Text | None = None
    """The remedy that the parameter carries out, or a remedy's parameter that it sets, for example
    `truncate_backpropagation.time_steps`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """A command that a worker's operator allows to be rerun. The command itself stays with the worker."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: Text
    """Name of the trainable."""
    parameters: list[TrainableParameter] = field(default_factory=list)
    """The parameters that a rerun may set."""
    gpus: Annotated[StrictInt, Between(0, LARGEST_INT32)] = 0
    """Number of GPUs that a trial needs."""
    timeout: Number = 3600.0
    """Number of seconds after which the worker ends a trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainablesOffer:
    """Body of `PUT /trainables`. A worker repeats it every few seconds, as long as it offers the trainables."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[Trainable]
    """All trainables that the worker offers now."""
    worker: Text | None = None
    """Name of the worker. A trainable that it offered before and does not offer now is withdrawn, unless another worker
    offers it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainables:
    """Answer to `PUT /trainables` and to `GET /trainables`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[Trainable]
    """The trainables that workers offer now."""


Value = float | int | str | bool | None
"""A value of a trainable's parameter. None means that an optional parameter has no value."""


def value_error(parameter: TrainableParameter, value: Value) -> str | None:
    """Return why a value of a trainable's parameter is not allowed, None if it is.

    >>> value_error(TrainableParameter(name="lr", type="float", minimum=0.0, maximum=1.0), 2.0)
    'must be from 0 to 1, not 2.0'
    """
    if value is None:
        return None if parameter.is_optional else "has no value"
    kinds: dict[str, tuple[type, ...]] = {"float": (int, float), "int": (int,), "str": (str,), "bool": (bool,)}
    is_kind = isinstance(value, kinds[parameter.type]) and (parameter.type == "bool" or not isinstance(value, bool))
    if not is_kind:
        return f"must be of type {parameter.type}, not {value!r}"
    if parameter.choices is not None and value not in parameter.choices:
        return f"must be one of {', '.join(parameter.choices)}, not {value!r}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        low = -math.inf if parameter.minimum is None else parameter.minimum
        high = math.inf if parameter.maximum is None else parameter.maximum
        if not is_finite(value) or not low <= value <= high:
            return f"must be from {low:g} to {high:g}, not {value!r}"
    return None
