"""A run from `init()` to `finish()`, against the real service."""

from __future__ import annotations

import builtins
import io
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.support.faulty_proxy import Fault, FaultyProxy, Seen

import gradmedic
from gradmedic.cli import main
from gradmedic.protocol.runs import RunCreate
from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE, Problem
from gradmedic.transport.http import Request, Response, Urllib3Transport


def start(url: str, **arguments: Any) -> gradmedic.Run:
    """Return a run that sends to `url`."""
    return gradmedic.init(project="test-run", base_url=url, **arguments)


def losses(client: gradmedic.Client, run: gradmedic.Run) -> dict[int, float | None]:
    """Return the stored losses by step."""
    result = client.runs.steps(run.id, "loss", max_points=2000)
    (series,) = result.series
    assert result.first_step == result.last_step
    return dict(zip(result.first_step, series.mean, strict=True))


def wait_until_recorded(run: gradmedic.Run) -> None:
    """Wait until the recorder has everything that was logged."""
    sender = run._sender
    with sender._changed:
        sender._press()
        assert sender._changed.wait_for(lambda: sender._recorded == sender._put, 60.0)


def appends(seen: list[Seen]) -> list[Seen]:
    """Return the requests that carried steps."""
    return [request for request in seen if request.method == "POST" and request.path.endswith("/steps")]


# --- what is stored -----------------------------------------------------------------------------------------------


def test_what_was_logged_is_stored_to_the_bit(service_url: str, client: gradmedic.Client) -> None:
    """Losses, learning rates, metrics, steps, status, config and statistics arrive as they were given."""
    generator = np.random.default_rng(0)
    gradients = [generator.normal(size=(3, 4)) for _ in range(70)]
    with start(service_url, name="whole", config={"lr": 0.1}, tags=["a", "b"], notes="n", group="g") as run:
        for i, gradient in enumerate(gradients):
            run.log(1.0 / (i + 1), step=2 * i, gradients={"w": gradient}, learning_rate=0.1, accuracy=i / 70)
    stored = client.runs.get(run.id)
    assert (stored.name, stored.status, stored.last_step) == ("whole", "finished", 138)
    assert (stored.config, stored.tags, stored.notes, stored.group) == ({"lr": 0.1}, ["a", "b"], "n", "g")
    assert [(layer.name, layer.shape, layer.numel) for layer in stored.layers] == [("w", [3, 4], 12)]
    assert losses(client, run) == {2 * i: 1.0 / (i + 1) for i in range(70)}
    result = client.runs.steps(run.id, ["grad_norm", "accuracy", "learning_rate"], layer="w", max_points=2000)
    by_name = {series.statistic: series for series in result.series}
    np.testing.assert_array_equal(by_name["grad_norm"].mean, [np.float32(np.linalg.norm(g)) for g in gradients])
    assert by_name["accuracy"].mean == [i / 70 for i in range(70)]
    assert set(by_name["learning_rate"].mean) == {0.1}


def test_nonfinite_numbers_are_stored_and_absent_layers_are_absent(service_url: str, client: gradmedic.Client) -> None:
    """A NaN is counted as a value; a layer that is not there has none."""
    with start(service_url) as run:
        run.log(math.nan, statistics={"a": {"grad_norm": math.inf}, "b": {"grad_norm": 1.0}})
        run.log(1.0, statistics={"b": {"grad_norm": 2.0}})
    result = client.runs.steps(run.id, ["grad_norm", "loss"], max_points=10)
    series = {(s.statistic, s.layer): s for s in result.series}
    assert (series["grad_norm", "a"].count, series["grad_norm", "a"].nonfinite) == ([1, 0], [1, 0])
    assert series["grad_norm", "b"].mean == [1.0, 2.0]
    assert series["loss", None].nonfinite == [1, 0]


def test_layers_may_appear_while_the_run_goes_on(service_url: str, client: gradmedic.Client) -> None:
    """A layer that comes later is appended; earlier steps do not have it."""
    with start(service_url) as run:
        run.log(1.0, gradients={"first": np.ones(2)})
        assert run.flush()
        run.log(0.9, gradients={"second": np.ones(3), "first": np.ones(2)})
        assert run.flush()
        run.log(0.8, gradients={"third": np.ones(3)})
    assert [layer.name for layer in client.runs.get(run.id).layers] == ["first", "second", "third"]
    result = client.runs.steps(run.id, "grad_norm", max_points=10)
    assert {s.layer: s.count for s in result.series} == {"first": [1, 1, 0], "second": [0, 1, 0], "third": [0, 0, 1]}


def test_a_run_may_log_losses_only(service_url: str, client: gradmedic.Client) -> None:
    """No layer and no statistic is needed; statistics that come later are still taken as far as they fit."""
    with start(service_url) as run:
        run.log(1.0)
        assert run.flush()
        run.log(0.9, gradients={"w": np.array([3.0, 4.0])})
    assert losses(client, run) == {0: 1.0, 1: 0.9}
    (series,) = client.runs.steps(run.id, "grad_norm", layer="w").series
    assert 5.0 in series.mean


def test_a_run_without_any_step_exists(service_url: str, client: gradmedic.Client) -> None:
    """Init and finish alone register the run; an exception in its block makes it failed."""
    with pytest.raises(ZeroDivisionError), start(service_url) as run:
        raise ZeroDivisionError
    assert client.runs.get(run.id).status == "failed"


def test_the_same_id_is_the_same_run(service_url: str, client: gradmedic.Client, caplog: Any) -> None:
    """A second process with the run's id goes on with it; steps that are there already are ignored and said to be."""
    first = start(service_url)
    first.log(1.0, gradients={"a": np.ones(1)})
    first.finish()
    second = start(service_url, id=first.id)
    second.log(9.0, gradients={"b": np.ones(1)})
    second.log(2.0, gradients={"b": np.ones(1), "a": np.ones(1)})
    second.finish()
    assert losses(client, first) == {0: 1.0, 1: 2.0}
    assert [layer.name for layer in client.runs.get(first.id).layers] == ["a", "b"]
    assert "were ignored" in caplog.text


def test_log_freq_leaves_statistics_out_but_no_step(service_url: str, client: gradmedic.Client) -> None:
    """Every loss is kept; statistics are those of the first twenty steps and of every eighth."""
    with start(service_url, log_freq=8) as run:
        for _ in range(40):
            run.log(1.0, gradients={"w": np.ones(1)})
    (series,) = client.runs.steps(run.id, "grad_norm", layer="w", max_points=100).series
    assert len(losses(client, run)) == 40
    assert [i for i, count in enumerate(series.count) if count] == [*range(20), 24, 32]


# --- bad input to log() -------------------------------------------------------------------------------------------


def test_bad_input_is_left_out_said_once_and_never_raised(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever log() is given, the training goes on, and what was good of the step is stored."""
    bad: list[dict[str, Any]] = [
        {"loss": "high"},
        {"loss": np.ones(3)},
        {"loss": 0.5, "accuracy": object()},
        {"loss": 0.5, "gradients": {"w": "steep"}},
        {"loss": 0.5, "gradients": 3},
        {"loss": 0.5, "statistics": {"w": {"steepness": 1.0}}},
        {"loss": 0.5, "statistics": {"w": {"grad_norm": "x"}}},
        {"loss": 0.5, "statistics": {}, "gradients": {}},
        {"loss": 0.5, "step": "three"},
        {"loss": 0.5, "step": -1},
    ]
    with caplog.at_level(logging.WARNING, "gradmedic"), start(service_url) as run:
        for _ in range(3):
            for arguments in bad:
                run.log(**arguments)
        run.log(7.0, step=1000)
        run.log(8.0, step=1000)
        run.log(9.0, step=1001)
        run.log(9.5, step=2**60)
    stored = losses(client, run)
    assert stored[1000] == 7.0
    assert stored[1001] == 9.0
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(set(messages))
    for word in (
        "loss is left out",
        "accuracy is left out",
        "steepness",
        "step must be an integer",
        "does not follow",
        "steps end",
    ):
        assert any(word in message for message in messages), word


def test_a_name_that_the_service_refuses_costs_that_number_and_not_the_run(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Metrics and layers with impossible names are left out and named; loss, other metrics and layers are stored."""
    names = ["grad_norm", "time", "", "a" * 600, "nul\x00", "lone\ud800"]
    with start(service_url) as run:
        for name in names:
            layers = {name: np.ones(2), "w": np.ones(2)}
            run.log(1.0, metrics={name: 3.0, "accuracy": 0.5}, gradients=layers)
            assert f"the metric {name[:50]!r} is left out" in caplog.text
    assert losses(client, run) == dict.fromkeys(range(len(names)), 1.0)
    assert {layer.name for layer in client.runs.get(run.id).layers} == {"w", "grad_norm", "time"}
    (accuracy,) = client.runs.steps(run.id, "accuracy").series
    assert accuracy.mean == [0.5] * len(names)


def test_more_metrics_than_the_service_takes_are_left_out(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The first ones are stored, and the number of others is said."""
    most = client.limits().max_metrics
    with start(service_url) as run:
        run.log(1.0, metrics={f"m{i}": float(i) for i in range(most + 5)})
    assert client.runs.steps(run.id, f"m{most - 1}").series[0].mean == [most - 1.0]
    with pytest.raises(gradmedic.InvalidRequestError):
        client.runs.steps(run.id, f"m{most}")
    assert "5 metrics are left out" in caplog.text


def test_layers_and_metrics_may_be_numbered(service_url: str, client: gradmedic.Client) -> None:
    """A key that is no string stands for its text, and for the same layer at every step."""
    with start(service_url) as run:
        for _ in range(3):
            run.log(1.0, gradients={0: np.ones(2), 1: np.ones(2)}, metrics={5: 0.5})  # type: ignore[dict-item]
    assert [layer.name for layer in client.runs.get(run.id).layers] == ["0", "1"]
    assert client.runs.steps(run.id, "5").series[0].mean == [0.5] * 3


@pytest.mark.parametrize("name", ["gradients", "statistics", "metrics"])
def test_what_is_no_mapping_is_named_and_the_loss_is_kept(
    name: str, service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A list in place of a mapping costs that argument alone."""
    arguments: dict[str, Any] = {name: [np.ones(2)]}
    with start(service_url) as run:
        run.log(1.0, **arguments)
        run.log(0.5, **arguments)
    assert losses(client, run) == {0: 1.0, 1: 0.5}
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"gradmedic: {name} ")
    assert "map" in message


def test_statistics_of_a_layer_are_a_mapping(service_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A number in place of a layer's statistics is explained."""
    with start(service_url) as run:
        run.log(1.0, statistics={"w": 3.0})  # type: ignore[dict-item]
    assert 'statistics must map like {"layer": {"grad_norm": 0.3}}' in caplog.text


def test_finish_takes_a_status_by_name_only(service_url: str, client: gradmedic.Client) -> None:
    """`finish("failed")` could only be meant as a status, and would be a timeout: it is refused and loses nothing."""
    run: Any = start(service_url)
    run.log(1.0)
    with pytest.raises(TypeError):
        run.finish("failed")
    assert run.finish(status="failed")
    assert (client.runs.get(run.id).status, losses(client, run)) == ("failed", {0: 1.0})


def test_log_after_finish_is_said_once_and_does_nothing(service_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A late log() is no reason to crash; finish() may be called again; watch() is an error of the program."""
    run = start(service_url)
    assert run.finish()
    assert run.finish()
    run.log(1.0)
    run.log(1.0)
    assert caplog.text.count("log() after finish()") == 1
    with pytest.raises(gradmedic.UsageError):
        run.watch(None, None)  # type: ignore[arg-type]
    with pytest.raises(gradmedic.ConfigurationError, match="status"):
        run.finish(status="done")


def test_a_config_that_is_too_large_costs_the_config_and_not_the_run(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """What the service would refuse is cut to plain values before it is sent."""
    with start(service_url, config={"lr": 0.1, "table": [1.0] * 500_000}) as run:
        run.log(1.0)
    assert client.runs.get(run.id).config == {"lr": 0.1}
    assert "config is cut" in caplog.text


# --- a service that fails -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_retries")
def test_every_step_is_stored_once_whatever_the_network_does(proxy: FaultyProxy, client: gradmedic.Client) -> None:
    """Refused connections, 5xx, 429, lost answers and lost registrations: the stored run is the logged one."""
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


def test_a_layer_that_appears_while_a_block_is_made_is_in_the_next_block(
    service_url: str, client: gradmedic.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training thread may log a new layer at any moment of the sender's work."""
    run = start(service_url)
    describe = run.describe

    def describe_and_be_overtaken() -> RunCreate:
        description = describe()
        monkeypatch.setattr(run, "describe", describe)
        run.log(2.0, gradients={"late": np.ones(2)})
        return description

    monkeypatch.setattr(run, "describe", describe_and_be_overtaken)
    run.log(1.0, gradients={"early": np.ones(2)})
    assert run.flush()
    assert run.finish()
    assert losses(client, run) == {0: 1.0, 1: 2.0}
    assert [layer.name for layer in client.runs.get(run.id).layers] == ["early", "late"]


@pytest.mark.usefixtures("quick_retries")
def test_a_full_queue_drops_healthy_steps_and_says_so(
    proxy: FaultyProxy, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """When the service is away for too long, memory and disk stay bounded; what is lost is counted where it is seen."""
    run = start(proxy.url, max_queue_bytes=10_000, max_disk_bytes=40_000)
    proxy.permanent = Fault(status=503)
    for i in range(1000):
        run.log(math.nan if i == 3 else float(i))
    proxy.wait_for(lambda seen: len(seen) > 1 and run._sender._recorded == 1000)  # everything met the full disk
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
    """Gives the training time to log more steps than there is room for, while a block is under way."""

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
    """Steps are given up while a block is under way, and the service accepts it: what is missing is what is counted."""
    if not has_disk:
        monkeypatch.setattr(gradmedic.Run, "_open_journal", lambda _self: None)
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
    """One that nobody heard of before `gradmedic sync`, and one that went on under the run's id."""
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
def test_an_outage_is_said_once_and_so_is_its_end(proxy: FaultyProxy, caplog: pytest.LogCaptureFixture) -> None:
    """One warning when the service goes, one when it is back, however long it was away."""
    run = start(proxy.url)
    proxy.permanent = Fault(status=503)
    run.log(1.0)
    assert not run.flush(timeout=0.3)
    proxy.wait_for(lambda seen: len(seen) > 3)
    proxy.permanent = None
    assert run.finish()
    assert caplog.text.count("tries again") == 1
    assert caplog.text.count("reaches") == 1


def test_training_with_a_service_that_is_down_goes_on_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    """log() neither waits nor raises, and finish() gives up within its timeout."""
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


def test_a_wrong_url_is_said_with_the_url_and_does_not_delay_the_end(
    proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Another server's page is named in the warning; finish() does not wait for what will not come."""
    proxy.permanent = Fault(status=404, headers={"content-type": "text/html"}, body=b"<html>It works!</html>")
    run = start(proxy.url)
    run.log(1.0)
    begun = time.monotonic()
    assert not run.finish(timeout=600.0)
    assert time.monotonic() - begun < 60.0
    assert proxy.url in caplog.text
    assert "It works!" in caplog.text
    assert "check the base URL" in caplog.text


def test_a_refused_block_is_said_once_and_the_rest_is_stored(
    proxy: FaultyProxy, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """What the service refuses is lost, loudly, and nothing else."""
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
    """Return what a service answers to a key that is not, or no longer, good."""
    problem = Problem(
        type="t", title="t", status=status, detail="The key was revoked.", error_code="denied", request_id="r"
    )
    return Fault(status=status, headers={"content-type": PROBLEM_MEDIA_TYPE}, body=msgspec.json.encode(problem))


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_revoked_costs_no_step(
    status: int, proxy: FaultyProxy, service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said loud, once; what is logged afterwards is kept too, nobody waits, and sync sends all of it."""
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
def test_a_key_that_is_good_again_is_noticed(proxy: FaultyProxy, client: gradmedic.Client) -> None:
    """The run goes on sending by itself, also if it was refused from the start."""
    proxy.permanent = denial(403)
    run = start(proxy.url)
    run.log(0.0)
    proxy.wait_for(lambda seen: len(seen) >= 3)
    proxy.permanent = None
    run.log(1.0)
    assert run.finish()
    assert losses(client, run) == {0: 0.0, 1: 1.0}


def test_a_run_that_was_deleted_stops_sending(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A 404 for the run is final: said once, nothing is kept, training goes on."""
    run = start(service_url)
    run.log(1.0)
    assert run.flush()
    client.runs.delete(run.id)
    run.log(2.0)
    assert not run.flush()
    run.log(3.0)
    assert not run.finish()
    assert caplog.text.count("stopped sending") == 1
    assert "gradmedic sync" not in caplog.text  # nobody wants the rest
    assert not Path(os.environ["GRADMEDIC_DIR"]).exists()


def test_blocks_are_split_to_the_limits_of_the_service(
    proxy: FaultyProxy, client: gradmedic.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that is too large is halved until it fits; published limits are kept from the start."""
    run = start(proxy.url, flush_interval=60)
    too_large = b"""{"type": "about:blank", "title": "Too large", "status": 413, "detail": "too large",
        "error_code": "body_too_large", "request_id": "r", "errors": []}"""
    refusal = Fault("/steps", status=413, headers={"content-type": "application/problem+json"}, body=too_large)
    proxy.fail(refusal, refusal)
    for i in range(40):
        run.log(float(i))
    assert run.finish()
    assert losses(client, run) == {i: float(i) for i in range(40)}
    assert len(appends(proxy.seen)) == 2 + 4


def test_no_request_is_made_by_the_training_thread(service_url: str) -> None:
    """init, watch and log leave the network to another thread."""

    class Noting:
        def __init__(self) -> None:
            self.threads: set[int] = set()

        def send(self, request: Request, timeout: float) -> Response:
            self.threads.add(threading.get_ident())
            raise gradmedic.TransportError("away", status=404)

        def close(self) -> None:
            pass

    transport = Noting()
    run = start(service_url, transport=transport)
    run.log(math.nan)
    run.finish(timeout=60)
    assert transport.threads
    assert threading.get_ident() not in transport.threads


# --- when blocks leave --------------------------------------------------------------------------------------------


def test_a_block_leaves_when_it_is_full(proxy: FaultyProxy) -> None:
    """Fifty steps do not wait for the clock; forty-nine do."""
    with start(proxy.url, flush_interval=60) as run:
        for _ in range(50):
            run.log(1.0)
        proxy.wait_for(lambda seen: len(appends(seen)) == 1)
        run.log(1.0)


def test_a_block_leaves_when_its_first_step_has_waited_long_enough(proxy: FaultyProxy) -> None:
    """A single step does not wait longer than flush_interval."""
    with start(proxy.url, flush_interval=0.05) as run:
        run.log(1.0)
        proxy.wait_for(lambda seen: len(appends(seen)) == 1)


@pytest.mark.parametrize("jump", [{"loss": math.nan}, {"loss": 1e6}, {"loss": 1.0, "gradients": {"w": [1e6, 0.0]}}])
def test_a_jump_leaves_at_once(proxy: FaultyProxy, jump: dict[str, Any]) -> None:
    """A step whose loss or norm jumps is sent without waiting for the block or the clock."""
    with start(proxy.url, flush_interval=60) as run:
        for _ in range(10):
            run.log(1.0, gradients={"w": np.ones(2)})
        run.log(**jump)
        proxy.wait_for(lambda seen: len(appends(seen)) == 1)


# --- verdicts -----------------------------------------------------------------------------------------------------


def explode(run: gradmedic.Run, steps: int = 200) -> int:
    """Log a run whose gradients grow by half at each step until they overflow; return how many steps were logged."""
    for i in range(steps):
        norm = 1.5 ** max(0, i - 60)
        run.log(min(norm, 1e30), gradients={"w": np.array([norm if norm < 1e30 else math.nan])})
        if i % 10 == 9:
            run.flush()
    return steps


def test_callbacks_hear_of_a_verdict_on_the_training_thread(service_url: str, caplog: Any) -> None:
    """on_verdict is called with what changed, where the optimizer may be touched; its own errors are logged."""
    run = start(service_url)
    events: list[tuple[gradmedic.VerdictEvent, int]] = []

    @run.on_verdict
    def note(event: gradmedic.VerdictEvent) -> None:
        events.append((event, threading.get_ident()))
        raise ValueError("in the callback")

    explode(run)
    run.finish()
    assert events[-1][0].verdict == run.verdict == "exploding"
    assert events[-1][0].run_id == run.id
    assert {thread for _, thread in events} == {threading.get_ident()}
    assert "in the callback" in caplog.text
    assert f"xploding since step {events[-1][0].since_step}" in events[-1][0].summary
    assert events[-1][0].summary in caplog.text
    assert run.url in caplog.text


def test_on_unhealthy_stop_raises_at_the_next_log_and_the_run_fails(service_url: str, client: Any) -> None:
    """The exception says verdict, step and page; as it leaves the run's block, the run is failed."""
    with pytest.raises(gradmedic.UnhealthyRunError) as caught, start(service_url, on_unhealthy="stop") as run:
        explode(run)
    assert caught.value.verdict == "exploding"
    assert caught.value.since_step is not None
    assert run.url in str(caught.value)
    assert client.runs.get(run.id).status == "failed"
    assert run.diagnosis().verdict == "exploding"


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_nothing_and_the_parent_goes_on(service_url: str, client: gradmedic.Client) -> None:
    """The child's calls return at once and send nothing, also while the parent's thread is sending."""
    run = start(service_url)
    for i in range(60):
        run.log(float(i))
    child = os.fork()
    if child == 0:
        run.log(-1.0)
        is_quiet = run.flush() and run.finish()
        os._exit(0 if is_quiet else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run.log(60.0)
    assert run.finish()
    assert losses(client, run) == {i: float(i) for i in range(61)}
    assert client.runs.get(run.id).status == "finished"


def test_after_the_last_run_nothing_of_the_process_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exits, streams and signals are what they were, a function that somebody put on a stream included."""
    streams: list[Any] = [io.TextIOWrapper(io.BytesIO()), io.StringIO(), None]
    for stream in streams:
        monkeypatch.setattr(sys, "stderr", stream)
        for has_flush_of_its_own in (False, True):
            if has_flush_of_its_own and stream is not None:
                monkeypatch.setattr(stream, "flush", lambda: None)

            def state(stream: Any = stream) -> list[Any]:
                flush = None if stream is None else vars(stream).get("flush")
                return [sys.exit, builtins.exit, builtins.quit, signal.getsignal(signal.SIGTERM), flush]

            before = state()
            runs = [gradmedic.init(mode="offline", dir=tmp_path, silent=True) for _ in range(2)]
            assert sys.exit is not before[0]
            for run in runs:
                assert state() != before
                run.finish()
            assert state() == before


ENDINGS = [
    ("", "finished", 0),
    ("1 / 0", "failed", 1),
    ("raise KeyboardInterrupt", "failed", None),
    ("raise SystemExit", "finished", 0),
    ("raise SystemExit(0)", "finished", 0),
    ("raise SystemExit(3)", "failed", 3),
    ("exit(0)", "finished", 0),
    ("exit(3)", "failed", 3),
    ("import sys\nsys.exit('no data')", "failed", 1),
    ("def main(): raise SystemExit('no data')\nmain()", "failed", 1),
    ("try: raise SystemExit(3)\nexcept SystemExit as error: kept = error", "finished", 0),
    ("try: raise SystemExit(3)\nexcept SystemExit as error: kept = error\nraise SystemExit(0)", "finished", 0),
    ("import sys\ntry: sys.exit(3)\nexcept SystemExit: run.log(5.0)", "finished", 0),
    # An exception that something looked at on its way.
    ("try: raise SystemExit(3)\nfinally: print(end='')", "failed", 3),
    ("with open(__file__): raise SystemExit(3)", "failed", 3),
    ("try: raise SystemExit(0)\nexcept SystemExit as error: raise SystemExit(3)", "failed", 3),
    ("def main():\n try: raise SystemExit(3)\n except SystemExit as error: kept = error; raise\nmain()", "failed", 3),
    # An object that does something when it is asked for its class, as proxies do.
    ("class Lazy: __class__ = property(print)\nlazy = Lazy()\nraise SystemExit(3)", "failed", 3),
]


@pytest.mark.parametrize("how", ["script", "module"])
@pytest.mark.parametrize(("ending", "status", "code"), ENDINGS)
def test_a_script_that_forgets_to_finish_is_finished(
    service_url: str, client: gradmedic.Client, how: str, ending: str, status: str, code: int | None, tmp_path: Path
) -> None:
    """At exit the rest is sent; an exception or an exit code that ended the script makes the run failed.

    So it is under `python train.py` and `python -m train`, whoever else has imported `runpy`.
    """
    (tmp_path / "train.py").write_text(
        "import runpy, multiprocessing.spawn, gradmedic\n"
        "run = gradmedic.init(project='exit')\n"
        "for i in range(5): run.log(float(i))\n"
        "print(run.id, flush=True)\n" + ending
    )
    result = subprocess.run(
        [sys.executable, *(["train.py"] if how == "script" else ["-m", "train"])],
        cwd=tmp_path,
        env=os.environ | {"GRADMEDIC_BASE_URL": service_url, "GRADMEDIC_SILENT": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0 if code is None else result.returncode == code, result.stderr
    run_id = result.stdout.strip()
    assert f"{service_url}/runs/{run_id}" in result.stderr
    stored = client.runs.get(run_id)
    assert (stored.status, stored.last_step) == (status, 5 if "run.log(5.0)" in ending else 4)


def test_a_run_that_is_over_leaves_runpy_as_it_was(tmp_path: Path) -> None:
    """Under `python -m`, what is borrowed of the interpreter is given back, and works meanwhile."""
    (tmp_path / "train.py").write_text(
        "import runpy, sys, gradmedic\n"
        "before = runpy\n"
        "run = gradmedic.init(mode='offline')\n"
        "assert sys.modules['runpy'] is runpy is before\n"
        "assert runpy.run_module('other')['answer'] == 42\n"
        "borrowed = id(runpy)\n"
        "run.finish()\n"
        "assert sys.modules['runpy'] is runpy is before\n"
        "assert id(runpy) != borrowed\n"
    )
    (tmp_path / "other.py").write_text("answer = 42\n")
    subprocess.run([sys.executable, "-m", "train"], cwd=tmp_path, check=True)


def test_a_termination_finishes_every_run(service_url: str, client: gradmedic.Client) -> None:
    """Of several runs of a process none is left `running`."""
    script = (
        "import gradmedic, os, signal, threading\n"
        "runs = [gradmedic.init(project='exit') for _ in range(3)]\n"
        "for run in runs:\n"
        "    run.log(1.0)\n"
        "    print(run.id, flush=True)\n"
        "    assert run.flush()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Event().wait(60)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"GRADMEDIC_BASE_URL": service_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == -signal.SIGTERM, result.stderr
    assert [client.runs.get(run_id).status for run_id in result.stdout.split()] == ["failed"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "module"])
def test_under_torchrun_an_exit_code_makes_the_run_failed(
    how: str, service_url: str, client: gradmedic.Client, tmp_path: Path
) -> None:
    """A launcher starts the script as a user would, with a process for each rank."""
    (tmp_path / "train.py").write_text(
        "import gradmedic, pathlib\n"
        "run = gradmedic.init(project='exit')\n"
        "run.log(1.0)\n"
        "if not run.is_follower: pathlib.Path('run').write_text(str(run.id))\n"
        "raise SystemExit(3)\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    result = subprocess.run(
        [*launcher, *(["train.py"] if how == "script" else ["-m", "train"])],
        cwd=tmp_path,
        env=os.environ | {"GRADMEDIC_BASE_URL": service_url, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "exitcode  : 3" in result.stderr, result.stderr
    assert client.runs.get((tmp_path / "run").read_text()).status == "failed"
