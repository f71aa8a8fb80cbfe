"""Turns the service's answers to blocks into events for the training thread."""

from __future__ import annotations

import logging
from collections import deque
from uuid import UUID

from gradmedic.exceptions import GradmedicError
from gradmedic.protocol.steps import AppendResult, RewindResult
from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS
from gradmedic.recording.events import ClippingAdvised, Event, RewindDelivered, StopRequested, VerdictEvent
from gradmedic.transport.http import Service

logger = logging.getLogger("gradmedic")


class AnswerReader:
    """Reads the answers of one run. Used by the uploader's thread.

    Args:
        service: asked for the diagnosis, if the gradients may be clipped.
        run_id: id of the run.
        url: page of the run, for people.
        events: takes what the training thread must react to.
        may_clip: whether an unhealthy verdict is followed by clipping, if the diagnosis advises it.
    """

    def __init__(self, service: Service, run_id: UUID, url: str, events: deque[Event], *, may_clip: bool) -> None:
        self._service = service
        self._run_id = run_id
        self._url = url
        self._events = events
        self._verdict = "undetermined"
        self.may_clip = may_clip
        """May be set by any thread."""

    def read(self, answer: AppendResult) -> None:
        """Append the events of an answer: a request to stop, a new verdict, and clipping that the diagnosis advises."""
        if answer.stop:
            self._events.append(StopRequested())
        if answer.verdict == self._verdict:
            return
        self._verdict = answer.verdict
        since = "" if answer.since_step is None else f" since step {answer.since_step}"
        summary = " ".join(answer.alerts) or f"The verdict is {answer.verdict}{since}."
        if answer.verdict in UNHEALTHY_VERDICTS:
            logger.warning("gradmedic: %s See %s", summary, self._url)
            if self.may_clip and (max_norm := self._find_max_norm()) is not None:
                self._events.append(ClippingAdvised(max_norm))
        self._events.append(
            VerdictEvent(run_id=self._run_id, verdict=answer.verdict, since_step=answer.since_step, summary=summary)
        )

    def read_rewind(self, answer: RewindResult) -> None:
        """Append the event of a rewind that the service has made. Verdicts before it were about steps that are gone."""
        self._verdict = answer.verdict
        self._events.append(RewindDelivered(answer.verdict))

    def _find_max_norm(self) -> float | None:
        """Return the norm to which the diagnosis advises to clip the gradients; None if it does not."""
        from gradmedic.protocol.diagnosis import Diagnosis  # few trainings need it

        try:
            diagnosis = self._service.request_as(Diagnosis, "GET", f"/runs/{self._run_id}/diagnosis")
        except GradmedicError as error:
            logger.warning("gradmedic: the gradients are not clipped, the advice cannot be read: %s", error)
            return None
        for advice in sorted(diagnosis.advice, key=lambda advice: advice.rank):
            max_norm = advice.remedy.parameters.get("max_norm")
            if advice.remedy.id == "clip_grad_norm" and isinstance(max_norm, (int, float)) and max_norm > 0:
                return float(max_norm)
        logger.warning("gradmedic: the gradients are not clipped, because the diagnosis does not advise it")
        return None
