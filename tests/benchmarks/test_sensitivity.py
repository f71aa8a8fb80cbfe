"""The benchmark of sensitivity changes each constant of the diagnosis for a while, in every module that uses it."""

from __future__ import annotations

from benchmarks.sensitivity import Constant, list_constants

from gradmedic_diagnosis.detectors import base, depth_gap, zero_gradient


def find(owner: str, name: str) -> Constant:
    """Return a constant."""
    return next(constant for constant in list_constants() if (constant.owner, constant.name) == (owner, name))


def test_a_constant_is_changed_where_it_is_used() -> None:
    """The constant has its new value in its own module and in those that import it, and the old one afterwards."""
    with find("detectors.base", "STUCK_PATIENCE").multiplied(0.5) as value:
        assert (base.STUCK_PATIENCE, vars(depth_gap)["STUCK_PATIENCE"]) == (value, value) == (60, 60)
    assert (base.STUCK_PATIENCE, vars(depth_gap)["STUCK_PATIENCE"]) == (120, 120)


def test_equal_names_are_different_constants() -> None:
    """Another module's constant of the same name stays as it is; a whole number does not fall below 1."""
    persistence = zero_gradient.PERSISTENCE
    with find("detectors.loss_divergence", "PERSISTENCE").multiplied(0.1) as value:
        assert value == 1
        assert persistence == zero_gradient.PERSISTENCE


def test_constants_of_the_advice_are_left_out() -> None:
    """Only constants that decide the verdict are listed, each once."""
    names = [(constant.owner, constant.name) for constant in list_constants()]
    assert len(names) == len(set(names)) > 100
    assert not [owner for owner, _ in names if owner in ("advice", "causes", "remedies")]
