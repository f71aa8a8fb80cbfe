"""The code that an origin's fix proposes is finite where the operation is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gradmedic.protocol.origin_fixes import FIXES, find_fix
from gradmedic.protocol.origins import Origin, OriginInput

MASKED = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]])
INPUTS: dict[str, torch.Tensor] = {
    "exp": torch.full((2, 2), 1e4), "acos": torch.tensor([[1.0, -1.0], [2.0, 0.0]]), "softmax": MASKED,
    "std": torch.zeros(1, 2), "mean": torch.zeros(0, 2), "ctc_loss": torch.zeros(4, 1, 3),
}  # fmt: skip
"""Inputs for which the operation has no finite result, where zeros do not show it."""
NAMES: dict[str, Any] = {
    "torch": torch, "labels": torch.full((2,), -100), "frames": torch.tensor([4]), "lengths": torch.tensor([2]),
}  # fmt: skip


def run(snippet: str, x: torch.Tensor, **names: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run code, and return its result and the gradient of its input."""
    x = x.clone().requires_grad_()
    scope = {**NAMES, **names, "x": x}
    exec(snippet, scope)  # noqa: S102 - it is the code that users are shown
    y = scope["y"]
    if y.requires_grad:
        y.float().sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("operation", FIXES)
def test_the_code_of_each_fix_is_finite(operation: str) -> None:
    """Result and gradient are finite for an input that breaks the operation."""
    fix = FIXES[operation]
    same = next(name for name in FIXES if FIXES[name] is fix)
    x = INPUTS.get(operation, INPUTS.get(same, torch.zeros(2, 2)))
    labels = torch.full((1, 6), 1) if operation == "ctc_loss" else NAMES["labels"]
    result, gradient = run(fix.code["torch"], x, labels=labels, lengths=torch.tensor([6]))
    assert result.isfinite().all()
    assert gradient is not None
    assert gradient.isfinite().all()


def test_special_inputs_have_fixes_of_their_own() -> None:
    """A branch that is not taken, an overflow of half precision and bad data are told apart from the operation."""
    branch = OriginInput(special="zero", text="the input was 0; as in a branch of torch.where that is not taken")
    fixes = [
        find_fix(Origin(operation="sqrt", direction="backward", input=branch)),
        find_fix(Origin(operation="multiplication", input=OriginInput(special="overflow", dtype="float16"))),
        find_fix(Origin(operation="linear", kind="data")),
    ]
    inputs = [torch.zeros(2, 2), torch.full((2, 2), 300.0).half(), torch.tensor([[math.nan, 1.0], [1.0, 1.0]])]
    for fix, x in zip(fixes, inputs, strict=True):
        assert fix is not None
        result, gradient = run(fix.code["torch"], x)
        assert result.isfinite().all()
        assert gradient is not None
    assert len({fix.advice for fix in fixes if fix is not None}) == 3


def test_nothing_is_proposed_where_nothing_is_known() -> None:
    """An origin that was not found, and an operation without a fix, have none."""
    assert find_fix(Origin(reason="a scripted module cannot be repeated")) is None
    assert find_fix(Origin(operation="linalg.eigh", kind="numeric")) is None
