"""The errors of answers, and whether a request is retried."""

from __future__ import annotations

import socket
import time
from email.utils import formatdate

import pytest
from tests.support.faulty_proxy import Fault, FaultyProxy

from gradmedic import (
    ApiError,
    Client,
    ConflictError,
    GradmedicError,
    InvalidRequestError,
    NotFoundError,
    TransportError,
)
from gradmedic.configuration import Connection
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.runs import RunList
from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE, FieldError, Problem
from gradmedic.transport.http import LONGEST_DELAY, Request, Response, Service, is_retryable, retry_delay


class FixedAnswer:
    """A transport with one answer."""

    def __init__(self, status: int, body: bytes = b"{}", media: str = "application/json", **headers: str) -> None:
        self.response = Response(status, {"content-type": media, **headers}, body)
        self.requests: list[Request] = []

    def send(self, request: Request, timeout: float) -> Response:
        """Return the answer."""
        self.requests.append(request)
        return self.response

    def close(self) -> None:
        """Do nothing: no connection is open."""


def service(transport: FixedAnswer, api_key: str | None = None) -> Service:
    """Return a service whose transport has one answer."""
    return Service(Connection(base_url="http://gradmedic.test", api_key=api_key, timeout=1.0), transport)


def problem(status: int) -> bytes:
    """Return the body of a refusal."""
    return to_json(
        Problem(
            type="about:blank",
            title="No",
            status=status,
            detail="It is not so.",
            error_code="not_so",
            request_id="r1",
            errors=[FieldError(path="layers[3].name", message="is there twice")],
        )
    )


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (400, InvalidRequestError, False),
        (401, ApiError, False),
        (404, NotFoundError, False),
        (408, ApiError, True),
        (409, ConflictError, False),
        (413, InvalidRequestError, False),
        (422, InvalidRequestError, False),
        (429, ApiError, True),
        (500, ApiError, True),
        (503, ApiError, True),
    ],
)
def test_a_refusal_is_the_error_of_its_status(status: int, kind: type[ApiError], retryable: bool) -> None:
    """The error has the service's message and the wrong field; 408, 429 and 5xx may be retried, others not."""
    transport = FixedAnswer(status, problem(status), PROBLEM_MEDIA_TYPE)
    with pytest.raises(kind, match=r"It is not so\..*not_so\)\n  layers\[3\]\.name: is there twice") as caught:
        service(transport).request("GET", "/runs")
    assert is_retryable(caught.value) is retryable


@pytest.mark.parametrize(
    ("status", "retryable"), [(200, False), (301, False), (404, False), (405, False), (429, True), (502, True)]
)
def test_an_answer_that_is_not_gradmedics_names_the_url(status: int, retryable: bool) -> None:
    """HTML from a proxy, a redirect or another server is a TransportError with the URL and the start of the answer."""
    transport = FixedAnswer(status, b"<html>Welcome to nginx</html>", "text/html")
    with pytest.raises(TransportError, match=r"http://gradmedic\.test/api/v1/runs.*Welcome to nginx") as caught:
        service(transport).request("GET", "/runs")
    assert is_retryable(caught.value) is retryable


def test_json_of_another_server_is_a_transport_error() -> None:
    """An error without the fields of a problem and an answer without the expected fields are TransportErrors."""
    with pytest.raises(TransportError, match="not gradmedic's"):
        service(FixedAnswer(500, b'{"error": "oops"}')).request("GET", "/runs")
    with pytest.raises(TransportError, match="cannot read"):
        service(FixedAnswer(200, b'{"hello": "world"}')).request_as(RunList, "GET", "/runs")


def test_the_key_travels_in_a_header_and_the_query_is_encoded() -> None:
    """The key is not in the URL; None parameters are left out, sequences repeated."""
    transport = FixedAnswer(200)
    service(transport, "s3cret").request("GET", "/runs", query={"a": None, "layer": ["x y", "z&"], "n": 3})
    (request,) = transport.requests
    assert request.url == "http://gradmedic.test/api/v1/runs?layer=x+y&layer=z%26&n=3"
    assert request.headers["Authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_a_lower_bound_of_the_delay(form: str) -> None:
    """Retry-After may be seconds or a date."""
    asked = "7" if form == "seconds" else formatdate(time.time() + 8, usegmt=True)
    transport = FixedAnswer(429, problem(429), PROBLEM_MEDIA_TYPE, **{"retry-after": asked})
    with pytest.raises(ApiError) as caught:
        service(transport).request("GET", "/runs")
    assert 6.0 < retry_delay(caught.value, 0) < 9.0


def test_delays_grow_with_jitter_up_to_a_limit() -> None:
    """Each failure doubles the delay, and the delays of many clients differ."""
    error = TransportError("away")
    delays = [[retry_delay(error, attempt) for _ in range(50)] for attempt in range(40)]
    assert max(delays[0]) < min(delays[3])
    assert all(delay <= LONGEST_DELAY for several in delays for delay in several)
    assert len(set(delays[5])) > 40


def test_a_service_that_is_down_is_a_transport_error_with_the_url() -> None:
    """If no server listens, the error names the URL and is retryable."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with Client(url, attempts=1) as client, pytest.raises(TransportError, match=url) as caught:
            client.limits()
    assert is_retryable(caught.value)


def test_a_request_without_an_answer_fails_after_the_timeout() -> None:
    """A server that never answers costs no more than `timeout` seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, attempts=1, timeout=0.2) as client, pytest.raises(TransportError, match=url):
            client.limits()


@pytest.mark.usefixtures("quick_retries")
def test_a_client_retries_a_few_times(proxy: FaultyProxy) -> None:
    """Temporary failures are retried, and the last one is raised."""
    with Client(proxy.url, attempts=3) as client:
        proxy.fail(Fault(status=503), Fault(lost=True))
        assert client.limits().max_layers > 0
        proxy.fail(*[Fault(status=503)] * 3)
        with pytest.raises(GradmedicError, match="503"):
            client.limits()


def test_a_proxy_of_the_environment_is_for_distant_hosts_only(
    monkeypatch: pytest.MonkeyPatch, service_url: str
) -> None:
    """Loopback is reached without the proxy even if HTTP_PROXY is set."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Client(service_url, attempts=1) as client:
        assert client.limits().max_layers > 0
    with Client("http://gradmedic.invalid", attempts=1) as client, pytest.raises(TransportError, match="proxy"):
        client.limits()


def test_a_bad_field_is_named_once() -> None:
    """A field that the detail names already is not repeated; the others have a line each."""
    errors = [
        FieldError(path="seeds", message="must be from 1 to 5"),
        FieldError(path="steps", message="must be at least 1"),
    ]
    refusal = Problem(
        type="about:blank",
        title="The request is invalid",
        status=422,
        detail="seeds: must be from 1 to 5 (and 1 more)",
        error_code="invalid_request",
        request_id="r1",
        errors=errors,
    )
    text = str(ApiError(refusal))
    assert text.count("must be from 1 to 5") == 1
    assert text.splitlines()[1:] == ["  steps: must be at least 1"]
