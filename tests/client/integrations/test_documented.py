"""The examples in docs/integrations.md run unchanged and do what that page describes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.documents import ROOT, fenced_blocks

import gradmedic

EXAMPLES = {
    re.findall(r"^## (.*)$", block.before, re.MULTILINE)[-1]: block.text
    for block in fenced_blocks(ROOT / "docs" / "integrations.md")
    if block.language == "python"
}
"""The example of each section."""
STEPS = {"PyTorch": 50, "Lightning": 32, "Transformers": 48, "Accelerate": 32, "numpy, or anything else": 50}
NAMES = {"PyTorch": "torch", "numpy, or anything else": "numpy"}


def test_every_section_has_an_example() -> None:
    """The document has these sections with an example, and no others."""
    assert list(EXAMPLES) == list(STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("title", STEPS)
def test_an_example_runs_and_is_stored(title: str, service_url: str, client: gradmedic.Client, tmp_path: Path) -> None:
    """The example ends without an error, and its run has a step for each update, with statistics of every layer."""
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[title])
    environment = os.environ | {"GRADMEDIC_BASE_URL": service_url, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    name = NAMES.get(title, title.lower())
    (summary,) = [run for run in client.runs.list(project="integrations", text=name) if run.name == name]
    run = client.runs.get(summary.id)
    assert (run.status, run.last_step) == ("finished", STEPS[title] - 1)
    result_ = client.runs.steps(run.id, ["grad_norm", "loss"], max_points=100)
    counts = {series.layer: sum(series.count) for series in result_.series}
    assert set(counts) == {None, *(layer.name for layer in run.layers)}
    assert min(counts.values()) >= 20
