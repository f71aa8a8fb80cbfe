"""The same trial has the same statistics, sampled steps and verdict, however busy its machine is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.client.recording.busy_training import busy_loops
from tests.client.trial.trial_training import STEPS

import gradmedic
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.probes import PREFIX
from gradmedic.trial import TrialInstructions

SCRIPT = Path(__file__).with_name("trial_training.py")


def run_trial(url: str, client: gradmedic.Client, *arguments: str) -> dict[str, Any]:
    """Run the script as a trial, and return all that the service has of it, as exact numbers."""
    run_id = str(new_id())
    variables = {
        "GRADMEDIC_BASE_URL": url,
        "GRADMEDIC_RUN_ID": run_id,
        "GRADMEDIC_PROJECT": "trials",
        "GRADMEDIC_SEED": "3",
        "GRADMEDIC_TRIAL": to_json(TrialInstructions()).decode(),
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    stored = client.runs.get(run_id)
    names = ["loss", *stored.statistics, *stored.metrics]
    series = client.runs.steps(run_id, names, max_points=1000).series
    diagnosis = client.runs.diagnosis(run_id)
    return {
        "printed": json.loads(done.stdout.splitlines()[-1]),
        "metrics": sorted(stored.metrics),
        "series": {(each.statistic, each.layer): [repr(value) for value in each.mean] for each in series},
        "count": {(each.statistic, each.layer): each.count for each in series},
        "verdict": (diagnosis.verdict, diagnosis.since_step),
        "findings": [(each.detector, each.verdict, each.first_step, each.layers) for each in diagnosis.findings],
    }


def test_trials_are_the_same_on_a_quiet_and_on_a_busy_machine(service_url: str, client: gradmedic.Client) -> None:
    """Beside busy loops, and with a clock that jumps, a trial has bit-identical numbers and the same verdict.

    Its script asks for the sampling that follows a clock, logs each step in two calls, and would note each verdict.
    """
    quiet = run_trial(service_url, client)
    assert quiet["printed"] == {"sampled": list(range(STEPS)), "verdict": "undetermined"}
    assert quiet["verdict"][0] == "exploding"
    assert [name for name in quiet["metrics"] if name.startswith(PREFIX)]
    assert quiet["series"]["double", None] == [repr(2.0 * step) for step in range(STEPS)]
    with busy_loops():
        assert run_trial(service_url, client) == quiet
    assert run_trial(service_url, client, "erratic") == quiet
