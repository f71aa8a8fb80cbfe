"""The examples fail as they are, and the one change that their docstrings name repairs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

import gradmedic
from gradmedic.protocol.ids import new_id

EXAMPLES = Path(__file__).parents[2] / "examples"
REPAIRS = {
    "deep_tanh_network": ("vanishing", "--initialization=xavier"),
    "plain_convolutional_network": ("vanishing", "--norm=batch"),
    "translation": ("exploding", "--scale=1"),
    "long_recall": ("vanishing", "--initialization=orthogonal"),
    "ring_gan": ("exploding", "--lr=0.002"),
    "half_precision": ("exploding", "--scale=256"),
}

pytestmark = pytest.mark.slow


def train(name: str, url: str, directory: Path, *arguments: str) -> str:
    """Run an example and return its run's id."""
    run_id = str(new_id())
    environment = os.environ | {
        "GRADMEDIC_BASE_URL": url, "GRADMEDIC_RUN_ID": run_id, "GRADMEDIC_DIR": str(directory), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    subprocess.run(command, env=environment, cwd=directory, check=True, capture_output=True, timeout=240)
    return run_id


@pytest.mark.parametrize("name", REPAIRS)
def test_it_fails_and_one_change_repairs_it(
    name: str, service_url: str, client: gradmedic.Client, tmp_path: Path
) -> None:
    """The example has the expected verdict; with the change it is healthy, and its loss falls."""
    verdict, repair = REPAIRS[name]
    document = (EXAMPLES / f"{name}.py").read_text().split('"""')[1]
    assert repair.replace("=", " ") in document
    assert client.runs.get(train(name, service_url, tmp_path)).verdict == verdict
    repaired = client.runs.get(train(name, service_url, tmp_path, repair))
    assert repaired.verdict == "healthy"
    (series,) = client.runs.steps(repaired.id, ["loss"]).series
    losses = [value for value in series.mean if value is not None]
    assert median(losses[-len(losses) // 10 :]) < 0.8 * losses[0]
