"""The examples fail as they are, and the one change that their docstrings name repairs them."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
import torch

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

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # as in a script


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Let torch use one thread, as the examples are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(name: str, url: str, directory: Path, *arguments: str) -> str:
    """Run an example in this process, which has imported torch already, and return its run's id."""
    run_id = str(new_id())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADMEDIC_BASE_URL", url)
        patch.setenv("GRADMEDIC_RUN_ID", run_id)
        patch.chdir(directory)
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
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
