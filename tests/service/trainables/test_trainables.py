"""Offering and listing trainables over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.service.reruns.conftest import API, PlayedWorker, read


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"name": ""}, "items[0].name"),
        ({"gpus": -1}, "items[0].gpus"),
        ({"timeout": 0}, "items[0].timeout"),
        ({"parameters": [{"name": "a", "type": "shell"}]}, "items[0].parameters[0].type"),
        ({"parameters": [{"name": "a", "type": "str"}]}, "items[0].parameters[0].choices"),
        ({"parameters": [{"name": "a", "type": "int"}] * 2}, "items[0].parameters[1].name"),
        ({"parameters": [{"name": "a", "type": "int", "default": "x"}]}, "items[0].parameters[0].default"),
        ({"parameters": [{"name": "a", "type": "int", "remedy": "magic"}]}, "items[0].parameters[0].remedy"),
        ({"parameters": [{"name": "a", "type": "int", "remedy": "warm_up"}]}, "items[0].parameters[0].remedy"),
        ({"parameters": [{"name": "a", "type": "int", "remedy": "use_bfloat16"}]}, "items[0].parameters[0].remedy"),
        ({"command": ["rm"]}, "items[0].command"),
    ],
    ids=[
        "name",
        "gpus",
        "timeout",
        "type",
        "choices",
        "twice",
        "default",
        "remedy",
        "no parameter",
        "not bool",
        "command",
    ],
)
def test_bad_trainables_name_the_field(sqlite_client: TestClient, change: dict[str, Any], path: str) -> None:
    """A field that is not allowed is refused with its path; a command is no field."""
    response = sqlite_client.put(f"{API}/trainables", json={"items": [{"name": "t"} | change]})
    assert (response.status_code, response.json()["errors"][0]["path"]) == (422, path)


def test_trainables_are_listed(client: TestClient, worker: PlayedWorker) -> None:
    """Offered trainables are listed by name; a new offer replaces the one before."""
    worker.register(gpus=2, timeout=5.0)
    (found,) = read(client, "/trainables")["items"]
    assert (found["name"], found["gpus"], found["timeout"], len(found["parameters"])) == ("train", 2, 5.0, 3)


def test_the_name_of_a_worker_is_checked(sqlite_client: TestClient) -> None:
    """An offer with an empty name of its worker is refused."""
    response = sqlite_client.put(f"{API}/trainables", json={"items": [], "worker": ""})
    assert (response.status_code, response.json()["errors"][0]["path"]) == (422, "worker")
