"""A process that is a trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.workers import hide_torch

from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.ids import new_id
from gradmedic.trial import TrialInstructions


@dataclass(frozen=True)
class TrialProcess:
    """The environment of a trial."""

    run_id: str
    report: Path
    unsent: Path
    """Folder of the steps that the service does not have."""
    variables: dict[str, str]


BeginTrial = Callable[..., TrialProcess]


@pytest.fixture
def begin_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BeginTrial:
    """Return a function that makes this process, and those that it starts, a trial of the service at a URL."""

    def begin(url: str, *, steps: int | None = None) -> TrialProcess:
        run_id = str(new_id())
        variables = {
            "GRADMEDIC_BASE_URL": url,
            "GRADMEDIC_RUN_ID": run_id,
            "GRADMEDIC_PROJECT": "trials",
            "GRADMEDIC_SEED": "7",
            "GRADMEDIC_SILENT": "1",
            "GRADMEDIC_DIR": str(tmp_path / "unsent"),
            "GRADMEDIC_REPORT": str(tmp_path / "report.json"),
            "GRADMEDIC_TRIAL": to_json(TrialInstructions(steps=steps)).decode(),
            "PYTHONPATH": str(hide_torch(tmp_path)),
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return TrialProcess(run_id, tmp_path / "report.json", tmp_path / "unsent", variables)

    return begin
