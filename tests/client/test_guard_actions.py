"""Guard actions in the client: listed, printed by `gradmedic diagnose`, and exported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

import gradmedic
from gradmedic.cli.main import main
from gradmedic.export.recording import export_recording
from gradmedic.protocol.recordings import RecordingReader

NAMED = "the layer secret.weight"


@pytest.fixture(scope="module")
def guarded(service_url: str) -> str:
    """Create a run whose guard skipped three steps and went back once; return its id."""
    action: dict[str, Any] = {"reason": "gradient_spike", "explanation": f"A spike in {NAMED}."}
    skip = {"action": "skip", "numbers": {"limit": "NaN"}, **action}
    with httpx2.Client(base_url=f"{service_url}/api/v1") as client:
        created = client.post("/runs", json={"project": f"guards-{uuid4()}", "layers": [{"name": "secret.weight"}]})
        run: str = created.json()["id"]
        for first, acted in ((0, (3,)), (21, (25, 26))):
            body = {
                "steps": [*range(first, first + 30)], "loss": [1.0] * 30,
                "guard_actions": [{"step": step, **skip} for step in acted],
            }  # fmt: skip
            client.post(f"/runs/{run}/steps", json=body).raise_for_status()
            rewind = {"step": 20, "generation": 0, "guard_action": {"step": 30, "action": "rewind", **action}}
            client.post(f"/runs/{run}/rewind", json=rewind).raise_for_status() if not first else None
    return run


def test_all_actions_are_listed_over_pages(client: gradmedic.Client, guarded: str) -> None:
    """The newest comes first, and numbers are floats."""
    actions = [*client.runs.guard_actions(guarded, page_size=2)]
    assert [(action.step, action.action, action.to_step) for action in actions] == [
        (26, "skip", None), (25, "skip", None), (30, "rewind", 20), (3, "skip", None),
    ]  # fmt: skip
    assert math.isnan(actions[0].numbers["limit"])


def test_diagnose_prints_what_the_guards_did(
    service_url: str, guarded: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line has the number of actions, and the steps of the rewind."""
    monkeypatch.setenv("GRADMEDIC_BASE_URL", service_url)
    assert main(["diagnose", guarded]) == 0
    assert "Guards: 3 steps skipped, rewound once (step 30 to 20)." in capsys.readouterr().out


def test_exports_keep_the_actions(
    service_url: str, client: gradmedic.Client, guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON has all of them. A recording has no text of them, which could name something."""
    monkeypatch.setenv("GRADMEDIC_BASE_URL", service_url)
    assert main(["export", guarded, "-o", str(tmp_path / "run.json")]) == 0
    exported = json.loads((tmp_path / "run.json").read_text())["guard_actions"]
    assert [action["step"] for action in exported] == [26, 25, 30, 3]
    assert NAMED in exported[0]["explanation"]
    file = tmp_path / "run.gradmedic"
    export_recording(client, client.runs.get(guarded).id, file)
    with RecordingReader(file) as reader:
        kept = [(action.step, action.to_step, action.action) for action in reader.header.guard_actions]
        assert kept == [(26, None, "skip"), (25, None, "skip"), (30, 20, "rewind"), (3, None, "skip")]
        assert "secret" not in str(reader.header)
