"""The memory of answers is bounded, also where they are not read."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send
from tests.support.api_keys import create_secret
from tests.support.patience import PATIENCE
from tests.support.raw_requests import connect, read_to_end, request_head
from tests.support.services import run_service

from gradmedic.protocol.service import MSGPACK_MEDIA_TYPE
from gradmedic_service.access.errors import Overloaded
from gradmedic_service.access.principal import LOOPBACK, RESULT
from gradmedic_service.http.answers import PART_BYTES, PIECE_BYTES, WHOLE_BYTES, BoundedAnswers, respond_in_parts

LAYERS, STEPS = 1000, 400
"""A run whose series are 400,000 points: some 30 MB of JSON."""
QUERY = f"statistic=grad_norm&max_points={STEPS}"
SMALL_BUFFER = 4096


async def respond_to_get(answers: BoundedAnswers, send: Send, path: str = "/api/v1/runs") -> None:
    """Send a request without a body from this machine."""
    scope: Scope = {"type": "http", "method": "GET", "path": path, "headers": [], "state": {RESULT: LOOPBACK}}

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    await answers(scope, receive, send)


def test_large_bodies_leave_in_pieces() -> None:
    """A body that is given at once reaches the connection in pieces, and the last one waits until it has left."""
    body = bytes(range(256)) * 1000
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(respond_to_get(BoundedAnswers(Response(body), 2**20), send))
    pieces = [message["body"] for message in sent[1:]]
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) == PIECE_BYTES
    assert [message.get("more_body", False) for message in sent[1:]] == [True] * (len(pieces) - 1) + [False]
    assert pieces[-1] == b""


def test_unread_bytes_are_counted_until_they_have_left() -> None:
    """While unread answers fill what answers may take, a request gets 503, and later it is served."""

    async def scenario() -> None:
        reading = asyncio.Event()

        async def unread(message: Message) -> None:
            if message.get("body"):
                await reading.wait()

        async def read(_message: Message) -> None:
            pass

        answers = BoundedAnswers(Response(bytes(300_000)), 300_000)
        first = asyncio.create_task(respond_to_get(answers, unread))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await respond_to_get(answers, read)
        assert refused.value.retry_after is not None
        await respond_to_get(answers, read, "/healthz")
        reading.set()
        await first
        await respond_to_get(answers, read)

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [0, 3, 2000])
def test_parts_make_one_answer(count: int) -> None:
    """Few parts become one body of known length; many are streamed, built when they are read, in few large parts."""
    built = 0

    def build() -> Iterator[bytes]:
        nonlocal built
        for number in range(count):
            built += 1
            yield str(number).encode() * 1000

    response = respond_in_parts(build(), "text/plain", {"Vary": "Accept"})
    assert response.headers["vary"] == "Accept"
    assert built == (count if count < 1000 else pytest.approx(370, abs=100))
    sent: list[Message] = []

    async def application(scope: Scope, receive: Receive, _send: Send) -> None:
        async def collect(message: Message) -> None:
            sent.append(message)

        await response(scope, receive, collect)

    async def drop(_message: Message) -> None:
        pass

    asyncio.run(respond_to_get(BoundedAnswers(application, 2**20), drop))
    assert b"".join(message["body"] for message in sent[1:]) == b"".join(
        str(number).encode() * 1000 for number in range(count)
    )
    assert isinstance(response, StreamingResponse) == (count == 2000)
    lengths = [len(message["body"]) for message in sent[1:]]
    assert count < 1000 or (lengths[0] > WHOLE_BYTES and min(lengths[1:-2]) >= PART_BYTES)


@pytest.fixture(scope="module")
def large_run(migrated_sqlite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A database with a run of many layers and steps, and the path of the run. Tests only read the run."""
    folder = tmp_path_factory.mktemp("large")
    shutil.copyfile(migrated_sqlite_file, folder / "gradmedic.db")
    url = f"sqlite:///{folder / 'gradmedic.db'}"
    with run_service(folder, url) as served, httpx2.Client(base_url=served.url) as client:
        layers = [{"name": f"layer{index}"} for index in range(LAYERS)]
        response = client.post("/api/v1/runs", json={"project": "tests", "layers": layers})
        path = f"/api/v1/runs/{response.json()['id']}"
        for first in range(0, STEPS, 100):
            steps = [*range(first, first + 100)]
            rows = [[1.0 / (1 + step + layer) for layer in range(LAYERS)] for step in steps]
            assert client.post(f"{path}/steps", json={"steps": steps, "statistics": {"grad_norm": rows}}).is_success
    return url, path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accept", "connection"),
    [("application/json", "close"), (MSGPACK_MEDIA_TYPE, "keep-alive"), ("text/csv", "keep-alive")],
)
def test_unread_answers_are_closed(
    accept: str, connection: str, large_run: tuple[str, str], serve: Any, tmp_path: Path, wait_until: Any
) -> None:
    """A connection whose answer is not read is closed, for every kind of answer; one that is read is complete."""
    database_url, path = large_run
    headers = {"Accept": accept, "Connection": connection}
    with (
        serve(database_url, GRADMEDIC_WRITE_TIMEOUT="1") as served,
        connect(served.url, receive_buffer=SMALL_BUFFER) as unread,
    ):
        unread.sendall(request_head("GET", f"{path}/steps?{QUERY}", headers))
        wait_until(lambda: "its answer is not read" in (tmp_path / "serve.log").read_text())
        wait_until(lambda: len(psutil.Process(served.process.pid).net_connections("tcp")) == 1)
        partial = read_to_end(unread)
    with serve(database_url) as served:
        whole = httpx2.get(f"{served.url}{path}/steps?{QUERY}", headers={"Accept": accept}).content
    assert partial.startswith(b"HTTP/1.1 200 OK")
    assert len(partial) < len(whole)


@pytest.mark.slow
@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
def test_unread_answers_take_little_memory(
    accept: str, large_run: tuple[str, str], serve: Any, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    """Forty unread answers of one key take no more memory than answers may, and another key gets the same answer."""
    database_url, path = large_run
    secrets = [create_secret(database_url, "read") for _ in range(2)]
    limits = {"GRADMEDIC_MAX_ANSWER_BYTES": str(160 * 2**20), "GRADMEDIC_WRITE_TIMEOUT": str(PATIENCE)}
    with serve(database_url, "--require-auth", **limits) as served, ExitStack() as unread:
        process = psutil.Process(served.process.pid)
        url = f"{path}/steps?{QUERY}"
        headers = [{"Accept": accept, "Authorization": f"Bearer {secret}"} for secret in secrets]
        assert httpx2.get(f"{served.url}{url}", headers=headers[1]).status_code == 200
        before = process.memory_info().rss

        def leave_unread() -> None:
            connection = unread.enter_context(connect(served.url, receive_buffer=SMALL_BUFFER))
            connection.sendall(request_head("GET", url, headers[0]))

        def is_full() -> bool:
            """Leave another answer unread: a busy service may have refused most of the first ones at once."""
            leave_unread()
            return httpx2.get(f"{served.url}{url}", headers=headers[0]).status_code == 503

        for _ in range(40):
            leave_unread()
        if accept != "text/csv":
            wait_until(is_full)
        assert httpx2.get(f"{served.url}{url}", headers=headers[1]).status_code == 200
        assert process.memory_info().rss - before < 250 * 2**20
