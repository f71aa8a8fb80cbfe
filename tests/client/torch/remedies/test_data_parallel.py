"""Remedies that change modules, in several processes over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.client.torch.remedies.data_parallel_training import train
from tests.support.ranks import train_in_processes

SCRIPT = Path(__file__).with_name("data_parallel_training.py")

pytestmark = pytest.mark.slow


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Two processes with half of each batch end with the weights of one process with whole batches."""
    weights, _ = train_in_processes(SCRIPT, str(tmp_path / "meeting"))
    assert weights[0] == weights[1]
    for several, one in zip(weights[0], train(0, 1), strict=True):
        assert several == pytest.approx(one, rel=1e-3, abs=1e-4)
