"""The size of the first target of a regression, read from the loss function."""

from __future__ import annotations

import torch
from torch.nn import functional

from gradmedic.torch.first_target import FirstTarget


def test_every_waiting_instance_measures_the_first_target() -> None:
    """Several watched models that train together all have the size of the first target."""
    waiting = [FirstTarget() for _ in range(4)]
    functional.mse_loss(torch.zeros(3), torch.full((3,), 2.0))
    assert [first_target.rms for first_target in waiting] == [2.0] * 4
