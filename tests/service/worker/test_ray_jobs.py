"""What is at the address of a cluster and is none that can be used; those that can are in tests/service/executors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gradmedic.exceptions import ConfigurationError
from gradmedic_service.worker.ray_jobs import RayJobs, RayUnreachable

Answering = Callable[[int, bytes], AbstractContextManager[str]]


@pytest.fixture
def answering() -> Answering:
    """Serve one answer to every question, whoever asks."""

    @contextmanager
    def serve(status: int, body: bytes) -> Iterator[str]:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # named by the class
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()

    return serve


def test_a_cluster_that_asks_for_no_token_is_refused(answering: Answering) -> None:
    """Whoever reaches it may run anything, under the ids of our attempts too."""
    with answering(200, b'{"ray_version": "2.60.0"}') as address:
        jobs = RayJobs(address, "a token that nobody asks for")
        with pytest.raises(ConfigurationError, match=r"answers without a token.* RAY_AUTH_MODE=token"):
            jobs.check()
        jobs.close()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [(200, b"<html>", "not one of Ray's: <html>"), (502, b"bad gateway", "answered 502: bad gateway")],
    ids=["page", "proxy"],
)
def test_what_is_no_answer_of_ray_counts_as_none(answering: Answering, status: int, body: bytes, message: str) -> None:
    """A proxy whose cluster is being restarted is waited for, as a cluster that does not answer is."""
    with answering(status, body) as address:
        jobs = RayJobs(address, "a token that nobody reads")
        with pytest.raises(RayUnreachable, match=message):
            jobs.check()
        jobs.close()
