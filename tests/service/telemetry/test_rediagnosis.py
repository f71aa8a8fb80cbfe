"""Diagnoses that are built anew from the stored steps, on both databases."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, update
from starlette.testclient import TestClient

from gradmedic.protocol.ids import new_id
from gradmedic_service.commands.rediagnose import REDIAGNOSE
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import DiagnosisSnapshot, DiagnosisState, Run, VerdictChange
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry import rediagnosis


def fill(client: TestClient, run: str, first: int, last: int) -> None:
    """Append the steps from `first` to `last`; gradients grow from step 1100 on."""
    for start in range(first, last + 1, 400):
        steps = list(range(start, min(start + 400, last + 1)))
        growth = [1.5 ** max(0, min(step - 1100, 60)) for step in steps]
        rows = [[factor, 2 * factor] for factor in growth]
        body = {"steps": steps, "loss": growth, "statistics": {"grad_norm": rows}}
        assert client.post(f"{run}/steps", json=body).status_code == 200


def conclusions_about(client: TestClient, run: str) -> Any:
    """Return the diagnosis of a run, its history, and its diagnosis at an earlier step."""
    earlier = client.get(f"{run}/diagnosis", params={"at_step": 1000}).json()
    return client.get(f"{run}/diagnosis").json(), client.get(f"{run}/diagnosis/history").json(), earlier


def corrupt_diagnoses(database: Database) -> None:
    """Make every stored diagnosis unreadable or wrong."""
    with database.writing() as session:
        session.execute(update(DiagnosisState).values(state=b"of old", steps_since_snapshot=None))
        session.execute(update(DiagnosisSnapshot).values(state=b"of old"))
        session.execute(update(VerdictChange).values(verdict="vanishing"))
        session.execute(update(Run).values(verdict="vanishing", score=0.1, since_step=3))
        session.execute(delete(DiagnosisSnapshot))


def command(*arguments: str) -> int:
    """Run `gradmedic rediagnose`."""
    parser = argparse.ArgumentParser()
    REDIAGNOSE.add_arguments(parser)
    return REDIAGNOSE.run(parser.parse_args(arguments))


def test_rediagnose_all_builds_every_diagnosis_anew(
    client: TestClient, create_run: Any, database: Database, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """After `rediagnose --all` the diagnosis, the history and the past of every run follow from its stored steps."""
    full, empty = create_run(client), create_run(client)
    fill(client, full, 0, 1300)
    before = conclusions_about(client, full)
    assert before[0]["verdict"] == "exploding"
    corrupt_diagnoses(database)
    capsys.readouterr()
    assert command("--all", "--json", "--database-url", database_url) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["run_id"] in path for line, path in zip(printed, (full, empty), strict=True)] == [True, True]
    assert (printed[0]["before"], printed[0]["after"]) == ("vanishing", "exploding")
    assert conclusions_about(client, full) == before
    run = client.get(full).json()
    assert (run["verdict"], run["since_step"]) == (before[0]["verdict"], before[0]["since_step"])
    fill(client, full, 1301, 1400)
    assert client.get(f"{full}/diagnosis").json()["step"] == 1400


def test_rediagnose_one_run(
    client: TestClient, create_run: Any, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`rediagnose` with an id or its end rediagnoses that run; an unknown id is an error of one line, no id too."""
    run = create_run(client)
    fill(client, run, 0, 30)
    run_id = run.rpartition("/")[2]
    capsys.readouterr()
    for reference in (run_id, run_id[-8:]):
        assert command(reference, "--database-url", database_url) == 0
        assert capsys.readouterr().out == f"{run_id}: healthy\n"
    assert command("ffffffff", "--database-url", database_url) == 2
    assert capsys.readouterr().err == "gradmedic: no run has an id that begins or ends with 'ffffffff'\n"
    unknown = str(new_id())
    assert command(unknown, "--database-url", database_url) == 1
    assert capsys.readouterr().err == f"gradmedic: There is no run {unknown}.\n"
    with pytest.raises(SystemExit):
        command("--database-url", database_url)


def test_a_run_may_change_while_it_is_rediagnosed(
    client: TestClient, create_run: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new diagnosis includes steps that arrive and a rewind that happens while the stored steps are read."""
    run, plain = create_run(client), create_run(client)
    fill(client, run, 0, 1150)
    fill(client, plain, 0, 1200)
    interruptions: Iterator[Callable[[], object]] = iter(
        [
            lambda: fill(client, run, 1151, 1300),
            lambda: client.post(f"{run}/rewind", json={"step": 1120, "generation": 0}),
            lambda: fill(client, run, 1121, 1200),
        ]
    )
    read_new_steps = rediagnosis.Rebuild.read_new_steps

    def interrupted(self: Any, session: Any, seen: Any) -> None:
        read_new_steps(self, session, seen)
        session.rollback()
        for interrupt in itertools.islice(interruptions, 1):
            interrupt()

    monkeypatch.setattr(rediagnosis.Rebuild, "read_new_steps", interrupted)
    rediagnosis.rediagnose(database, FactsCache(), UUID(run.rpartition("/")[2]))
    found, expected = conclusions_about(client, run), conclusions_about(client, plain)
    for answer in (found[0], expected[0], found[2], expected[2]):
        del answer["run_id"]
    assert found == expected
