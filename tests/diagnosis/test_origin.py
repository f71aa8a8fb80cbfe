"""The origin in a diagnosis: the recorded facts, and what to change."""

from __future__ import annotations

import dataclasses
import math

import pytest

from gradmedic.protocol.origins import DiagnosedOrigin, Origin, OriginInput, SourceLine
from gradmedic.protocol.runs import Layer, Training
from gradmedic_diagnosis import Diagnostician
from gradmedic_diagnosis.origin import diagnose_origin

FOUND = Origin(
    operation="sqrt", direction="backward", module="norm", step=7, value=math.nan, kind="numeric",
    source=SourceLine(file="model.py", line=57), input=OriginInput(special="zero", text="the input was 0"),
)  # fmt: skip


def test_the_diagnosis_has_what_was_recorded_and_what_to_change() -> None:
    """All recorded facts are there, with a sentence if none was recorded, and with the fix of the operation."""
    found = diagnose_origin(FOUND, 7, "torch 2.13.0")
    assert found is not None
    same = {field.name: getattr(found, field.name) for field in dataclasses.fields(Origin) if field.name != "text"}
    assert same == {field: getattr(FOUND, field) for field in same}
    assert (
        found.text == "NaN is born at step 7 in the backward of `sqrt` (model.py:57, module `norm`): the input was 0."
    )
    assert found.fix is not None
    assert (found.fix.page, found.fix.snippet) == ("root", "y = torch.sqrt(x.clamp_min(0) + 1e-8)")
    spoken = diagnose_origin(dataclasses.replace(FOUND, text="As the SDK has it."), 7, None)
    assert spoken is not None
    assert spoken.text == "As the SDK has it."


@pytest.mark.parametrize(
    ("framework", "code"),
    [("jax 0.10", "jnp.sqrt"), ("keras 3.15", "ops.sqrt"), ("torch 2.13.0", "torch.sqrt"), (None, "torch.sqrt")],
)
def test_the_code_fits_the_framework(framework: str | None, code: str) -> None:
    """The snippet has the functions of the run's framework."""
    found = diagnose_origin(FOUND, 7, framework)
    assert found is not None
    assert found.fix is not None
    assert code in found.fix.snippet


@pytest.mark.parametrize(
    ("last_step", "is_shown"), [(None, False), (3, False), (5, False), (6, True), (7, True), (900, True)]
)
def test_the_origin_appears_with_the_step_before_its_own(last_step: int | None, is_shown: bool) -> None:
    """A script may end at the step that failed, before it logs it. A run that was rewound has no later origin."""
    assert (diagnose_origin(FOUND, last_step, None) is not None) is is_shown


def test_an_origin_of_the_first_step_is_shown_before_any_step() -> None:
    """The script ended at once."""
    assert diagnose_origin(dataclasses.replace(FOUND, step=0), None, None) is not None


def test_a_search_without_result_has_its_reason_and_no_fix() -> None:
    """The sentence says why; without a reason it ends."""
    found = diagnose_origin(Origin(reason="a scripted module cannot be repeated", step=7), 7, None)
    assert found == DiagnosedOrigin(
        reason="a scripted module cannot be repeated",
        step=7,
        text="A gradient or the loss is not finite at step 7, and its origin was not found: a scripted module cannot "
        "be repeated.",
    )
    unknown = diagnose_origin(Origin(), 7, None)
    assert unknown is not None
    assert unknown.text == "A gradient or the loss is not finite, and its origin was not found."


def test_a_diagnostician_reads_the_origin_from_its_training() -> None:
    """Without one, the diagnosis has none."""
    layers = [Layer(name="w")]
    first = dataclasses.replace(FOUND, step=0)
    found = Diagnostician(layers, Training(origin=first), framework="torch").diagnose().origin
    assert found == diagnose_origin(first, None, "torch")
    assert Diagnostician(layers, Training()).diagnose().origin is None
