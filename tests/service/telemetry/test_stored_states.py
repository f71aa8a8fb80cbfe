"""A database of version 0.1: its diagnosis states are read, and its runs can be rediagnosed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks.corpus.recording import load
from sqlalchemy import update
from starlette.testclient import TestClient

from gradmedic.protocol.encoding import to_plain
from gradmedic_diagnosis import Block
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import DiagnosisState
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry import rediagnosis

DATA = Path(__file__).parents[2]
RUN, CUT = "E-late-rnn-noclip", 24
STATES = DATA / "diagnosis" / "data" / "states"


def post_steps(client: TestClient, run: str, block: Block) -> None:
    """Append a block to a run, as JSON."""
    body = {
        "steps": block.steps.tolist(),
        **{name: series.values.tolist() for name, series in block.series.items()},
        "statistics": {
            name: [
                [value if is_present else None for value, is_present in zip(row, present, strict=True)]
                for row, present in zip(block.values[:, :, i].tolist(), block.present.tolist(), strict=True)
            ]
            for i, name in enumerate(block.statistics)
        },
    }
    response = client.post(f"{run}/steps", json=to_plain(body))
    assert response.status_code == 200, response.text


def post_with_stored_state(client: TestClient, create_run: Any, database: Database, first_step: int) -> str:
    """Create a run with the steps from one on. In the midst of them its state becomes that of version 0.1."""
    layers, _, block = load(DATA / "data" / "recordings" / f"{RUN}.npz")
    run: str = create_run(client, statistics=block.statistics, layers=0)
    client.patch(run, json={"append_layers": [asdict(layer) for layer in layers]})
    post_steps(client, run, block.cut(first_step, CUT))
    with database.writing() as session:
        stored = update(DiagnosisState).where(DiagnosisState.run_id == id_of(run))
        session.execute(stored.values(state=(STATES / f"{RUN}@{CUT}.state").read_bytes()))
    client.patch(run, json={"notes": "An update of the run makes every process read the stored state."})
    post_steps(client, run, block.cut(CUT, len(block)))
    return run


def id_of(run: str) -> UUID:
    """Return the id at the end of a run's path."""
    return UUID(run.rpartition("/")[2])


def check_diagnosis(client: TestClient, run: str) -> None:
    """Check that a run's verdict and findings are those of version 0.1. Causes are judged anew."""
    expected = json.loads((STATES / "expected.json").read_text())[f"{RUN}@{CUT}"]
    diagnosis = client.get(f"{run}/diagnosis").json()
    assert (diagnosis["verdict"], diagnosis["since_step"]) == (expected["verdict"], expected["since_step"])
    assert [(f["detector"], f["first_step"], f["layers"]) for f in diagnosis["findings"]] == [
        (f["detector"], f["first_step"], f["layers"]) for f in expected["findings"]
    ]
    assert diagnosis["causes"]


def test_a_state_of_version_0_1_is_continued(client: TestClient, create_run: Any, database: Database) -> None:
    """A stored state of version 0.1 counts for the steps that it has read, even where the chunks lack them."""
    check_diagnosis(client, post_with_stored_state(client, create_run, database, CUT - 1))


def test_a_run_of_version_0_1_is_rediagnosed(client: TestClient, create_run: Any, database: Database) -> None:
    """Rediagnosing a run with a state of version 0.1 gives the diagnosis of version 0.1."""
    run = post_with_stored_state(client, create_run, database, 0)
    rediagnosed = rediagnosis.rediagnose(database, FactsCache(), id_of(run))
    assert (rediagnosed.before, rediagnosed.after) == ("exploding", "exploding")
    check_diagnosis(client, run)
