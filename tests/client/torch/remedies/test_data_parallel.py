"""Remedies that change modules, in several processes over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.client.torch.remedies.data_parallel_training import train

SCRIPT = Path(__file__).with_name("data_parallel_training.py")

pytestmark = pytest.mark.slow


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Two processes with half of each batch end with the weights of one process with whole batches."""
    started = []
    for rank in range(2):
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, str(SCRIPT), str(tmp_path / "meeting")]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    weights = []
    for process in started:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        weights.append(json.loads(out.splitlines()[-1]))
    assert weights[0] == weights[1]
    for several, one in zip(weights[0], train(0, 1), strict=True):
        assert several == pytest.approx(one, rel=1e-3, abs=1e-4)
