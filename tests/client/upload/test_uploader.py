"""When blocks are sent, and what happens when the service fails."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.client.runs import (
    block_requests,
    losses,
    start,
    wait_until_recorded,
)
from tests.support.faulty_proxy import Fault, FaultyProxy

import gradmedic
from gradmedic.cli import main
from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE, Problem
from gradmedic.transport.http import Request, Response, Urllib3Transport
from gradmedic.upload.journal import Journal


@pytest.mark.usefixtures("quick_retries")
def test_every_step_is_stored_once_though_requests_fail(proxy: FaultyProxy, client: gradmedic.Client) -> None:
    """After 5xx, 429, lost answers and lost registrations, the stored run is the logged one."""
    run = start(proxy.url)
    proxy.fail(
        Fault("/limits", status=502),
        Fault("/runs", lost=True),
        Fault("/steps", lost=True),
        Fault("/steps", status=429, headers={"retry-after": "0.02"}),
        Fault("/steps", status=500),
        Fault("/steps", lost=True),
        Fault("/runs/", method="PATCH", lost=True),
        Fault("/runs/", method="GET", status=503),
    )
    for i in range(120):
        run.log(float(i), gradients={"w": np.full(3, i), **({"late": np.ones(2)} if i > 80 else {})})
        if i % 40 == 20:
            run.flush()
    assert run.finish()
    assert losses(client, run) == {i: float(i) for i in range(120)}
    assert [layer.name for layer in client.runs.get(run.id).layers] == ["w", "late"]


class LoggingTransport(Urllib3Transport):
    """Logs a step with a new layer while the run is registered."""

    def __init__(self) -> None:
        super().__init__()
        self.run: gradmedic.Run | None = None

    def send(self, request: Request, timeout: float) -> Response:
        """Carry a request."""
        if request.url.endswith("/limits") and self.run is not None:
            run, self.run = self.run, None
            run.log(2.0, gradients={"late": np.ones(2)})
            wait_until_recorded(run)
        return super().send(request, timeout)


def test_a_layer_that_appears_while_a_block_is_made_is_in_the_next_block(
    service_url: str, client: gradmedic.Client
) -> None:
    """The training thread may log a new layer at any moment of the uploader's work."""
    transport = LoggingTransport()
    run = start(service_url, transport=transport)
    transport.run = run
    run.log(1.0, gradients={"early": np.ones(2)})
    assert run.flush()
    assert transport.run is None
    assert run.finish()
    assert losses(client, run) == {0: 1.0, 1: 2.0}
    assert [layer.name for layer in client.runs.get(run.id).layers] == ["early", "late"]


@pytest.mark.usefixtures("quick_retries")
def test_a_full_queue_drops_finite_steps_and_counts_them(
    proxy: FaultyProxy, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """When the service is away for too long, memory and disk stay bounded; the run shows the number of lost steps."""
    run = start(proxy.url, max_queue_bytes=10_000, max_disk_bytes=40_000)
    proxy.permanent = Fault(status=503)
    for i in range(1000):
        run.log(math.nan if i == 3 else float(i))
    wait_until_recorded(run)  # everything met the full disk
    proxy.wait_for(lambda requests: len(requests) > 1)
    proxy.permanent = None
    assert run.finish(timeout=100.0)
    stored = losses(client, run)
    assert 50 < len(stored) < 800
    assert 3 in stored
    assert 999 in stored
    assert f"dropped {1000 - len(stored)} steps" in caplog.text
    training = client.runs.get(run.id).training
    assert training is not None
    assert training.dropped_steps == 1000 - len(stored)


class Overtaken(Urllib3Transport):
    """Lets the training log more steps than there is room for, while a block is in flight."""

    def __init__(self, loses_answer: bool) -> None:
        super().__init__()
        self.run: gradmedic.Run | None = None
        self.loses_answer = loses_answer
        self.sent_first: list[int] = []

    def send(self, request: Request, timeout: float) -> Response:
        """Carry a request; the first block waits until everything was recorded."""
        if not request.url.endswith("/steps"):
            return super().send(request, timeout)
        steps: list[int] = msgspec.msgpack.decode(request.body or b"")["steps"]
        if self.run is not None:
            run, self.run = self.run, None
            self.sent_first = steps
            for i in range(steps[-1] + 1, 1000):
                run.log(float(i))
            wait_until_recorded(run)
            answer = super().send(request, timeout)
            assert answer.status == 200
            if self.loses_answer:
                raise gradmedic.TransportError("the answer was lost")
            return answer
        return super().send(request, timeout)


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("loses_answer", [False, True])
@pytest.mark.parametrize("has_disk", [True, False])
def test_a_step_that_was_sent_is_not_counted_as_dropped(
    has_disk: bool, loses_answer: bool, service_url: str, client: gradmedic.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are dropped while a block is in flight, and the service accepts the block: the dropped count is exact."""
    if not has_disk:
        monkeypatch.setattr(Journal, "create", lambda *_: None)
    transport = Overtaken(loses_answer)
    run = start(service_url, max_queue_bytes=100_000, max_disk_bytes=20_000, flush_interval=60, transport=transport)
    for i in range(20):
        run.log(float(i))
    wait_until_recorded(run)
    transport.run = run
    assert run.flush(100.0)
    assert run.finish(timeout=100.0)
    stored = losses(client, run)
    assert transport.sent_first == list(range(20))
    assert set(stored) > set(transport.sent_first)
    assert 20 < len(stored) < 800
    training = client.runs.get(run.id).training
    assert training is not None
    assert training.dropped_steps == 1000 - len(stored)


@pytest.mark.usefixtures("quick_retries")
def test_what_several_processes_dropped_of_a_run_is_added(
    proxy: FaultyProxy, service_url: str, client: gradmedic.Client
) -> None:
    """The drops of an offline process and of one that went on under the run's id are added."""
    with gradmedic.init("dropping", mode="offline", max_disk_bytes=20_000) as run:
        for i in range(1000):
            run.log(float(i))
    assert main(["sync", os.environ["GRADMEDIC_DIR"], "--base-url", service_url]) == 0
    training = client.runs.get(run.id).training
    assert training is not None
    assert training.dropped_steps == 1000 - len(losses(client, run))
    resumed = gradmedic.init("dropping", id=run.id, base_url=proxy.url, max_queue_bytes=10_000, max_disk_bytes=20_000)
    resumed.rewind(999)
    proxy.permanent = Fault(status=503)
    for i in range(1000, 2000):
        resumed.log(float(i))
    wait_until_recorded(resumed)
    proxy.permanent = None
    assert resumed.finish(timeout=100.0)
    training = client.runs.get(run.id).training
    assert training is not None
    assert training.dropped_steps == 2000 - len(losses(client, run))


@pytest.mark.usefixtures("quick_retries")
def test_an_outage_is_logged_once_and_so_is_its_end(proxy: FaultyProxy, caplog: pytest.LogCaptureFixture) -> None:
    """One warning is logged when the service goes, and one when it is back."""
    run = start(proxy.url)
    proxy.permanent = Fault(status=503)
    run.log(1.0)
    assert not run.flush(timeout=0.3)
    proxy.wait_for(lambda requests: len(requests) > 3)
    proxy.permanent = None
    assert run.finish()
    assert caplog.text.count("tries again") == 1
    assert caplog.text.count("reaches") == 1


def test_training_with_a_service_that_is_down_goes_on_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    """log() neither waits nor raises, and finish() returns within its timeout."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        run = start(f"http://127.0.0.1:{free.getsockname()[1]}")
        for i in range(1000):
            run.log(float(i))
        wait_until_recorded(run)
        begun = time.monotonic()
        assert not run.finish(timeout=0.3)
        assert time.monotonic() - begun < 60.0
    assert "1000 steps were not sent" in caplog.text


def test_a_service_that_was_never_reached_hardly_delays_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """init() prints that nothing answers there and not a URL; finish() does not wait as for a service that fails."""
    monkeypatch.setattr("gradmedic.run.DEFAULT_FINISH_TIMEOUT", 600.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        run = start(url, silent=False)
        printed = capsys.readouterr().err
        assert f"no service answers at {url} yet" in printed
        assert "gradmedic serve" in printed
        assert str(run.id) not in printed
        run.log(1.0)
        begun = time.monotonic()
        assert not run.finish()
        assert time.monotonic() - begun < 300.0
    assert "gradmedic sync" in caplog.text


def test_a_wrong_url_is_named_and_does_not_delay_the_end(proxy: FaultyProxy, caplog: pytest.LogCaptureFixture) -> None:
    """The warning has the URL and the other server's page, and finish() does not wait."""
    proxy.permanent = Fault(status=404, headers={"content-type": "text/html"}, body=b"<html>It works!</html>")
    run = start(proxy.url)
    run.log(1.0)
    begun = time.monotonic()
    assert not run.finish(timeout=600.0)
    assert time.monotonic() - begun < 60.0
    assert proxy.url in caplog.text
    assert "It works!" in caplog.text
    assert "check the base URL" in caplog.text


def test_a_refused_block_is_logged_once_and_the_rest_is_stored(
    proxy: FaultyProxy, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Only what the service refuses is lost, and a warning is logged."""
    problem = Problem(type="t", title="t", status=422, detail="d", error_code="invalid_request", request_id="r")
    refusal = Fault(
        "/steps", status=422, headers={"content-type": PROBLEM_MEDIA_TYPE}, body=msgspec.json.encode(problem)
    )
    with start(proxy.url) as run:
        run.log(1.0)
        assert run.flush()
        proxy.fail(refusal, refusal)
        run.log(2.0)
        assert run.flush()
        run.log(3.0)
        assert run.flush()
        run.log(4.0)
    assert losses(client, run) == {0: 1.0, 3: 4.0}
    assert caplog.text.count("the service refused 1 steps") == 1


def denial(status: int) -> Fault:
    """Return the answer to a key that is not, or no longer, valid."""
    problem = Problem(
        type="t", title="t", status=status, detail="The key was revoked.", error_code="denied", request_id="r"
    )
    return Fault(status=status, headers={"content-type": PROBLEM_MEDIA_TYPE}, body=msgspec.json.encode(problem))


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_revoked_costs_no_step(
    status: int, proxy: FaultyProxy, service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """One error is logged, later steps are kept too, flush() and finish() do not wait, and sync sends all of it."""
    run = start(proxy.url)
    run.log(0.0)
    assert run.flush()
    proxy.permanent = denial(status)
    for i in range(1, 200):
        run.log(float(i))
        if i in (50, 100):
            begun = time.monotonic()
            assert not run.flush(timeout=600.0)
            assert time.monotonic() - begun < 60.0
    assert not run.finish(timeout=600.0)
    loud = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(loud) == 1
    assert "keeps the steps" in loud[0]
    assert "The key was revoked." in loud[0]
    assert "199 steps were not sent" in caplog.text
    assert main(["sync", os.environ["GRADMEDIC_DIR"], "--base-url", service_url]) == 0
    assert losses(client, run) == {i: float(i) for i in range(200)}
    assert client.runs.get(run.id).status == "finished"


@pytest.mark.usefixtures("quick_retries")
def test_a_key_that_becomes_valid_is_used(proxy: FaultyProxy, client: gradmedic.Client) -> None:
    """The run goes on sending by itself, even if it was refused from the start."""
    proxy.permanent = denial(403)
    run = start(proxy.url)
    run.log(0.0)
    proxy.wait_for(lambda requests: len(requests) >= 3)
    proxy.permanent = None
    run.log(1.0)
    assert run.finish()
    assert losses(client, run) == {0: 0.0, 1: 1.0}


def test_a_run_that_was_deleted_stops_sending(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A 404 for the run is final: it is logged once, nothing is kept, and training goes on."""
    run = start(service_url)
    run.log(1.0)
    assert run.flush()
    client.runs.delete(run.id)
    run.log(2.0)
    assert not run.flush()
    run.log(3.0)
    assert not run.finish()
    assert caplog.text.count("stopped sending") == 1
    assert "gradmedic sync" not in caplog.text
    assert not Path(os.environ["GRADMEDIC_DIR"]).exists()


def test_blocks_are_split_to_the_limits_of_the_service(
    proxy: FaultyProxy, client: gradmedic.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that is too large is halved until it fits."""
    run = start(proxy.url, flush_interval=60)
    too_large = b"""{"type": "about:blank", "title": "Too large", "status": 413, "detail": "too large",
        "error_code": "body_too_large", "request_id": "r", "errors": []}"""
    refusal = Fault("/steps", status=413, headers={"content-type": "application/problem+json"}, body=too_large)
    proxy.fail(refusal, refusal)
    for i in range(40):
        run.log(float(i))
    assert run.finish()
    assert losses(client, run) == {i: float(i) for i in range(40)}
    assert len(block_requests(proxy.requests)) == 2 + 4


def test_no_request_is_made_by_the_training_thread(service_url: str) -> None:
    """Another thread makes the requests of init(), log() and finish()."""

    class ThreadNotingTransport:
        def __init__(self) -> None:
            self.threads: set[int] = set()

        def send(self, request: Request, timeout: float) -> Response:
            self.threads.add(threading.get_ident())
            raise gradmedic.TransportError("away", status=404)

        def close(self) -> None:
            pass

    transport = ThreadNotingTransport()
    run = start(service_url, transport=transport)
    run.log(math.nan)
    run.finish(timeout=60)
    assert transport.threads
    assert threading.get_ident() not in transport.threads


# --- when blocks are sent -------------------------------------------------------------------------------------------


def test_a_block_is_sent_when_it_is_full(proxy: FaultyProxy) -> None:
    """Fifty steps are sent before the flush interval has passed."""
    with start(proxy.url, flush_interval=60) as run:
        for _ in range(50):
            run.log(1.0)
        proxy.wait_for(lambda requests: len(block_requests(requests)) == 1)
        run.log(1.0)


def test_a_block_is_sent_when_its_first_step_has_waited_long_enough(proxy: FaultyProxy) -> None:
    """A single step does not wait longer than flush_interval."""
    with start(proxy.url, flush_interval=0.05) as run:
        run.log(1.0)
        proxy.wait_for(lambda requests: len(block_requests(requests)) == 1)


@pytest.mark.parametrize("jump", [{"loss": math.nan}, {"loss": 1e6}, {"loss": 1.0, "gradients": {"w": [1e6, 0.0]}}])
def test_a_spike_is_sent_at_once(proxy: FaultyProxy, jump: dict[str, Any]) -> None:
    """A step whose loss or norm jumps waits neither for a full block nor for the flush interval."""
    with start(proxy.url, flush_interval=60) as run:
        for _ in range(10):
            run.log(1.0, gradients={"w": np.ones(2)})
        run.log(**jump)
        proxy.wait_for(lambda requests: len(block_requests(requests)) == 1)
