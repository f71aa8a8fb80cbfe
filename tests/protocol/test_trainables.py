"""The values that a parameter of a trainable may have."""

from __future__ import annotations

from typing import Any

import pytest

from gradmedic.protocol.trainables import TrainableParameter, value_error

LEARNING_RATE = TrainableParameter(name="lr", type="float", minimum=0.0, maximum=1.0)
LAYERS = TrainableParameter(name="layers", type="int", is_optional=True)
OPTIMIZER = TrainableParameter(name="optimizer", type="str", choices=["SGD", "Adam"])
AMP = TrainableParameter(name="amp", type="bool")


@pytest.mark.parametrize(
    ("parameter", "value"),
    [(LEARNING_RATE, 0.5), (LEARNING_RATE, 1), (LAYERS, None), (LAYERS, 3), (OPTIMIZER, "SGD"), (AMP, True)],
)
def test_values_of_the_declared_type_and_range_are_allowed(parameter: TrainableParameter, value: Any) -> None:
    """A value of the declared type within the bounds is allowed, and no value where the parameter is optional."""
    assert value_error(parameter, value) is None


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        (LEARNING_RATE, 2.0, "must be from 0 to 1, not 2.0"),
        (LEARNING_RATE, float("nan"), "must be from 0 to 1, not nan"),
        (LEARNING_RATE, "0.1", "must be of type float, not '0.1'"),
        (LEARNING_RATE, True, "must be of type float, not True"),
        (LEARNING_RATE, None, "has no value"),
        (LAYERS, 3.0, "must be of type int, not 3.0"),
        (OPTIMIZER, "LBFGS", "must be one of SGD, Adam, not 'LBFGS'"),
        (AMP, 1, "must be of type bool, not 1"),
    ],
)
def test_other_values_are_refused(parameter: TrainableParameter, value: Any, message: str) -> None:
    """A value of another type, outside the bounds or outside the choices is refused with the reason."""
    assert value_error(parameter, value) == message
