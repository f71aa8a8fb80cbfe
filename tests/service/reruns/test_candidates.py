"""The candidates of a rerun: remedies of the advice, alone and in pairs."""

from __future__ import annotations

from typing import Any

import pytest

from gradmedic.protocol.remedies import Remedy
from gradmedic_service.reruns.candidates import candidates_of_advice

ORTHOGONAL: tuple[str, dict[str, Any]] = ("reinitialize", {"scheme": "orthogonal"})


@pytest.mark.parametrize(("measured", "beside_new_weights"), [(1e-4, 0.01), (0.03, 0.03)])
def test_a_tiny_factor_of_the_rate_is_not_combined_with_new_weights(measured: float, beside_new_weights: float) -> None:
    """The factor was measured with the weights that are replaced. Alone, and beside a bound, it is tried as it is."""
    advice: list[tuple[str, dict[str, Any]]] = [
        ORTHOGONAL, ("scale_learning_rate", {"factor": measured}), ("clip_grad_norm", {"max_norm": 1.0}),
    ]  # fmt: skip
    candidates = candidates_of_advice(advice, [])
    own, tiny, _ = (Remedy(id=id, parameters=parameters) for id, parameters in advice)
    assert candidates[:3] == [[own], [tiny], [own, Remedy(id=tiny.id, parameters={"factor": beside_new_weights})]]
    assert [Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0}), tiny] in candidates


def test_few_remedies_are_completed_by_general_ones() -> None:
    """Eight candidates race, those of the advice first; a general remedy that the advice has is not repeated."""
    candidates = candidates_of_advice([ORTHOGONAL], [])
    assert candidates[0] == [Remedy(id="reinitialize", parameters={"scheme": "orthogonal"})]
    ids = [remedies[0].id for remedies in candidates]
    assert len(ids) == len(set(ids)) == 7
