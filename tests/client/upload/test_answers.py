"""Events that the service's answers to blocks cause."""

from __future__ import annotations

from collections import deque
from uuid import UUID

import pytest

from gradmedic import TransportError
from gradmedic.configuration import Connection
from gradmedic.protocol.diagnosis import Advice, Diagnosis
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.steps import AppendResult
from gradmedic.recording.events import ClippingAdvised, Event, StopRequested, VerdictEvent
from gradmedic.transport.http import Request, Response, Service
from gradmedic.upload.answers import AnswerReader

RUN_ID = UUID("01a20088-6da0-7e80-b639-b6f5d5d30828")


class DiagnosisTransport:
    """Answers each request with a diagnosis that advises the given remedies; without remedies, it fails."""

    def __init__(self, *remedies: Remedy) -> None:
        self._remedies = remedies
        self.paths: list[str] = []

    def send(self, request: Request, timeout: float) -> Response:
        """Return the diagnosis."""
        self.paths.append(request.url.partition("/api/v1")[2])
        if not self._remedies:
            raise TransportError("away")
        advice = [
            Advice(remedy=remedy, rank=rank, reason="", cost="", snippet="", sources=[])
            for rank, remedy in enumerate(self._remedies, 1)
        ]
        diagnosis = Diagnosis(
            run_id=RUN_ID, step=3, verdict="exploding", score=1.0, since_step=2, summary="s", findings=[], causes=[],
            advice=advice,
        )  # fmt: skip
        return Response(200, {"content-type": "application/json"}, to_json(diagnosis))

    def close(self) -> None:
        """Do nothing: no connection is open."""


def read_answers(transport: DiagnosisTransport, *answers: AppendResult, may_clip: bool = True) -> list[Event]:
    """Return the events of some answers."""
    events: deque[Event] = deque()
    service = Service(Connection(base_url="http://gradmedic.test", api_key=None, timeout=1.0), transport)
    reader = AnswerReader(service, RUN_ID, "http://gradmedic.test/runs/1", events, may_clip=may_clip)
    for answer in answers:
        reader.read(answer)
    return list(events)


def answer(verdict: str, *, since_step: int | None = None, stop: bool = False) -> AppendResult:
    """Return an answer to a block."""
    return AppendResult(
        accepted=1, ignored=0, last_step=1, generation=0, revision=1, verdict=verdict, since_step=since_step,
        alerts=[], stop=stop,
    )  # fmt: skip


def verdict_event(verdict: str, since_step: int | None, summary: str) -> VerdictEvent:
    """Return the event of a verdict."""
    return VerdictEvent(run_id=RUN_ID, verdict=verdict, since_step=since_step, summary=summary)


CLIP = Remedy(id="clip_grad_norm", parameters={"max_norm": 0.5})


def test_a_verdict_is_an_event_when_it_changes() -> None:
    """The first verdict `undetermined` and repeated verdicts are no events."""
    answers = [answer("undetermined"), answer("healthy", since_step=0), answer("healthy", since_step=0)]
    assert read_answers(DiagnosisTransport(), *answers) == [
        verdict_event("healthy", 0, "The verdict is healthy since step 0.")
    ]


def test_a_request_to_stop_is_an_event() -> None:
    """The event of a request to stop comes before the verdict of the same answer."""
    assert read_answers(DiagnosisTransport(), answer("healthy", stop=True)) == [
        StopRequested(),
        verdict_event("healthy", None, "The verdict is healthy."),
    ]


def test_advised_clipping_comes_before_the_verdict() -> None:
    """The norm is that of the first advice to clip, by rank."""
    transport = DiagnosisTransport(Remedy(id="warmup", parameters={"steps": 10}), CLIP)
    assert read_answers(transport, answer("exploding", since_step=2)) == [
        ClippingAdvised(0.5),
        verdict_event("exploding", 2, "The verdict is exploding since step 2."),
    ]
    assert transport.paths == [f"/runs/{RUN_ID}/diagnosis"]


@pytest.mark.parametrize(
    ("transport", "message"),
    [
        (DiagnosisTransport(Remedy(id="warmup", parameters={"steps": 10})), "the diagnosis does not advise it"),
        (DiagnosisTransport(), "the advice cannot be read"),
    ],
)
def test_gradients_are_not_clipped_without_advice(
    transport: DiagnosisTransport, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning has the reason, and the verdict is an event."""
    assert [type(event) for event in read_answers(transport, answer("exploding"))] == [VerdictEvent]
    assert message in caplog.text


def test_the_diagnosis_is_not_read_unless_the_run_may_clip() -> None:
    """Without `may_clip` no request is made."""
    transport = DiagnosisTransport(CLIP)
    assert [type(event) for event in read_answers(transport, answer("exploding"), may_clip=False)] == [VerdictEvent]
    assert transport.paths == []
