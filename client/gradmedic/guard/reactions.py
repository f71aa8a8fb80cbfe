"""What a run does about a spike, a verdict, advised clipping or a request to stop, on the training thread."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from gradmedic.exceptions import GradmedicError, RunStoppedError, UnhealthyRunError
from gradmedic.guard.session import GuardSession
from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS
from gradmedic.recording.events import (
    ClippingAdvised,
    Event,
    RewindDelivered,
    SpikeDetected,
    StopRequested,
    VerdictEvent,
)
from gradmedic.recording.sampler import Sampler

logger = logging.getLogger("gradmedic")


class Reactions:
    """Reads the events of a run and reacts to them. Used by the training thread; any thread may append to `events`.

    Args:
        url: page of the run, for people.
        sampler: samples every step for a while after a spike or an unhealthy verdict.
        guards: clip the gradients, and stop the training when a gradient is not finite.
        stops_if_unhealthy: whether an unhealthy verdict raises `UnhealthyRunError`.
        is_trial: whether the run is a trial. `TrialSession` ends a trial, so no `RunStoppedError` is raised. Verdicts
            have no effect, because the step at which one arrives depends on time.
    """

    def __init__(
        self,
        url: str,
        sampler: Sampler,
        guards: GuardSession,
        *,
        stops_if_unhealthy: bool,
        is_trial: bool,
    ) -> None:
        self.events: deque[Event] = deque()
        """The queue of events that were not received yet."""
        self._url = url
        self._sampler = sampler
        self._guards = guards
        self._stops_if_unhealthy = stops_if_unhealthy
        self._is_trial = is_trial
        self._callbacks: list[Callable[[VerdictEvent], object]] = []
        self._received: deque[VerdictEvent | ClippingAdvised] = deque()
        self._verdict = "undetermined"
        self._error: GradmedicError | None = None
        self._is_stop_requested = False
        self._rewinds_under_way = 0

    @property
    def verdict(self) -> str:
        """The last verdict of the service; `undetermined` in a trial."""
        self.receive()
        return self._verdict

    @property
    def is_stop_requested(self) -> bool:
        """Whether the service asked the run to stop."""
        return self._is_stop_requested

    def add_callback(self, callback: Callable[[VerdictEvent], object]) -> None:
        """Call `callback` with each new verdict, from `act()`."""
        self._callbacks.append(callback)

    def begin_rewind(self) -> None:
        """Drop the verdicts on what was recorded so far. Others count again when the service has rewound the run."""
        self._rewinds_under_way += 1
        self._received.clear()
        self._verdict = "undetermined"

    def receive(self) -> None:
        """Take the events off the queue, and sample every step for a while if one of them is a reason to."""
        while True:
            try:
                event = self.events.popleft()
            except IndexError:  # the queue is empty, perhaps because another thread read `verdict`
                return
            if isinstance(event, SpikeDetected):
                self._sampler.sample_every_step()
            elif isinstance(event, StopRequested):
                self._request_stop()
            elif isinstance(event, RewindDelivered):
                self._rewinds_under_way = max(0, self._rewinds_under_way - 1)
                if not self._is_trial:
                    self._verdict = event.verdict
            elif not self._is_trial and not self._rewinds_under_way:
                self._received.append(event)
                if isinstance(event, VerdictEvent):
                    self._verdict = event.verdict
                    if event.verdict in UNHEALTHY_VERDICTS:
                        self._sampler.sample_every_step()

    def act(self) -> None:
        """Clip the gradients and call the callbacks, as the received events ask for."""
        self.receive()
        while self._received:
            event = self._received.popleft()
            if isinstance(event, ClippingAdvised):
                self._clip(event.max_norm)
            else:
                self._react_to_verdict(event)

    def raise_error(self) -> None:
        """Raise the exception that ends the training, if there is one. It is raised once.

        Raises:
            UnhealthyRunError: the verdict is unhealthy, or a gradient was not finite.
            RunStoppedError: the service asked the run to stop.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        self._guards.raise_error()

    def _request_stop(self) -> None:
        if not self._is_stop_requested and not self._is_trial:
            self._error = RunStoppedError(
                "the service asked this run to stop: the budget of its trial is spent, or it was cancelled"
            )
        self._is_stop_requested = True

    def _clip(self, max_norm: float) -> None:
        self._guards.clip(max_norm)
        logger.warning("gradmedic: gradients are clipped to the norm %.4g from now on", max_norm)

    def _react_to_verdict(self, event: VerdictEvent) -> None:
        if event.verdict in UNHEALTHY_VERDICTS and self._stops_if_unhealthy:
            self._error = UnhealthyRunError(
                f"{event.summary} See {self._url}", verdict=event.verdict, since_step=event.since_step
            )
        elif not self._is_stop_requested:
            self._error = None
        if event.verdict in UNHEALTHY_VERDICTS:
            self._guards.note_verdict(event)
        for callback in self._callbacks:
            try:
                callback(event)
            except Exception:
                logger.exception("gradmedic: a callback of on_verdict() failed")
