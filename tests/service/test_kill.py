"""A service that is killed at any moment has stored every acknowledged step once, and no step in part."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.support.patience import PATIENCE

KILLS = 3
STEPS_AFTER_THE_LAST_KILL = 30
SHARING_CLIENTS = 6


@pytest.mark.slow
def test_kills_while_steps_are_appended(serve: Any, database_url: str, create_run: Any, tmp_path: Path) -> None:
    """A service that is killed several times loses no acknowledged step, and stores resent steps once."""
    moments = random.Random(0)
    acknowledged = -1
    path: str | None = None
    for remaining_kills in reversed(range(KILLS + 1)):
        with serve(database_url) as served, httpx2.Client(base_url=served.url, timeout=PATIENCE) as client:
            if path is None:
                path = create_run(client, layers=3)
            run = client.get(path).json()
            assert acknowledged <= (-1 if run["last_step"] is None else run["last_step"])
            last = math.inf if remaining_kills else acknowledged + STEPS_AFTER_THE_LAST_KILL
            killer = threading.Timer(moments.uniform(0.05, 0.8), served.process.kill)
            if remaining_kills:
                killer.start()
            try:
                while acknowledged < last:
                    first, count = acknowledged + 1, moments.randint(1, 4)
                    steps = list(range(first, first + count))
                    rows = [[step, "NaN", None] for step in steps]
                    body = {"steps": steps, "loss": steps, "statistics": {"grad_norm": rows}}
                    response = client.post(f"{path}/steps", json=body)
                    assert response.status_code == 200, response.text
                    acknowledged = steps[-1]
            except httpx2.TransportError:
                assert remaining_kills
            killer.cancel()
    with serve(database_url) as served, httpx2.Client(base_url=served.url, timeout=PATIENCE) as client:
        query: dict[str, Any] = {"statistic": ["loss", "grad_norm"], "max_points": 10_000}
        read = [
            client.get(f"{path}/steps", params=query),
            client.get(f"{path}/diagnosis"),
            client.get(f"{path}/diagnosis", params={"at_step": acknowledged - 1}),
        ]
    assert [response.status_code for response in read] == [200] * 3, (tmp_path / "serve.log").read_text()
    answer, diagnosis, replayed = (response.json() for response in read)
    assert answer["first_step"] == list(range(acknowledged + 1))
    by_layer = {(series["statistic"], series["layer"]): series for series in answer["series"]}
    assert by_layer["loss", None]["mean"] == list(range(acknowledged + 1))
    assert by_layer["grad_norm", "layer0"]["mean"] == list(range(acknowledged + 1))
    assert by_layer["grad_norm", "layer1"]["nonfinite"] == [1] * (acknowledged + 1)
    assert by_layer["grad_norm", "layer2"]["count"] == [0] * (acknowledged + 1)
    assert diagnosis["step"] == acknowledged
    assert (replayed["verdict"], replayed["since_step"]) == (diagnosis["verdict"], diagnosis["since_step"])


@pytest.mark.slow
def test_kills_while_appends_share_commits(
    serve: Any, sqlite_url: str, create_run: Any, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    """A service that is killed while several clients append at once loses no acknowledged step of any of them."""
    moments = random.Random(1)
    paths: list[str] = []
    acknowledged = [-1] * SHARING_CLIENTS

    def append(url: str, index: int) -> None:
        """Append step by step until the service is gone."""
        with httpx2.Client(base_url=url, timeout=PATIENCE) as client:
            while True:
                step = acknowledged[index] + 1
                body = {"steps": [step], "loss": [step], "statistics": {"grad_norm": [[step]]}}
                try:
                    response = client.post(f"{paths[index]}/steps", json=body)
                except httpx2.TransportError:
                    return
                assert response.status_code == 200, response.text
                acknowledged[index] = step

    for _ in range(KILLS):
        with serve(sqlite_url) as served:
            if not paths:
                with httpx2.Client(base_url=served.url, timeout=PATIENCE) as client:
                    paths = [create_run(client, layers=1) for _ in range(SHARING_CLIENTS)]
            clients = [threading.Thread(target=append, args=(served.url, index)) for index in range(SHARING_CLIENTS)]
            for client_thread in clients:
                client_thread.start()
            enough = sum(acknowledged) + moments.randint(10, 60)
            wait_until(lambda enough=enough: sum(acknowledged) >= enough)  # type: ignore[misc]  # a default binds it
            served.process.kill()
            for client_thread in clients:
                client_thread.join(PATIENCE)
    with serve(sqlite_url) as served, httpx2.Client(base_url=served.url, timeout=PATIENCE) as client:
        for path, last in zip(paths, acknowledged, strict=True):
            query: dict[str, Any] = {"statistic": ["loss"], "max_points": 10_000}
            stored = client.get(f"{path}/steps", params=query).json()["first_step"]
            assert stored == list(range(len(stored)))
            assert last <= len(stored) - 1 <= last + 1
            assert client.get(f"{path}/diagnosis").json()["step"] == (len(stored) - 1 if stored else None)
