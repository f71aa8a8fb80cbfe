"""The service with nothing behind it: it receives what gradmedic receives, and does nothing with it."""

from __future__ import annotations

import pytest
from benchmarks.empty_service import APPEND_ON_THREAD_PATH, APPEND_PATH, READ_PATH, create_empty_app
from benchmarks.recorded_values import Blocks
from starlette.testclient import TestClient

from gradmedic.protocol.service import MSGPACK_MEDIA_TYPE


@pytest.mark.parametrize("path", [APPEND_PATH, APPEND_ON_THREAD_PATH])
def test_it_takes_the_body_of_an_append(path: str) -> None:
    """The bodies that the benchmark sends to gradmedic are answered at once, in either kind of endpoint."""
    with TestClient(create_empty_app()) as client:
        body = Blocks().body(0, MSGPACK_MEDIA_TYPE, 1)
        answer = client.post(path, content=body, headers={"Content-Type": MSGPACK_MEDIA_TYPE})
    assert (answer.status_code, answer.json()) == (200, {})


def test_it_answers_reads() -> None:
    """The path that reads are compared with has an answer."""
    with TestClient(create_empty_app()) as client:
        assert client.get(READ_PATH).json() == {}
