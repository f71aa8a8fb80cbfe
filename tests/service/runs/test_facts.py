"""The digest by which the facts of a run are found."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from sqlalchemy import text
from starlette.testclient import TestClient
from tests.support.service_app import CreateRun

from gradmedic_service.database.engine import Database
from gradmedic_service.runs.facts import FactsCache, digest_of

LAYERS: list[Any] = [{"name": "w", "initial_rms": 1e-05}]


def test_a_digest_of_another_release_finds_the_same_facts() -> None:
    """The cache reads the facts of a digest that it has not seen from the run, so that any digest can be used."""
    cache = FactsCache()
    stored = (LAYERS, None, "torch 2.13.0")
    assert cache.get(b"of another release", lambda: stored) == cache.get(digest_of(*stored), lambda: stored)


def test_runs_with_a_digest_of_another_release_are_diagnosed_and_changed(
    client: TestClient, session_app: FastAPI, database: Database, create_run: CreateRun
) -> None:
    """A run whose stored digest this release would not compute takes steps and changes, before and after."""
    run = create_run(client, layers=1)
    with database.writing() as session:
        session.execute(text("UPDATE runs SET facts_digest = :digest"), {"digest": b"another release."})
    body = {"steps": [0], "statistics": {"grad_norm": [[1]]}}
    assert client.post(f"{run}/steps", json=body).json()["accepted"] == 1
    assert client.patch(run, json={"name": "renamed"}).status_code == 200
    assert client.post(f"{run}/steps", json={**body, "steps": [1]}).json()["accepted"] == 1
    assert client.get(f"{run}/diagnosis").json()["step"] == 1
