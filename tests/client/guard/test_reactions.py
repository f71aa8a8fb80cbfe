"""What a run does about verdicts, spikes and requests to stop."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest
from tests.client.runs import explode, start

import gradmedic
from gradmedic.configuration import resolve_configuration, resolve_connection
from gradmedic.guard.reactions import Reactions
from gradmedic.guard.session import GuardSession
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.steps import AppendResult
from gradmedic.recording.events import SpikeDetected, StopRequested, VerdictEvent
from gradmedic.recording.sampler import Sampler
from gradmedic.transport.http import Request, Response, Service, Transport, Urllib3Transport
from gradmedic.upload.answers import AnswerReader


class StopAfter:
    """Sends requests, and sets `stop` in the answers from block number `blocks` on."""

    def __init__(self, blocks: int) -> None:
        self._inner: Transport = Urllib3Transport()
        self._left = blocks

    def send(self, request: Request, timeout: float) -> Response:
        """Send a request."""
        answer = self._inner.send(request, timeout)
        if request.url.endswith("/steps") and answer.status == 200:
            self._left -= 1
            if self._left <= 0:
                body = msgspec.json.decode(answer.body) | {"stop": True}
                return Response(answer.status, answer.headers, msgspec.json.encode(body))
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


def test_a_run_stops_at_the_next_log_if_the_service_asks_for_it(service_url: str, client: gradmedic.Client) -> None:
    """log() raises RunStoppedError; the run whose block it leaves is finished, not failed."""

    def train() -> None:
        with run:
            for i in range(1000):
                run.log(float(i))
                run.flush()

    run = start(service_url, transport=StopAfter(2))
    with pytest.raises(gradmedic.RunStoppedError, match="budget"):
        train()
    stored = client.runs.get(run.id)
    assert stored.status == "finished"
    assert stored.last_step is not None
    assert stored.last_step < 10


def answer(verdict: str, *, stop: bool = False) -> AppendResult:
    """Return an answer to a block."""
    return AppendResult(
        accepted=1, ignored=0, last_step=1, generation=0, revision=1, verdict=verdict, since_step=0, alerts=[],
        stop=stop,
    )  # fmt: skip


class CountingSampler(Sampler):
    """Counts the reasons to sample every step."""

    def __init__(self) -> None:
        super().__init__(None)
        self.count = 0

    def sample_every_step(self) -> None:
        """Count a reason."""
        self.count += 1


def make_reactions(sampler: Sampler) -> Reactions:
    """Return the reactions of a run without instrumentations."""
    guards = GuardSession(resolve_configuration(), "http://run", lambda: 0, lambda *_: None)
    return Reactions("http://run", sampler, guards, stops_if_unhealthy=False, is_trial=False)


def test_an_unhealthy_verdict_and_a_spike_sample_every_step_and_a_recovery_does_not(service_url: str) -> None:
    """Verdicts become events when they change; unhealthy ones make the next steps sampled ones, and so do spikes."""
    sampler = CountingSampler()
    reactions = make_reactions(sampler)
    service = Service(resolve_connection(service_url))
    answers = AnswerReader(service, new_id(), "http://run", reactions.events, may_clip=False)
    counts = []
    for verdict in ("healthy", "exploding", "exploding", "healthy", "vanishing"):
        answers.read(answer(verdict))
        assert reactions.verdict == verdict
        counts.append(sampler.count)
    assert counts == [0, 1, 1, 1, 2]
    reactions.events.append(SpikeDetected())
    reactions.receive()
    assert sampler.count == 3


def test_callbacks_are_called_in_act_with_each_new_verdict(service_url: str) -> None:
    """receive() reads the verdicts, act() calls the callbacks in the order of the verdicts."""
    reactions = make_reactions(CountingSampler())
    called: list[str] = []
    reactions.add_callback(lambda event: called.append(event.verdict))
    answers = AnswerReader(
        Service(resolve_connection(service_url)), new_id(), "http://run", reactions.events, may_clip=False
    )
    for verdict in ("healthy", "healthy", "vanishing"):
        answers.read(answer(verdict))
    reactions.receive()
    assert called == []
    reactions.act()
    assert called == ["healthy", "vanishing"]


def test_a_request_to_stop_is_raised_once() -> None:
    """A later healthy verdict does not cancel a request to stop."""
    reactions = make_reactions(CountingSampler())
    reactions.events.append(StopRequested())
    reactions.events.append(VerdictEvent(run_id=new_id(), verdict="healthy", since_step=0, summary=""))
    reactions.act()
    with pytest.raises(gradmedic.RunStoppedError):
        reactions.raise_error()
    reactions.raise_error()
    assert reactions.is_stop_requested


def test_callbacks_are_called_on_the_training_thread(service_url: str, caplog: Any) -> None:
    """A callback of on_verdict() gets the new verdict on the training thread, and its exceptions are logged."""
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
    """The exception has verdict, step and page, and the run whose block it leaves is failed."""
    with pytest.raises(gradmedic.UnhealthyRunError) as caught, start(service_url, on_unhealthy="stop") as run:
        explode(run)
    assert caught.value.verdict == "exploding"
    assert caught.value.since_step is not None
    assert run.url in str(caught.value)
    assert client.runs.get(run.id).status == "failed"
    assert run.diagnosis().verdict == "exploding"
