"""A suspect run, and a worker that is played by the test."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient
from tests.service.conftest import ReplaceServices

from gradmedic.protocol.service import API_PATH

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
    """Return the steps of a run that learns, or explodes, or learns nothing."""
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
    """Does over HTTP what a worker and its trials do, and lets a trial come out as the test wants."""

    client: httpx2.Client
    name: str = "played"
    ended: list[tuple[int, int]] = field(default_factory=list)
    """Candidate and seed of the trials that it ended."""

    def register(self, **fields: Any) -> None:
        """Offer the trainable."""
        response = self.client.put(f"{API}/trainables", json={"items": [TRAINABLE | fields]})
        assert response.status_code == 200, response.text

    def claim(self) -> dict[str, Any] | None:
        """Take a trial."""
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
        """Create the attempt's run, saying of it what a script would."""
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

    def work(self, kinds: dict[int, str], limit: int = 1000) -> None:
        """Run what there is, each candidate as `kinds` says."""
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
    """Ask for a rerun of these candidates."""
    body = ({"remedies": list(candidates)} if candidates else {}) | {"budget": {"steps": STEPS}} | fields
    response = client.post(f"{API}/runs/{run_id}/reruns", json=body)
    assert response.status_code == 202, response.text
    made: dict[str, Any] = response.json()
    return made


@pytest.fixture
def short_lease(client: TestClient, replace_services: ReplaceServices) -> None:
    """Give trials up after a twentieth of a second."""
    replace_services(trial_lease=0.05)
