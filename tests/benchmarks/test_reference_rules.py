"""The rules of other systems, on series made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from benchmarks.reference_rules import REFERENCES, Rule
from numpy.typing import NDArray

from benchmarks import reference_rules


def run(steps: int = 12, **overrides: Any) -> dict[str, NDArray[Any]]:
    """Make a calm run of two matrices of 100 elements and a bias of 10; overrides assign values to parts of it."""
    shape = (steps, 3)
    arrays: dict[str, NDArray[Any]] = {
        "loss": np.linspace(2.0, 1.0, steps),
        "numel": np.array([100, 100, 10]),
        "ndim": np.array([2, 2, 1]),
        "frozen": np.zeros(3, dtype=bool),
        "grad_norm": np.ones(shape),
        "grad_zero_fraction": np.zeros(shape),
        "nonfinite_count": np.zeros(shape),
        "weight_norm": np.full(shape, 5.0),
        "update_norm": np.full(shape, 0.01),
    }
    for name, value in overrides.items():
        at, number = value
        arrays[name][at] = number
    return arrays


@pytest.mark.parametrize(
    ("rule", "bad", "steps"),
    [
        (reference_rules.nonfinite, {"nonfinite_count": ((4, 1), 1)}, [4]),
        (reference_rules.nonfinite, {"loss": (7, np.nan)}, [7]),
        (reference_rules.small_mean_gradient, {"grad_norm": ((3, 2), 3e-7)}, [3]),
        (reference_rules.large_update, {"update_norm": ((5, 0), 51.0)}, [5]),
        (reference_rules.large_update, {"update_norm": ((5, 2), 51.0)}, []),
        (reference_rules.small_update, {"update_norm": ((6, 1), 1e-9)}, [6]),
        (reference_rules.poor_initialization, {"weight_norm": ((slice(None), 0), 50.0)}, list(range(10))),
        (reference_rules.loss_not_decreasing, {"loss": (11, 1.95)}, [11]),
        (reference_rules.vanishing_over_depth, {"grad_norm": ((8, 0), 5e-5)}, [8]),
        (reference_rules.vanishing_over_depth, {"grad_norm": ((8, 0), 2e-4)}, []),
        (reference_rules.exploding_over_depth, {"grad_norm": ((2, 0), 71.0)}, [2]),
        (reference_rules.dying_relu, {"grad_zero_fraction": ((9, slice(None)), 0.75)}, [9]),
    ],
)
def test_each_rule_fires_exactly_as_it_is_defined(rule: Rule, bad: dict[str, Any], steps: list[int]) -> None:
    """A rule fires in the steps that break its published threshold and in no other."""
    assert np.flatnonzero(rule(run(**bad))).tolist() == steps


def test_a_calm_run_has_no_alarm() -> None:
    """A run that learns with moderate gradients is healthy by every rule set."""
    for rules in REFERENCES:
        assert rules.first_alarms(run()) == {}


def test_the_gate_waits_until_the_run_does_not_learn() -> None:
    """With the gate, a rule that fires while the loss falls is no alarm; non-finite values always are."""
    gated = next(rules for rules in REFERENCES if rules.gate is not None)
    plain = next(rules for rules in REFERENCES if rules.name == "AUTOTRAINER")
    falling = run(grad_norm=((10, 0), 71.0))
    assert plain.first_alarms(falling) == {"exploding": 10}
    assert gated.first_alarms(falling) == {}
    assert gated.first_alarms(run(nonfinite_count=((10, 0), 1))) == {"exploding": 10}


def test_absent_and_frozen_layers_are_no_evidence() -> None:
    """Layers that no optimizer touched do not make a rule fire."""
    arrays = run(grad_norm=((slice(None), 0), np.nan), update_norm=((slice(None), 0), np.nan))
    arrays["nonfinite_count"][:, 0] = np.nan
    arrays["weight_norm"][:, 0] = np.nan
    for rules in REFERENCES:
        assert rules.first_alarms(arrays) == {}
