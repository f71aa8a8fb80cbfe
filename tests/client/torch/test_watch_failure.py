"""Errors of the observation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.client.torch.recording import Recording
from torch import nn


def test_an_error_of_the_observation_does_not_end_the_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After an error of the observation the training goes on, and the reason is logged once."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def fail(*_: Any) -> Any:
        raise MemoryError("no room for a copy")

    with Recording(model, optimizer) as recording:
        monkeypatch.setattr("gradmedic.torch.updates.measure_norms", fail)
        for _ in range(3):
            before = model.weight.clone()
            model(torch.ones(1, 2)).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            assert not torch.equal(model.weight, before)
            assert recording.log().row is None
    assert caplog.text.count("no longer watched") == 1
    assert "no room for a copy" in caplog.text
