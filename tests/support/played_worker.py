"""A suspect run, and a worker whose requests the test sends itself."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from gradmedic.protocol.service import API_PATH
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import Attempt, Trainable, Trial
from gradmedic_service.trainables.service import OFFER_LIFETIME

API = API_PATH
STEPS = 80
TRAINABLE = {
    "name": "train",
    "parameters": [
        {"name": "lr", "type": "float", "minimum": 0.001, "maximum": 10.0},
        {"name": "depth", "type": "int", "minimum": 1, "maximum": 8, "default": 2},
        {"name": "window", "type": "int", "minimum": 1, "maximum": 99, "default": 50,
         "remedy": "truncate_backpropagation.time_steps"},
    ],
}  # fmt: skip
CLIP = [{"id": "clip_grad_norm", "parameters": {"max_norm": 1.0}}]
SLOW = [{"id": "scale_learning_rate", "parameters": {"factor": 0.1}}]
LATE = [{"id": "warm_up", "parameters": {"steps": 10}}]


def block(kind: str, steps: int = STEPS, seed: int = 0, first: int = 0) -> dict[str, Any]:
    """Return the steps of a run of a kind: it learns, explodes, or learns nothing."""
    noise = random.Random(f"{kind} {seed}")
    losses: list[float | str] = []
    norms: list[list[float | str]] = []
    for step in range(first, first + steps):
        wobble = 1 + 0.05 * noise.random()
        if kind == "exploding" and step >= 20:
            losses.append("NaN")
            norms.append(["NaN", "NaN"])
        else:
            falling = {"learning": 0.97, "learning fast": 0.9}.get(kind, 1.0) ** step
            losses.append((0.2 + 2.0 * falling) * wobble)
            norms.append([0.5 * wobble, 0.6 * wobble])
    return {"steps": list(range(first, first + steps)), "loss": losses, "statistics": {"grad_norm": norms}}


@dataclass
class PlayedWorker:
    """Sends the requests of a worker and of its trials; the test decides how each trial ends."""

    client: httpx2.Client
    name: str = "played"
    ended: list[tuple[int, int]] = field(default_factory=list)
    """Candidate and seed of the trials that have ended."""

    def register(self, **fields: Any) -> None:
        """Offer the trainable."""
        response = self.client.put(f"{API}/trainables", json={"items": [TRAINABLE | fields]})
        assert response.status_code == 200, response.text

    def claim(self) -> dict[str, Any] | None:
        """Claim a trial; None if none is waiting."""
        response = self.client.post(f"{API}/trials/claim", json={"worker": self.name, "trainables": ["train"]})
        assert response.status_code in (200, 204), response.text
        return response.json() if response.status_code == 200 else None

    def stream(self, claimed: dict[str, Any], kind: str, steps: int = STEPS) -> dict[str, Any]:
        """Create the attempt's run as its script would, and append its steps."""
        self.create_run(claimed)
        answer = self.client.post(f"{API}/runs/{claimed['run_id']}/steps", json=block(kind, steps, claimed["seed"]))
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def create_run(self, claimed: dict[str, Any]) -> None:
        """Create the attempt's run as its script would."""
        body = {"id": claimed["run_id"], "project": claimed["project"], "layers": [{"name": "a"}, {"name": "b"}]}
        response = self.client.post(f"{API}/runs", json=body | {"statistics": ["grad_norm"]})
        assert response.status_code in (200, 201), response.text

    def beat(self, claimed: dict[str, Any], **fields: Any) -> httpx2.Response:
        """Send a heartbeat."""
        body = {"attempt": claimed["attempt"]} | fields
        return self.client.post(f"{API}/trials/{claimed['trial_id']}/heartbeat", json=body)

    def publish(self, claimed: dict[str, Any], status: str = "done", **fields: Any) -> httpx2.Response:
        """Publish a result."""
        body = {"attempt": claimed["attempt"], "status": status, "exit_code": 0} | fields
        response = self.client.post(f"{API}/trials/{claimed['trial_id']}/result", json=body)
        if response.status_code == 200:
            self.ended.append((claimed["candidate"], claimed["seed"]))
        return response

    def work(self, kinds: Mapping[int, str], limit: int = 1000) -> None:
        """Run all trials that are waiting. `kinds` has the kind of steps of each candidate."""
        for _ in range(limit):
            claimed = self.claim()
            if claimed is None:
                return
            self.stream(claimed, kinds[claimed["candidate"]])
            on = {"torch": "2.13.0", "device": "cpu"}
            assert self.publish(claimed, environment=on).status_code == 200


@pytest.fixture
def worker(client: TestClient) -> PlayedWorker:
    """A worker that has offered its trainable."""
    played = PlayedWorker(client)
    played.register()
    return played


def suspect(client: httpx2.Client, project: str = "tests", **fields: Any) -> str:
    """Create a run that explodes, and return its id."""
    body = {
        "project": project,
        "layers": [{"name": "a"}, {"name": "b"}],
        "statistics": ["grad_norm"],
        "config": {"lr": 0.5, "depth": 3},
        "trainable": "train",
        **fields,
    }
    response = client.post(f"{API}/runs", json=body)
    assert response.status_code == 201, response.text
    run_id: str = response.json()["id"]
    answer = client.post(f"{API}/runs/{run_id}/steps", json=block("exploding")).json()
    assert answer["verdict"] == "exploding"
    return run_id


def rerun(client: httpx2.Client, run_id: str, *candidates: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """Create a rerun of these candidates."""
    body = ({"remedies": list(candidates)} if candidates else {}) | {"budget": {"steps": STEPS}} | fields
    response = client.post(f"{API}/runs/{run_id}/reruns", json=body)
    assert response.status_code == 202, response.text
    made: dict[str, Any] = response.json()
    return made


def read(client: httpx2.Client, path: str) -> Any:
    """Return the body of a successful answer."""
    response = client.get(f"{API}{path}")
    assert response.status_code == 200, response.text
    return response.json()


def expire_leases(database: Database, *, started_before: float = 0.0) -> None:
    """Let the leases of all running trials expire a second ago, and their attempts start some seconds earlier."""
    moment = datetime.now(UTC)
    with database.writing() as session:
        running = update(Trial).where(Trial.status == "running")
        session.execute(running.values(lease_expires_at=moment - timedelta(seconds=1)))
        if started_before:
            session.execute(update(Attempt).values(started_at=moment - timedelta(seconds=started_before)))


def forget_offers(database: Database) -> None:
    """Let the last offer of each trainable be a minute old."""
    with database.writing() as session:
        session.execute(update(Trainable).values(updated_at=datetime.now(UTC) - OFFER_LIFETIME))
