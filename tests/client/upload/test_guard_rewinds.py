"""The rewinds of guards on their way to the service."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.client.runs import log_losses, losses, start

import gradmedic
from gradmedic.cli import main
from gradmedic.configuration import resolve_configuration
from gradmedic.guard.reactions import Reactions
from gradmedic.guard.session import GuardSession
from gradmedic.protocol.guards import GuardAction
from gradmedic.recording.events import RewindDelivered, VerdictEvent
from gradmedic.recording.sampler import Sampler
from gradmedic.recording.step import Rewind, pack_rewind, unpack_rewind
from gradmedic.transport.http import Request, Response, Urllib3Transport

ACTION = GuardAction(
    step=40,
    action="rewind",
    reason="nonfinite_weights",
    numbers={"loss": math.inf, "rewinds": 1.0},
    explanation="The weights of step 40 were not finite, so the guard went back to step 19.",
)
PLAIN_ACTION = dataclasses.asdict(ACTION) | {"numbers": {"loss": "Infinity", "rewinds": 1.0}}


class RecordingTransport:
    """Sends requests, and keeps the bodies of rewinds.

    Args:
        limits: fields that the answer of `GET /limits` has in place of its own.
        refuses_actions: whether each rewind with a guard action is refused.
    """

    def __init__(self, *, limits: dict[str, Any] | None = None, refuses_actions: bool = False) -> None:
        self._inner = Urllib3Transport()
        self._limits = limits or {}
        self._refuses_actions = refuses_actions
        self.rewinds: list[dict[str, Any]] = []

    def send(self, request: Request, timeout: float) -> Response:
        """Send a request."""
        if request.url.endswith("/rewind"):
            assert request.body is not None
            self.rewinds.append(msgspec.json.decode(request.body))
            if self._refuses_actions and "guard_action" in self.rewinds[-1]:
                problem = {
                    "type": "about:blank",
                    "title": "no",
                    "status": 422,
                    "detail": "no",
                    "error_code": "invalid",
                    "request_id": "1",
                    "errors": [{"path": "guard_action.reason", "message": "is unknown"}],
                }
                return Response(422, {"content-type": "application/problem+json"}, msgspec.json.encode(problem))
        answer = self._inner.send(request, timeout)
        if request.url.endswith("/limits"):
            body = msgspec.json.decode(answer.body) | self._limits
            return Response(answer.status, answer.headers, msgspec.json.encode(body))
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


def go_back(run: gradmedic.Run) -> None:
    """Log 41 steps, go back to step 19 as a guard does, log one step, and rewind to step 4 as a script does."""
    log_losses(run, 0, 41)
    run._go_back(19, ACTION)
    run.log(2.0)
    run.rewind(4)


def test_the_guard_action_of_a_rewind_is_sent_with_it(service_url: str, client: gradmedic.Client) -> None:
    """A rewind of a guard carries its action, and a rewind of the script carries none."""
    transport = RecordingTransport()
    with start(service_url, transport=transport) as run:
        go_back(run)
    assert transport.rewinds == [
        {"step": 19, "generation": 0, "guard_action": PLAIN_ACTION},
        {"step": 4, "generation": 1},
    ]
    assert losses(client, run) == {i: float(i) for i in range(5)}


def test_a_service_that_takes_no_guard_actions_gets_the_rewind_alone(
    service_url: str, client: gradmedic.Client
) -> None:
    """An older service, which refuses the field, rewinds the run all the same."""
    transport = RecordingTransport(limits={"max_guard_actions": 0})
    with start(service_url, transport=transport) as run:
        go_back(run)
    assert transport.rewinds == [{"step": 19, "generation": 0}, {"step": 4, "generation": 1}]
    assert losses(client, run) == {i: float(i) for i in range(5)}


def test_a_rewind_survives_that_its_guard_action_is_refused(service_url: str, client: gradmedic.Client) -> None:
    """The rewind is sent again without the action that the service refused."""
    transport = RecordingTransport(refuses_actions=True)
    with start(service_url, transport=transport) as run:
        go_back(run)
    assert transport.rewinds[:2] == [
        {"step": 19, "generation": 0, "guard_action": PLAIN_ACTION},
        {"step": 19, "generation": 0},
    ]
    assert losses(client, run) == {i: float(i) for i in range(5)}


def test_an_offline_rewind_of_a_guard_keeps_its_action(
    service_url: str, client: gradmedic.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync reads the action from the journal and sends it."""
    with gradmedic.init("offline", mode="offline") as run:
        go_back(run)
    transport = RecordingTransport()
    monkeypatch.setattr("gradmedic.transport.http.Urllib3Transport", lambda: transport)
    assert main(["sync", str(tmp_path / "unsent"), "--base-url", service_url]) == 0
    assert transport.rewinds[0] == {"step": 19, "generation": 0, "guard_action": PLAIN_ACTION}
    assert losses(client, run) == {i: float(i) for i in range(5)}


def test_a_rewind_is_read_from_the_journal_as_it_was_written() -> None:
    """With an action and without one; a rewind without one has the bytes of earlier versions, which is the step."""
    assert unpack_rewind(pack_rewind(Rewind(19, ACTION))) == Rewind(19, ACTION)
    assert unpack_rewind(pack_rewind(Rewind(-1))) == Rewind(-1)
    assert pack_rewind(Rewind(7)) == msgspec.msgpack.encode(7)
    with pytest.raises(ValueError, match="Expected"):
        unpack_rewind(msgspec.msgpack.encode("seven"))


def test_a_verdict_on_steps_that_are_gone_has_no_effect() -> None:
    """A verdict that was under way when the run was rewound neither counts nor reaches a callback."""
    guards = GuardSession(resolve_configuration(), "", lambda: 0, lambda *_: None)
    reactions = Reactions("", Sampler(None), guards, stops_if_unhealthy=True, is_trial=False)
    seen: list[str] = []
    reactions.add_callback(lambda event: seen.append(event.verdict))
    run_id = gradmedic.init(mode="disabled").id

    def arrive(verdict: str) -> None:
        reactions.events.append(VerdictEvent(run_id=run_id, verdict=verdict, since_step=3, summary="It explodes."))

    arrive("exploding")
    reactions.receive()
    reactions.begin_rewind()
    arrive("exploding")
    reactions.act()
    reactions.raise_error()
    assert (reactions.verdict, seen) == ("undetermined", [])
    reactions.events.append(RewindDelivered("healthy"))
    assert reactions.verdict == "healthy"
    arrive("vanishing")
    reactions.act()
    assert (reactions.verdict, seen) == ("vanishing", ["vanishing"])


def test_a_rewind_finds_room_where_a_step_does_not(service_url: str, client: gradmedic.Client) -> None:
    """A full queue drops steps and keeps the rewind: without it the service would ignore every later step."""
    with start(service_url) as run:
        log_losses(run, 0, 10)
        assert run.flush()
        run._recorder._max_drafts = -1
        run.log(1e9)
        run.rewind(4)
        run._recorder._max_drafts = 100
        run.log(50.0)
    assert losses(client, run) == {i: float(i) for i in range(5)} | {5: 50.0}
