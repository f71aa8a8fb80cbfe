"""The event stream of a run, from real servers."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.support.api_keys import create_secret
from tests.support.patience import PATIENCE
from tests.support.played_worker import CLIP, PlayedWorker, rerun, suspect

from gradmedic_service.database import schema

pytestmark = pytest.mark.slow  # services of their own

RUNS = "/api/v1/runs"


@dataclass(frozen=True)
class Event:
    """An event that a server sent."""

    name: str
    content: Any
    id: str | None


@contextmanager
def following(url: str, run: str, last_event_id: str | None = None) -> Iterator[Iterator[Event]]:
    """Follow a run; yield its events."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    with httpx2.stream("GET", f"{url}{run}/events", headers=headers, timeout=PATIENCE) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield events(response)


def events(response: httpx2.Response) -> Iterator[Event]:
    """Yield the events of a response, parsed as a browser does."""
    found: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(":")
            found[name] = value.removeprefix(" ")
        else:
            if "event" in found:
                yield Event(found["event"], json.loads(found["data"]), found.get("id"))
            found = {}


@pytest.fixture
def run_at(create_run: Any) -> Callable[[str], str]:
    """Return a function that creates a run at a server."""

    def create(url: str) -> str:
        with httpx2.Client(base_url=url) as client:
            path: str = create_run(client)
        return path

    return create


def append(url: str, run: str, *steps: int, values: Any = 1.0) -> int:
    """Append steps; return the run's revision."""
    rows = [[values, values]] * len(steps)
    body = {"steps": steps, "loss": [values] * len(steps), "statistics": {"grad_norm": rows}}
    response = httpx2.post(f"{url}{run}/steps", json=body)
    assert response.status_code == 200, response.text
    revision: int = response.json()["revision"]
    return revision


def test_a_stream_sends_the_current_state_and_each_change(serve: Any, database_url: str, run_at: Any) -> None:
    """A new stream sends the state of the run, then each change of steps, verdict and status."""
    with serve(database_url) as served:
        run = run_at(served.url)
        append(served.url, run, *range(5))
        with following(served.url, run) as stream:
            first = [next(stream) for _ in range(3)]
            assert [event.name for event in first] == ["status", "verdict", "steps"]
            assert first[0].content == {"status": "running"}
            assert first[1].content["verdict"] == "undetermined"
            assert (first[2].content["last_step"], first[2].id) == (4, "2")
            revision = append(served.url, run, 5, values="NaN")
            verdict, steps = next(stream), next(stream)
            assert (verdict.name, verdict.content["verdict"], verdict.id) == ("verdict", "exploding", None)
            assert (steps.name, steps.id, steps.content["last_step"]) == ("steps", str(revision), 5)
            httpx2.patch(f"{served.url}{run}", json={"status": "failed"})
            assert next(stream) == Event("status", {"status": "failed"}, None)
            assert next(stream).id == str(revision + 1)


def test_a_stream_resumes_at_another_replica(serve: Any, postgres_url: str, run_at: Any) -> None:
    """A replica sends the changes that another one stored, and resumes a stream after its last event."""
    with serve(postgres_url) as first, serve(postgres_url) as other:
        run = run_at(first.url)
        with following(first.url, run) as stream:
            seen = [next(stream) for _ in range(3)][-1]
            append(other.url, run, 0)
            seen = next(stream)
            assert (seen.name, seen.content["last_step"]) == ("steps", 0)
        revision = append(first.url, run, 1, 2)
        with following(other.url, run, last_event_id=seen.id) as stream:
            missed = [next(stream) for _ in range(3)]
            assert (missed[2].content["last_step"], missed[2].id) == (2, str(revision))
        with following(other.url, run, last_event_id=str(revision)) as stream:
            assert next(stream).name == "status"
            revision = append(first.url, run, 3)
            assert next(stream).id == str(revision)


def test_streams_are_bounded(serve: Any, sqlite_url: str, run_at: Any, wait_until: Any) -> None:
    """A stream above the limit is answered with 503 and `Retry-After`, until another stream is closed."""
    with serve(sqlite_url, GRADMEDIC_MAX_STREAMS="1") as served:
        run = run_at(served.url)

        def has_room() -> bool:
            with httpx2.stream("GET", f"{served.url}{run}/events") as response:
                return response.status_code == 200

        with following(served.url, run) as stream:
            next(stream)
            refused = httpx2.get(f"{served.url}{run}/events")
            assert (refused.status_code, refused.json()["error_code"]) == (503, "too_many_streams")
            assert int(refused.headers["retry-after"]) > 0
        wait_until(has_room)


def test_one_key_leaves_streams_to_others(serve: Any, sqlite_url: str) -> None:
    """One API key holds at most half of the streams of a process; another key then still gets one."""
    first, other = (create_secret(sqlite_url, "ingest", "read") for _ in range(2))
    with serve(sqlite_url, "--require-auth", GRADMEDIC_MAX_STREAMS="2") as served:
        headers = [{"Authorization": f"Bearer {secret}"} for secret in (first, other)]
        body = {"project": "tests", "layers": [{"name": "a"}]}
        run = httpx2.post(f"{served.url}{RUNS}", json=body, headers=headers[0]).json()["id"]
        url = f"{served.url}{RUNS}/{run}/events"
        with httpx2.stream("GET", url, headers=headers[0]) as stream:
            assert stream.status_code == 200
            lines = stream.iter_lines()  # the stream would be closed with its iterator
            assert next(lines)
            assert httpx2.get(url, headers=headers[0]).json()["error_code"] == "too_many_streams"
            with httpx2.stream("GET", url, headers=headers[1]) as stream_of_other:
                assert stream_of_other.status_code == 200


def test_streams_hold_no_database_connection(serve: Any, postgres_url: str, run_at: Any) -> None:
    """Other requests are answered while more streams are open than the pool has connections."""
    with serve(postgres_url, GRADMEDIC_DATABASE_POOL_SIZE="2") as served:
        run = run_at(served.url)
        with httpx2.Client(base_url=served.url) as client:
            responses = [client.send(client.build_request("GET", f"{run}/events"), stream=True) for _ in range(8)]
            try:
                assert {response.status_code for response in responses} == {200}
                assert client.get(RUNS).status_code == 200
            finally:
                for response in responses:
                    response.close()


def test_an_open_stream_does_not_delay_the_shutdown(serve: Any, sqlite_url: str, run_at: Any) -> None:
    """After SIGTERM the service ends its streams and exits before the shutdown timeout."""
    with serve(sqlite_url, GRADMEDIC_SHUTDOWN_TIMEOUT=str(2 * PATIENCE)) as served:
        run = run_at(served.url)
        with following(served.url, run) as stream:
            next(stream)
            served.process.send_signal(signal.SIGTERM)
            assert len(list(stream)) == 2  # the events that were sent before
            served.process.wait(timeout=PATIENCE)


def test_the_stream_of_a_deleted_run_ends(serve: Any, sqlite_url: str, run_at: Any) -> None:
    """The stream of a deleted run ends, and a new stream is answered with `run_not_found`."""
    with serve(sqlite_url) as served:
        run = run_at(served.url)
        with following(served.url, run) as stream:
            next(stream)
            assert httpx2.delete(f"{served.url}{run}").status_code == 204
            assert len(list(stream)) == 2
        assert httpx2.get(f"{served.url}{run}/events").json()["error_code"] == "run_not_found"


def test_a_stream_sends_each_change_of_a_rerun(serve: Any, database_url: str) -> None:
    """The stream of a run sends the start of its rerun, each change of a trial, and the result."""
    with serve(database_url) as served, httpx2.Client(base_url=served.url) as client:
        worker = PlayedWorker(client)
        worker.register()
        run = suspect(client)
        with following(served.url, f"{RUNS}/{run}") as stream:
            assert [next(stream).name for _ in range(3)] == ["status", "verdict", "steps"]
            made = rerun(client, run, CLIP, seeds=1)

            def next_rerun() -> Any:
                return next(event.content for event in stream if event.name == "rerun")

            queued = next_rerun()
            assert (queued["rerun_id"], queued["status"], queued["trials"]) == (made["id"], "queued", {"queued": 1})
            claimed = worker.claim()
            assert claimed is not None
            running = next_rerun()
            assert (running["status"], running["trials"]) == ("running", {"running": 1})
            worker.stream(claimed, "exploding")
            assert next_rerun()["revision"] > running["revision"]
            worker.publish(claimed)
            while (trials := next_rerun()["trials"]) == {"running": 1}:  # each block may have an event of its own
                pass
            assert trials == {"done": 1, "queued": 1}
            worker.work({1: "learning"})
            while (last := next_rerun())["status"] == "running":
                pass
            assert (last["status"], last["trials"]) == ("done", {"done": 2})
        with following(served.url, f"{RUNS}/{run}", last_event_id="1000000") as stream:
            assert next(stream) == Event("rerun", last, None)


def test_a_revoked_key_ends_its_stream(serve: Any, sqlite_url: str) -> None:
    """A stream ends after its API key was revoked, also while it has events to send."""
    command = [
        str(Path(sys.executable).parent / "gradmedic"),
        "api-key",
        "create",
        "--all-projects",
        "--scope",
        "admin",
    ]
    schema.upgrade(sqlite_url)
    made = subprocess.run([*command, "--database-url", sqlite_url], check=True, capture_output=True, text=True)
    (secret,) = re.findall(r"gradmedic_[\w-]{43}", made.stdout)
    with serve(sqlite_url, "--require-auth") as served:
        headers = {"Authorization": f"Bearer {secret}"}
        with httpx2.Client(base_url=served.url, headers=headers) as admin:
            key = admin.post("/api/v1/api-keys", json={"project": "tests", "scopes": ["read"]}).json()
            run = admin.post(RUNS, json={"project": "tests", "layers": [{"name": "a"}]}).json()["id"]
            reader = {"Authorization": f"Bearer {key['secret']}"}
            with httpx2.stream("GET", f"{served.url}{RUNS}/{run}/events", headers=reader, timeout=PATIENCE) as response:
                stream = events(response)
                next(stream)
                assert admin.delete(f"/api/v1/api-keys/{key['id']}").status_code == 204
                for step, _ in enumerate(stream):  # a new step after each event, until the stream ends
                    body = {"steps": [step], "loss": [1.0], "statistics": {"grad_norm": [[1.0]]}}
                    assert admin.post(f"{RUNS}/{run}/steps", json=body).status_code == 200
            assert httpx2.get(f"{served.url}{RUNS}/{run}/events", headers=reader).status_code == 401
