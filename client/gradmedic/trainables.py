"""Which values a parameter of a trainable may have.

One idea: the operator's declaration is checked twice, in the same way: by the service, which answers whoever asks for a
rerun, and by the worker, which need not trust the service.
"""

from __future__ import annotations

import math

from gradmedic.wire import TrainableParameter

Value = float | int | str | bool | None


def value_error(parameter: TrainableParameter, value: Value) -> str | None:
    """Say what is wrong with a value of a trainable's parameter, None if nothing is.

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
        if not math.isfinite(value) or not low <= value <= high:
            return f"must be from {low:g} to {high:g}, not {value!r}"
    return None
