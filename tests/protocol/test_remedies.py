"""The catalogue of remedies."""

from __future__ import annotations

from typing import Any

import pytest

from gradmedic.protocol.remedies import (
    MAX_COMBINED,
    REMEDIES,
    SET_PARAMETER,
    Remedy,
    remedy_errors,
)
from gradmedic.protocol.remedy_kind import Choice, Target


def errors_of(*remedies: Remedy) -> dict[str, str]:
    """Return the messages of a candidate's errors by path."""
    return {error.path: error.message for error in remedy_errors("remedies[0]", remedies)}


def example_of(id: str) -> Remedy:
    """Return a remedy with allowed parameters."""
    parameters = REMEDIES[id].parameters.items()
    return Remedy(id=id, parameters={n: p.values[0] if isinstance(p, Choice) else p.maximum for n, p in parameters})


@pytest.mark.parametrize("id", REMEDIES)
def test_every_remedy_is_accepted_with_allowed_parameters(id: str) -> None:
    """The catalogue's own values cause no error. Without them, each parameter is required."""
    assert errors_of(example_of(id)) == {}
    missing = {f"remedies[0][0].parameters.{name}": "is required" for name in REMEDIES[id].parameters}
    assert errors_of(Remedy(id=id)) == missing


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, "must be from 1e-12 to 1e+06, not 0.0"),
        (float("nan"), "must be from 1e-12 to 1e+06, not nan"),
        (True, "must be a number, not True"),
        ("1", "must be a number, not '1'"),
    ],
)
def test_numbers_out_of_range_are_refused(value: Any, message: str) -> None:
    """A number outside its bounds and a value that is no number are refused, with the bounds."""
    remedy = Remedy(id="clip_grad_norm", parameters={"max_norm": value})
    assert errors_of(remedy) == {"remedies[0][0].parameters.max_norm": message}


def test_unknown_repeated_and_excess_remedies_are_refused() -> None:
    """An id outside the catalogue, an unknown parameter, a repetition and too many remedies are errors."""
    unknown = errors_of(Remedy(id="pray"))["remedies[0][0].id"]
    assert unknown.startswith("'pray' is not one of clip_grad_norm")
    assert unknown.endswith(SET_PARAMETER)
    extra = errors_of(Remedy(id="add_residual", parameters={"depth": 1}))
    assert extra == {"remedies[0][0].parameters.depth": "there is no such parameter; it has none"}
    twice = errors_of(Remedy(id="add_residual"), Remedy(id="add_residual"))
    assert twice == {"remedies[0][1].id": "repeats 'add_residual': a remedy is applied once"}
    assert list(errors_of(*[Remedy(id="add_residual")] * (MAX_COMBINED + 1))) == ["remedies[0]"]


def test_every_remedy_has_one_place() -> None:
    """A remedy has targets, and a remedy that needs the script changes nothing else."""
    for id, kind in REMEDIES.items():
        assert kind.targets, id
        assert kind.needs_script == (kind.targets == {Target.SCRIPT}), id
        assert not (kind.needs_script and kind.works_on_any_optimizer), id
