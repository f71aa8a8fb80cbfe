"""What lists show of a run's steps, built anew: by the backfill, the next block, a rewind and rediagnosis."""

from __future__ import annotations

import math
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from gradmedic.protocol.diagnosis import DiagnosisAtStep, Finding
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import Run, RunDetails
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.runs.progress import RunProgress
from gradmedic_service.telemetry import rediagnosis, service
from gradmedic_service.telemetry.backfill import Backfill
from gradmedic_service.telemetry.progress_reading import current_progress, listed_progress

STEPS = 260
LOSS_FROM = 103
"""First step with a loss, so that the curve is of other steps than the run."""
BAD_FROM = 220
"""First step at which the gradient of the second layer is NaN."""


def fill(client: TestClient, run: str, first: int, last: int, *, has_times: bool = True) -> None:
    """Append the steps from `first` to `last`: a late loss, a rare and a frequent metric, bad gradients at the end."""
    for start in range(first, last + 1, 37):
        steps = list(range(start, min(start + 37, last + 1)))
        body: dict[str, Any] = {
            "steps": steps,
            "loss": [None if step < LOSS_FROM else 3.0 + math.sin(step / 50) for step in steps],
            "metrics": {
                "rare": [float(step) if step % 90 == 3 else None for step in steps],
                "each": ["NaN" if step % 2 else float(step) for step in steps],
                "gradmedic/output_rms/b": [1.0] * len(steps),
            },
            "statistics": {"grad_norm": [[1.0, "NaN" if step >= BAD_FROM else 1.0] for step in steps]},
        }
        if has_times:
            body["time"] = [1000.0 + 2 * step for step in steps]
        response = client.post(f"{run}/steps", json=body)
        assert response.status_code == 200, response.text


def shown(client: TestClient, database: Database, run: str) -> dict[str, Any]:
    """Return what lists show of a run's steps, and the values by which they sort."""
    item = client.get(run).json()
    with database.reading() as session:
        sorted_by = session.scalar(select(Run.last_values).where(Run.id == id_of(run)))
    names = ("loss", "last_metrics", "duration", "first_bad_layer")
    return {"sorted_by": {name: repr(value) for name, value in (sorted_by or {}).items()}} | {
        name: item[name] for name in names
    }


def id_of(run: str) -> UUID:
    """Return the id at the end of a run's path."""
    return UUID(run.rpartition("/")[2])


def forget_progress(database: Database, *runs: str) -> None:
    """Leave the columns of runs as the version before them does."""
    columns = dict.fromkeys(("progress", "last_values", "duration", "first_bad_layer"))
    with database.writing() as session:
        session.execute(update(Run).where(Run.id.in_([id_of(run) for run in runs])).values(columns))


def test_runs_of_an_earlier_version_are_filled_in(client: TestClient, create_run: Any, database: Database) -> None:
    """The backfill and the next block give an earlier version's run what a run of this version has."""
    ended, timeless, running, plain, empty = (create_run(client) for _ in range(5))
    broken = create_run(client, framework="of the broken run")
    for run in (ended, running, plain):
        fill(client, run, 0, STEPS - 1)
    for run in (timeless, broken):
        fill(client, run, 0, 9, has_times=False)
    expected = {run: shown(client, database, run) for run in (ended, timeless, running)}
    assert expected[ended]["first_bad_layer"] == "layer1"
    assert expected[ended]["duration"] == 2.0 * (STEPS - 1)
    assert expected[ended]["last_metrics"] == {"rare": 183.0, "each": "NaN"}
    assert len(expected[ended]["loss"]["sparkline"]) == 40
    revision = client.get(ended).json()["revision"]

    forget_progress(database, ended, timeless, running, broken)
    assert shown(client, database, ended)["loss"] is None
    for run in (running, plain):
        fill(client, run, STEPS, STEPS + 20)
    assert shown(client, database, running) == shown(client, database, plain)

    with database.writing() as session:
        session.execute(update(RunDetails).where(RunDetails.run_id == id_of(broken)).values(layers=[{"name": 7}]))
    ending = Event()
    ending.set()
    assert Backfill(database, FactsCache(), ending).fill_some() == 0
    backfill = Backfill(database, FactsCache(), Event())
    assert backfill.fill_some() == 2
    assert {run: shown(client, database, run) for run in (ended, timeless)} == {
        run: expected[run] for run in (ended, timeless)
    }
    assert client.get(ended).json()["revision"] == revision
    assert shown(client, database, empty)["loss"] is None

    assert backfill.fill_some() == 0
    forget_progress(database, ended)
    assert backfill.fill_some() == 0
    assert Backfill(database, FactsCache(), Event()).fill_some() == 1


def test_a_run_that_changes_meanwhile_is_left_to_its_next_block(
    client: TestClient, create_run: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backfill writes nothing to a run that got a block or was deleted while its steps were read."""
    changed, deleted = create_run(client), create_run(client)
    for run in (changed, deleted):
        fill(client, run, 0, 30)
    forget_progress(database, changed, deleted)

    def interrupted(connection: Any, run: Any) -> RunProgress:
        progress = current_progress(connection, run)
        connection.rollback()
        monkeypatch.undo()
        if run.id == id_of(changed):
            fill(client, changed, 31, 60)
        else:
            assert client.delete(deleted).status_code == 204
        return progress

    for run in (changed, deleted):
        monkeypatch.setattr(service, "current_progress", interrupted)
        assert service.fill_progress(database, FactsCache(), id_of(run)) is False
    assert client.get(changed).json()["duration"] == 120.0
    assert service.fill_progress(database, FactsCache(), id_of(changed)) is False
    assert service.fill_progress(database, FactsCache(), id_of(deleted)) is False


@pytest.mark.parametrize("step", [-1, 50, LOSS_FROM, 239])
def test_a_rewind_takes_back_what_lists_show(
    client: TestClient, create_run: Any, database: Database, step: int
) -> None:
    """After a rewind, and after its next steps, lists show the same as of a run that was at that step."""
    rewound, plain = create_run(client), create_run(client)
    fill(client, rewound, 0, STEPS - 1)
    fill(client, plain, 0, step)
    assert client.post(f"{rewound}/rewind", json={"step": step, "generation": 0}).status_code == 200
    assert shown(client, database, rewound) == shown(client, database, plain)
    assert shown(client, database, rewound)["first_bad_layer"] == ("layer1" if step == 239 else None)
    for run in (rewound, plain):
        fill(client, run, step + 1, STEPS + 40)
    assert shown(client, database, rewound) == shown(client, database, plain)


def test_rediagnosis_keeps_what_lists_show(client: TestClient, create_run: Any, database: Database) -> None:
    """A run shows the same after rediagnosis, also if an earlier version has stored its last steps."""
    run = create_run(client)
    fill(client, run, 0, STEPS - 1)
    expected = shown(client, database, run)
    with database.writing() as session:
        session.execute(update(Run).values(first_bad_layer="none", duration=None))
    rediagnosis.rediagnose(database, FactsCache(), id_of(run))
    assert shown(client, database, run) == expected
    forget_progress(database, run)
    rediagnosis.rediagnose(database, FactsCache(), id_of(run))
    assert shown(client, database, run) == expected
    with database.writing() as session:  # the progress as it is where another version appended later steps
        session.execute(update(Run).values(progress=RunProgress(generation=0, step=9).to_bytes()))
    rediagnosis.rediagnose(database, FactsCache(), id_of(run))
    assert shown(client, database, run) == expected


@pytest.mark.parametrize(
    ("verdict", "decider", "expected"),
    [("exploding", "decides", "b"), ("exploding", "has no layer", "a"), ("healthy", None, None)],
)
def test_the_first_bad_layer_is_of_the_deciding_finding(verdict: Any, decider: str | None, expected: str) -> None:
    """The deciding finding has the first bad layer, even if another finding for the verdict is stronger."""
    layers = {"decides": ["b"], "is stronger": ["a"], "has no layer": []}
    findings = [
        Finding(
            detector=detector, verdict="exploding", severity="critical", layers=layers[detector], first_step=1,
            last_step=9, resolved_step=None, evidence={}, explanation="x",
        )
        for detector in ("is stronger", "decides", "has no layer")
    ]  # fmt: skip
    diagnosis = DiagnosisAtStep(
        step=9, verdict=verdict, score=0.9, since_step=1, summary="s", findings=findings, causes=[], advice=[]
    )
    assert listed_progress(RunProgress(generation=0), diagnosis, decider).first_bad_layer == expected
