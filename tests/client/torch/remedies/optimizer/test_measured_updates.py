"""A watch measures the updates as the remedies leave them."""

from __future__ import annotations

import pytest
import torch
from tests.client.torch.recording import Recording
from tests.client.torch.remedies.training import batch, open_remedies, perceptron, remedy, step

from gradmedic.protocol.remedies import Remedy
from gradmedic.torch.remedies import AppliedRemedies

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (remedy("clip_update", threshold=0.1), torch.float32),
        (remedy("optimizer_epsilon", epsilon=0.1), torch.float32),
        (remedy("beta2", beta2=0.5), torch.float32),
        (remedy("float32_master_weights"), torch.bfloat16),
    ],
    ids=lambda value: value.id if isinstance(value, Remedy) else "",
)
def test_update_norms_are_those_of_the_weights(given: Remedy, dtype: torch.dtype) -> None:
    """The measured update of each layer is the distance that its weights moved in the step."""
    model = perceptron().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    applied = AppliedRemedies(model, optimizer, [given])
    open_remedies.append(applied)
    applied.attach_before_measurement()
    recording = Recording(model, optimizer)
    applied.attach_after_measurement(recording.watch)
    for _ in range(12):
        before = [parameter.detach().double() for parameter in model.parameters()]
        step(model, optimizer, lambda m: m(batch().to(dtype)).float().square().mean())
        row = recording.log().row
        assert row is not None
        moved = [float((p.detach() - old).norm()) for p, old in zip(model.parameters(), before, strict=True)]
        measured = row.column("update_norm")
        assert measured is not None
        assert measured == pytest.approx(moved, rel=1e-3)
    recording.watch.close()
