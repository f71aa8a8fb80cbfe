"""Answers that are not those of a usable cluster. Usable clusters are in `test_ray_cluster.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gradmedic.exceptions import ConfigurationError
from gradmedic_worker.executors.ray_jobs import RayJobs, RayUnreachable

ServeAnswer = Callable[[int, bytes], AbstractContextManager[str]]


@pytest.fixture
def serve_answer() -> ServeAnswer:
    """Run a server that gives the same answer to every request."""

    @contextmanager
    def serve(status: int, body: bytes) -> Iterator[str]:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815  # named by the class

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # named by the class
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()

    return serve


def test_a_cluster_without_token_authentication_is_refused(serve_answer: ServeAnswer) -> None:
    """A cluster that answers without a token is refused: everyone who reaches it may run any program."""
    with serve_answer(200, b'{"ray_version": "2.60.0"}') as address:
        jobs = RayJobs(address, "a token that no server checks")
        with pytest.raises(ConfigurationError, match=r"answers without a token.* RAY_AUTH_MODE=token"):
            jobs.check()
        jobs.close()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [(200, b"<html>", "not one of Ray's: <html>"), (502, b"bad gateway", "answered 502: bad gateway")],
    ids=["page", "proxy"],
)
def test_an_answer_that_is_not_rays_counts_as_no_answer(
    serve_answer: ServeAnswer, status: int, body: bytes, message: str
) -> None:
    """A proxy may answer while its cluster restarts, so its answer counts as no answer."""
    with serve_answer(status, body) as address:
        jobs = RayJobs(address, "a token that no server checks")
        with pytest.raises(RayUnreachable, match=message):
            jobs.check()
        jobs.close()


def test_a_failed_stop_is_an_error(serve_answer: ServeAnswer) -> None:
    """If the cluster fails to stop a job, the error lets the caller retry. A job that is gone is no error."""
    with serve_answer(500, b"Traceback: the agent is away") as address:
        jobs = RayJobs(address, "a token that no server checks")
        with pytest.raises(RayUnreachable, match="did not stop the job: 500: Traceback: the agent is away"):
            jobs.stop("0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f52-1")
        jobs.close()
    with serve_answer(404, b"Job 1 does not exist") as address:
        jobs = RayJobs(address, "a token that no server checks")
        jobs.stop("0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f52-1")
        jobs.close()
