"""A service, or its database, is stopped, killed and restarted under load: no acknowledged step is lost.

Eight jobs stream at once, with blocks of different sizes. They resend blocks that were not acknowledged, as the client
does. Every value is its own step, so that the stored values show which steps were lost, doubled or mixed up.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
import pytest
from tests.support.patience import PATIENCE
from tests.support.postgres import PostgresServer
from tests.support.services import Serve
from tests.support.workers import WaitUntil

from gradmedic.protocol.ids import new_id

JOBS = 8
BLOCKS_BETWEEN_FAULTS = 24
"""Blocks of all jobs together that must be acknowledged before the next fault."""
API = "/api/v1"


class Job(threading.Thread):
    """A thread that streams one run until the load ends."""

    def __init__(self, load: Load, number: int) -> None:
        super().__init__(daemon=True)
        self._load = load
        self._random = random.Random(number)
        self.run_id = str(new_id())
        self.acknowledged_steps = 0
        self.acknowledged_blocks = 0
        self.unexpected_answers: list[str] = []

    def run(self) -> None:
        """Create the run, then append steps."""
        body: dict[str, Any] = {"id": self.run_id, "project": "faults", "layers": [{"name": "a"}, {"name": "b"}]}
        if not self._send(f"{API}/runs", body):
            return
        while True:
            count = self._random.randint(1, 30)
            steps = list(range(self.acknowledged_steps, self.acknowledged_steps + count))
            rows = [[step, "NaN"] for step in steps]
            body = {"steps": steps, "loss": steps, "statistics": {"grad_norm": rows}}
            if not self._send(f"{API}/runs/{self.run_id}/steps", body):
                return
            self.acknowledged_steps += count
            self.acknowledged_blocks += 1

    def _send(self, path: str, body: dict[str, Any]) -> bool:
        """Send a request until it is acknowledged. Return False if the load ends before."""
        while not self._load.is_over.is_set():
            try:
                response = self._load.client.post(f"{self._load.url}{path}", json=body)
            except httpx2.TransportError:
                self._load.is_over.wait(0.02)
                continue
            if response.is_success:
                return True
            if response.status_code != 503 or "retry-after" not in response.headers:
                self.unexpected_answers.append(f"{response.status_code}: {response.text[:500]}")
            self._load.is_over.wait(0.05)
        return False


class Load:
    """All jobs, and the address of the service to which they stream."""

    def __init__(self, url: str, wait_until: WaitUntil) -> None:
        self.url = url
        self.client = httpx2.Client(timeout=PATIENCE)
        self.is_over = threading.Event()
        self._wait_until = wait_until
        self.jobs = [Job(self, number) for number in range(JOBS)]

    def wait_for_blocks(self) -> None:
        """Wait until every job has appended a block, and all together `BLOCKS_BETWEEN_FAULTS`."""
        before = [job.acknowledged_blocks for job in self.jobs]
        self._wait_until(
            lambda: (
                all(job.acknowledged_blocks > count for job, count in zip(self.jobs, before, strict=True))
                and sum(job.acknowledged_blocks for job in self.jobs) >= sum(before) + BLOCKS_BETWEEN_FAULTS
            )
        )

    def get_status(self, path: str) -> int:
        """Return the status of a GET request, or 0 if the service does not answer."""
        try:
            return self.client.get(f"{self.url}{path}").status_code
        except httpx2.TransportError:
            return 0

    def check(self) -> None:
        """Check that everything acknowledged is stored once, and that no other error than 503 was answered."""
        for job in self.jobs:
            assert job.unexpected_answers == []
            path = f"{self.url}{API}/runs/{job.run_id}"
            query: dict[str, Any] = {"statistic": ["loss", "grad_norm"], "max_points": 10_000}
            answer = self.client.get(f"{path}/steps", params=query).json()
            stored_steps = answer["first_step"]
            assert stored_steps == list(range(len(stored_steps)))
            assert len(stored_steps) >= job.acknowledged_steps > 0
            series = {(line["statistic"], line["layer"]): line for line in answer["series"]}
            assert series["loss", None]["mean"] == series["grad_norm", "a"]["mean"] == stored_steps
            assert series["grad_norm", "b"]["nonfinite"] == [1] * len(stored_steps)
            assert self.client.get(f"{path}/diagnosis").json()["step"] == stored_steps[-1]


@contextmanager
def run_load(url: str, wait_until: WaitUntil) -> Iterator[Load]:
    """Let the jobs stream, then end them and check what is stored."""
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
def test_the_service_is_restarted(how: signal.Signals, serve: Serve, database_url: str, wait_until: WaitUntil) -> None:
    """After a service is stopped or killed under load, the next one has every acknowledged step."""
    with ExitStack() as services:
        service = services.enter_context(serve(database_url))
        with run_load(service.url, wait_until) as load:
            for _ in range(2):
                load.wait_for_blocks()
                service.process.send_signal(how)
                service.process.wait(timeout=PATIENCE)
                assert load.get_status("/healthz") == 0
                service = services.enter_context(serve(database_url))
                load.url = service.url
                assert load.get_status("/readyz") == 200
            load.wait_for_blocks()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["stop", "kill -9"])
def test_the_database_is_restarted(
    how: signal.Signals, serve: Serve, own_postgres: PostgresServer, wait_until: WaitUntil
) -> None:
    """While PostgreSQL is stopped or killed, the service answers 503 and is not ready. No acknowledged step is lost."""
    with serve(own_postgres.url) as service, run_load(service.url, wait_until) as load:
        for _ in range(2):
            load.wait_for_blocks()
            assert load.get_status("/readyz") == 200
            own_postgres.stop(how)
            wait_until(lambda: load.get_status("/readyz") == 503)
            assert load.get_status("/healthz") == 200
            assert load.get_status(f"{API}/runs") == 503
            own_postgres.start()
            wait_until(lambda: load.get_status("/readyz") == 200)
            load.wait_for_blocks()
