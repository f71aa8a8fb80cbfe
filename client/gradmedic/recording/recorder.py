"""The recorder's thread: it completes the drafts of `log()` and passes the steps on to be uploaded.

The training thread only appends to a `deque`. It takes no lock, and it wakes no thread, because that would cost it a
system call: the recorder looks again after a short pause.

The last step is held for a moment, because a script may call `log()` once more for it, with other numbers.

What is recorded of a trial must not depend on time. There, the last step is held until the next one, and the training
thread waits where there is no room for a draft.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from typing import Protocol

from gradmedic.recording.description import RunDescriber
from gradmedic.recording.draft import Draft, complete_step, fits_row, join_steps
from gradmedic.recording.events import Event, SpikeDetected
from gradmedic.recording.objective_check import ObjectiveCheck
from gradmedic.recording.one_time_warnings import OneTimeWarnings
from gradmedic.recording.spike_detector import SpikeDetector
from gradmedic.recording.step import Entry, Rewind, Step

logger = logging.getLogger("gradmedic")

_PAUSE = 0.02
"""Seconds between two looks for new drafts. An explosion is announced that much later."""
_LONGEST_PAUSE = 0.2
"""Seconds between two looks after a while without drafts."""
_HOLD = 0.2
"""Seconds that a step is held for what is logged for it later. A spike is not held."""
_DRAFT_BYTES = 1_000
"""About the memory that a draft takes at least."""
_FEWEST_DRAFTS = 10_000
"""Drafts for which there is room in any case: a burst of small steps while the recorder writes others to disk."""


class StepOutput(Protocol):
    """Where recorded steps go."""

    @property
    def is_closed(self) -> bool:
        """Whether nothing is taken any more."""

    def start(self) -> None:
        """Begin to take steps."""

    def append(self, entry: Entry, *, is_urgent: bool) -> None:
        """Take an entry. An urgent one must not wait for others."""

    def add_dropped(self, steps: int) -> None:
        """Count steps that were dropped before they were recorded."""

    def fail(self) -> None:
        """Take nothing any more: the recorder had an error of its own."""


class Recorder:
    """Records the steps of a run on a thread of its own.

    Args:
        output: takes the recorded steps.
        describer: receives the statistics of the run.
        events: takes a `SpikeDetected` for each step of which only the recorder could find out that it jumps.
        warnings: take what cannot be recorded.
        max_bytes: largest number of bytes in memory for drafts.
        is_trial: whether the run is a trial.
    """

    def __init__(
        self,
        output: StepOutput,
        describer: RunDescriber,
        events: deque[Event],
        warnings: OneTimeWarnings,
        *,
        max_bytes: int,
        is_trial: bool = False,
    ) -> None:
        self._is_trial = is_trial
        self._output = output
        self._describer = describer
        self._events = events
        self._warnings = warnings
        self._max_drafts = max(_FEWEST_DRAFTS, max_bytes // _DRAFT_BYTES)
        self._drafts: deque[Draft | Rewind] = deque()
        self._accepted = 0  # drafts so far; written by the training thread
        self._overflowed = 0  # drafts without room; written by the training thread
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        self._wake_up = threading.Event()
        self._progress = threading.Condition()
        self._recorded = 0  # drafts that were passed on or left out
        self._reported_overflow = 0
        self._spikes = SpikeDetector()
        self._objective_check = ObjectiveCheck(describer.objective, warnings)
        self._must_release = False
        self._held: Step | None = None
        self._held_drafts = 0
        self._held_until = 0.0
        self._last_number: int | None = None
        self._late_metrics: dict[str, float] = {}

    def record(self, draft: Draft | Rewind) -> None:
        """Accept a draft or a rewind; returns at once, except in a trial that has no room for it."""
        if self._is_trial:
            self._wait_for_room()
        if self._output.is_closed:
            return
        # The recorder hangs, on a disk most likely. A rewind is kept: the service would ignore the steps behind it.
        if len(self._drafts) > self._max_drafts and not isinstance(draft, Rewind):
            self._overflowed += 1
            return
        self._accepted += 1
        self._drafts.append(draft)
        if self._thread is None:
            self._output.start()
            self._thread = threading.Thread(target=self._run, name="gradmedic-recorder", daemon=True)
            self._thread.start()

    def wait(self, timeout: float) -> bool:
        """Wait until everything that was accepted is recorded, at most `timeout` seconds; return whether it is."""
        target = self._accepted
        with self._progress:
            self._must_release = True
            self._wake_up.set()
            self._progress.wait_for(lambda: self._recorded >= target or self._output.is_closed, timeout)
            return self._recorded >= target

    def _wait_for_room(self) -> None:
        if len(self._drafts) > self._max_drafts:
            with self._progress:
                self._progress.wait_for(
                    lambda: len(self._drafts) <= self._max_drafts or self._output.is_closed or self._is_stopped
                )

    def close(self, timeout: float) -> None:
        """Record what is left within `timeout` seconds, and stop."""
        is_complete = self.wait(timeout)
        self._is_stopped = True
        self._wake_up.set()
        if is_complete and self._thread is not None:
            self._thread.join(timeout)
        elif not is_complete and not self._output.is_closed:
            unrecorded = self._accepted - self._recorded
            logger.warning("gradmedic could not record the last %d steps in time, they are lost", unrecorded)

    def abandon(self) -> None:
        """Forget everything: this process is a fork, and its parent goes on."""
        self._is_stopped = True
        self._drafts.clear()
        self._held = None
        self._wake_up, self._progress = threading.Event(), threading.Condition()  # the parent may have held the lock

    def _run(self) -> None:
        try:
            pause = _PAUSE
            while not self._is_stopped and not self._output.is_closed:
                pause = _PAUSE if self._drafts else min(1.5 * pause, _LONGEST_PAUSE)
                must_release, self._must_release = self._must_release, False  # before the drafts that it is meant for
                while self._drafts:
                    self._record(self._drafts.popleft())
                if must_release or (not self._is_trial and time.monotonic() >= self._held_until):
                    self._release()
                self._report_overflow()
                with self._progress:
                    self._progress.notify_all()
                self._wake_up.wait(pause)
                self._wake_up.clear()
            self._release()
            self._warn_of_late_metrics()
            self._objective_check.finish()
        except Exception:
            logger.exception("gradmedic stopped recording because of an error of its own; training goes on")
            self._output.fail()
        self._report_overflow()
        with self._progress:
            self._progress.notify_all()

    def _record(self, draft: Draft | Rewind) -> None:
        entry = draft if isinstance(draft, Rewind) else self._complete(draft)
        is_spike = None if isinstance(draft, Rewind) else draft.is_spike
        if isinstance(entry, Step) and entry.number == self._last_number:
            self._join(entry)
            return
        self._release()
        if isinstance(entry, Step):
            self._hold(entry, is_spike)
            return
        if entry is not None:
            self._last_number = None
            self._output.append(entry, is_urgent=False)
        self._recorded += 1

    def _hold(self, step: Step, is_spike: bool | None) -> None:
        """Hold a new step; send it at once if it jumps, which the training thread may have found out.

        A jump ends no hold of a trial, because what is logged for the step later would be left out.
        """
        self._last_number = step.number
        if self._late_metrics:
            step = dataclasses.replace(step, metrics={**self._late_metrics, **step.metrics})
            self._late_metrics = {}
        if is_spike is None:
            is_spike = self._spikes.update(step)
            if is_spike:
                self._events.append(SpikeDetected())
        if is_spike and not self._is_trial:
            self._output.append(step, is_urgent=True)
            self._recorded += 1
        else:
            self._held, self._held_drafts, self._held_until = step, 1, time.monotonic() + _HOLD

    def _release(self) -> None:
        """Pass on the step that is held."""
        if self._held is not None:
            self._output.append(self._held, is_urgent=False)
            self._recorded += self._held_drafts
            self._held, self._held_drafts = None, 0

    def _join(self, addition: Step) -> None:
        """Add what was logged for the last step later; if the step has left, keep the metrics for the next one."""
        held = self._held
        if held is None:
            self._recorded += 1
            self._late_metrics.update(addition.metrics)
            if addition.metrics:
                self._warnings.warn(
                    "late metrics",
                    f"metrics of step {addition.number} came when it had left; they are recorded with the next step. "
                    "Give them to the log() of their step, or call log() for it right afterwards",
                )
        if addition.loss is not None and (held is None or held.loss is not None):
            self._warnings.warn(
                "second loss",
                f"a second loss of step {addition.number} is left out: give each step a number of its own, as in "
                "log(loss, step=step)",
            )
        if addition.row is not None and (held is None or not fits_row(held.row, addition.row)):
            self._warnings.warn(
                "second row",
                f"gradients or statistics logged once more for step {addition.number} are left out: they came when it "
                "had left, or it has them. Give all of them to one log() of their step",
            )
        if held is not None:
            self._held = join_steps(held, addition)
            self._held_drafts += 1

    def _warn_of_late_metrics(self) -> None:
        if self._late_metrics:
            names = ", ".join(self._late_metrics)
            logger.warning("gradmedic: no step followed that could take %s; they are left out", names)

    def _complete(self, draft: Draft) -> Step | None:
        try:
            step = complete_step(draft)
        except Exception as error:
            self._warnings.warn(f"step {type(error)}", f"a step could not be recorded: {error!r}")
            return None
        self._objective_check.note_step(step.metrics)
        if step.row is not None and (missing := self._describer.note_statistics(step.row.statistics)):
            self._warnings.warn(
                f"statistics {missing}",
                f"the statistics of step {step.number} are left out: they lack {', '.join(missing)}, which the first "
                "step with statistics had. Give the same ones at each step",
            )
        return step

    def _report_overflow(self) -> None:
        overflow = self._overflowed - self._reported_overflow
        if overflow:
            self._reported_overflow += overflow
            self._output.add_dropped(overflow)
