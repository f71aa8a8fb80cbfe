"""What is at the address of a cluster and is none that can be used; those that can are in tests/service/executors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gradmedic.exceptions import ConfigurationError
from gradmedic_worker.executors.ray_jobs import RayJobs, RayUnreachable

Answering = Callable[[int, bytes], AbstractContextManager[str]]


@pytest.fixture
def answering() -> Answering:
    """Serve one answer to every question and request, whoever asks."""

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


def test_a_job_that_was_not_stopped_is_not_taken_for_one(answering: Answering) -> None:
    """An error of the cluster's is an error, so that it is asked again; a job that is gone needs no stopping."""
    with answering(500, b"Traceback: the agent is away") as address:
        jobs = RayJobs(address, "a token that nobody reads")
        with pytest.raises(RayUnreachable, match="did not stop the job: 500: Traceback: the agent is away"):
            jobs.stop("0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f52-1")
        jobs.close()
    with answering(404, b"Job 1 does not exist") as address:
        jobs = RayJobs(address, "a token that nobody reads")
        jobs.stop("0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f52-1")
        jobs.close()
