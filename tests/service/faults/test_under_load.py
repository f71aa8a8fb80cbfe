"""Restarted, killed, or without its database, under load: nothing acknowledged is lost, and readiness is true.

Eight jobs stream at once, each block of a size of its own, and send again what was not acknowledged, as the client
does. Every value names its step, so that what is stored shows what was lost, doubled or mixed up.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
import pytest
from tests.support.patience import PATIENCE
from tests.support.postgres import PostgresServer

from gradmedic.protocol.ids import new_id

JOBS = 8
BETWEEN_FAULTS = 24
"""Blocks that must have been acknowledged, over all jobs, before the next fault."""
API = "/api/v1"

WaitUntil = Callable[[Callable[[], bool]], None]


class Job(threading.Thread):
    """Streams one run to wherever the service is, until it is told to stop."""

    def __init__(self, load: Load, number: int) -> None:
        super().__init__(daemon=True)
        self._load = load
        self._random = random.Random(number)
        self.run_id = str(new_id())
        self.acknowledged = 0
        """Steps."""
        self.blocks = 0
        self.unexpected: list[str] = []

    def run(self) -> None:
        """Create the run, then append."""
        body: dict[str, Any] = {"id": self.run_id, "project": "faults", "layers": [{"name": "a"}, {"name": "b"}]}
        if not self._persist(f"{API}/runs", body):
            return
        while True:
            count = self._random.randint(1, 30)
            steps = list(range(self.acknowledged, self.acknowledged + count))
            rows = [[step, "NaN"] for step in steps]
            body = {"steps": steps, "loss": steps, "statistics": {"grad_norm": rows}}
            if not self._persist(f"{API}/runs/{self.run_id}/steps", body):
                return
            self.acknowledged += count
            self.blocks += 1

    def _persist(self, path: str, body: dict[str, Any]) -> bool:
        """Send until it is acknowledged; False if the load ended before."""
        while not self._load.is_over.is_set():
            try:
                response = self._load.client.post(f"{self._load.url}{path}", json=body)
            except httpx2.TransportError:
                self._load.is_over.wait(0.02)
                continue
            if response.is_success:
                return True
            if response.status_code != 503 or "retry-after" not in response.headers:
                self.unexpected.append(f"{response.status_code}: {response.text[:500]}")
            self._load.is_over.wait(0.05)
        return False


class Load:
    """All jobs, and where they find the service."""

    def __init__(self, url: str, wait_until: WaitUntil) -> None:
        self.url = url
        self.client = httpx2.Client(timeout=PATIENCE)
        self.is_over = threading.Event()
        self._wait_until = wait_until
        self.jobs = [Job(self, number) for number in range(JOBS)]

    def let_it_go_on(self) -> None:
        """Wait until every job got on, and all together by `BETWEEN_FAULTS` blocks."""
        before = [job.blocks for job in self.jobs]
        self._wait_until(
            lambda: (
                all(job.blocks > was for job, was in zip(self.jobs, before, strict=True))
                and sum(job.blocks for job in self.jobs) >= sum(before) + BETWEEN_FAULTS
            )
        )

    def answers(self, path: str) -> int:
        """Return the status at a path, 0 where nobody answers."""
        try:
            return self.client.get(f"{self.url}{path}").status_code
        except httpx2.TransportError:
            return 0

    def check(self) -> None:
        """Compare what is stored with what was acknowledged; nothing but 503 was ever answered instead."""
        for job in self.jobs:
            assert job.unexpected == []
            path = f"{self.url}{API}/runs/{job.run_id}"
            query: dict[str, Any] = {"statistic": ["loss", "grad_norm"], "max_points": 10_000}
            answer = self.client.get(f"{path}/steps", params=query).json()
            stored = answer["first_step"]
            assert stored == list(range(len(stored)))
            assert len(stored) >= job.acknowledged > 0
            series = {(one["statistic"], one["layer"]): one for one in answer["series"]}
            assert series["loss", None]["mean"] == series["grad_norm", "a"]["mean"] == stored
            assert series["grad_norm", "b"]["nonfinite"] == [1] * len(stored)
            assert self.client.get(f"{path}/diagnosis").json()["step"] == stored[-1]


@contextmanager
def loaded(url: str, wait_until: WaitUntil) -> Iterator[Load]:
    """Let jobs stream, and end them."""
    load = Load(url, wait_until)
    for job in load.jobs:
        job.start()
    try:
        yield load
        load.is_over.set()
        for job in load.jobs:
            job.join()
        load.check()
    finally:
        load.is_over.set()
        load.client.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["restart", "kill -9"])
def test_the_service_is_restarted(how: signal.Signals, serve: Any, database_url: str, wait_until: WaitUntil) -> None:
    """Stopped or killed under load, three times, the service that comes after it has every acknowledged step."""
    with ExitStack() as services:
        served = services.enter_context(serve(database_url))
        with loaded(served.url, wait_until) as load:
            for _ in range(2):
                load.let_it_go_on()
                served.process.send_signal(how)
                served.process.wait(timeout=PATIENCE)
                assert load.answers("/healthz") == 0
                served = services.enter_context(serve(database_url))
                load.url = served.url
                assert load.answers("/readyz") == 200
            load.let_it_go_on()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["stop", "kill -9"])
def test_the_database_is_restarted(
    how: signal.Signals, serve: Any, own_postgres: PostgresServer, wait_until: WaitUntil
) -> None:
    """PostgreSQL stopped or killed under load: 503 while it is away, readiness says so, and nothing is lost."""
    with serve(own_postgres.url) as served, loaded(served.url, wait_until) as load:
        for _ in range(2):
            load.let_it_go_on()
            assert load.answers("/readyz") == 200
            own_postgres.stop(how)
            wait_until(lambda: load.answers("/readyz") == 503)
            assert load.answers("/healthz") == 200
            assert load.answers(f"{API}/runs") == 503
            own_postgres.start()
            wait_until(lambda: load.answers("/readyz") == 200)
            load.let_it_go_on()
