"""The same training has the same sampled steps and the same diagnosis on a quiet and on a busy machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.client.recording.busy_training import FAULT, PROGRAMS
from tests.support.patience import PATIENCE

import gradmedic
from gradmedic.recording.sampler import ALARM_STEPS

SCRIPT = Path(__file__).with_name("busy_training.py")
LAST_COMPARED = FAULT + ALARM_STEPS - 2
"""Behind this step, steps are also sampled because of the verdict, whenever the service answers."""


def train(url: str, folder: Path) -> dict[str, Any]:
    """Run the trainings in a process of their own, and return what they print."""
    environment = {**os.environ, "GRADMEDIC_BASE_URL": url, "GRADMEDIC_DIR": str(folder), "GRADMEDIC_SILENT": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=True, timeout=2 * PATIENCE
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.slow
def test_sampled_steps_and_diagnosis_are_the_same_beside_busy_loops(
    service_url: str, client: gradmedic.Client, tmp_path: Path
) -> None:
    """Losses, verdict, first step and layers are equal; so are the sampled steps where the interval is the same."""
    answers = train(service_url, tmp_path)
    for program in PROGRAMS:
        quiet, busy = answers["quiet"][program], answers["busy"][program]
        assert busy["losses"] == quiet["losses"]
        assert len(quiet["sampled"]) < FAULT
        if quiet["interval"] == busy["interval"]:
            first, second = ([s for s in answer["sampled"] if s <= LAST_COMPARED] for answer in (quiet, busy))
            assert first == second
        outcomes = []
        for answer in (quiet, busy):
            diagnosis = client.runs.diagnosis(answer["run"])
            findings = [finding for finding in diagnosis.findings if finding.verdict == "exploding"]
            onset = min((finding.first_step for finding in findings), default=None)
            layers = {layer for finding in findings if finding.first_step == onset for layer in finding.layers}
            outcomes.append((diagnosis.verdict, onset, layers))
            if program == "nan":
                assert FAULT in answer["sampled"]
                assert onset == FAULT
        assert outcomes[0] == outcomes[1]
        assert outcomes[0][0] == ("healthy" if program == "healthy" else "exploding")
