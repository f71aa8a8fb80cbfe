"""The detectors of one run: which of them observe a step, which are watched for votes and faults.

A detector that is at rest, and reads the first steps of a block at once (`Detector.pass_over`), is neither called nor
asked at these steps. So a step costs as much as there are detectors with something to do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS
from gradmedic_diagnosis.detectors import DETECTOR_TYPES
from gradmedic_diagnosis.detectors.base import Detector
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView

FEWEST_STEPS_AT_ONCE = 6
"""Steps of a block from which on detectors read what they can at once. For fewer steps, observing each costs less."""


class DetectorPanel:
    """All detectors of one run.

    Args:
        muted: Ids of muted detectors. They observe the run, but neither vote nor report.
    """

    def __init__(self, muted: Collection[str]) -> None:
        self._muted = frozenset(muted)
        self._all: list[Detector] = [detector() for detector in DETECTOR_TYPES]
        self._unconditional = _list_unconditional(self._all)
        self._starts: list[int] = []
        """Position in the block from which on each detector observes steps."""
        self._wake_ups: frozenset[int] = frozenset()
        """Positions at which a detector begins to observe."""
        self._observers: list[Callable[[StepView], None]] = []
        self._probe_observers: list[Callable[[StepView], None]] = []
        self._watched: Sequence[Detector] = self._all
        """The detectors that may be open or vote at the present step."""

    @property
    def all(self) -> Sequence[Detector]:
        """Every detector, in the order of `DETECTOR_TYPES`."""
        return self._all

    @property
    def unmuted(self) -> Sequence[Detector]:
        """The detectors that are not muted."""
        return [detector for detector in self._all if detector.id not in self._muted] if self._muted else self._all

    def begin_block(self, columns: StepColumns) -> None:
        """Let each detector read what it can of a block at once; of a few steps, observing each costs less."""
        if len(columns) < FEWEST_STEPS_AT_ONCE and columns.first_with_probes == len(columns):
            conditional = [each for each in self._all if not each.reads_only_probes and _has_condition(each)]
            self._observers = [
                *self._unconditional,
                *(each.observe for each in conditional if self._can_observe(each, columns)),
            ]
            self._wake_ups, self._probe_observers = frozenset(), []
            return
        self._starts = [self._pass_over(detector, columns) for detector in self._all]
        self._wake_ups = frozenset((0, *self._starts))
        self._probe_observers = []
        if columns.first_with_probes < len(columns):
            self._probe_observers = [
                detector.observe
                for detector, start in zip(self._all, self._starts, strict=True)
                if detector.reads_only_probes and start < len(columns)
            ]

    def observe(self, view: StepView, position: int) -> None:
        """Let the detectors observe the step at a position of the block that was begun; positions ascend."""
        if position in self._wake_ups:
            self._wake(position)
        for observe in self._observers:
            observe(view)
        if view.probes:
            for observe in self._probe_observers:
                observe(view)

    def end_block(self) -> None:
        """Watch all detectors again, after the last step of a block."""
        self._watched = self._all

    def list_votes(self, view: StepView, *, has_verdict: bool) -> list[Detector]:
        """Return the detectors that vote.

        There is no first vote for vanishing while an explosion may be the reason, or a fault of the script explains a
        flat loss.
        """
        voting = [each for each in self._watched if each.strength and each.verdict in UNHEALTHY_VERDICTS]
        if voting and self._muted:
            voting = [detector for detector in voting if detector.id not in self._muted]
        if voting and not has_verdict and all(detector.verdict == "vanishing" for detector in voting):
            is_undecided = any(detector.is_undecided(view) for detector in self.unmuted)
            if is_undecided or self._has_explained_loss():
                return [] if is_undecided else [detector for detector in voting if detector.judges_update]
        return voting

    def has_open_fault(self) -> bool:
        """Whether the open finding of a detector that is not muted is a fault of the script."""
        for detector in self._watched:  # a loop: this runs at every step
            if detector.is_open and detector.is_fault and detector.id not in self._muted:
                return True
        return False

    def _has_explained_loss(self) -> bool:
        """Whether a fault explains a loss that is flat."""
        return any(each.is_open and each.is_fault and each.explains_flat_loss for each in self.unmuted)

    def has_open_warning(self) -> bool:
        """Whether a detector that is not muted has an open warning."""
        return any(
            detector.finding_state is not None
            and detector.is_open
            and detector.finding_state.severity == "warning"
            and detector.id not in self._muted
            for detector in self._watched
        )

    def resolve(self, decider: str, step: int) -> None:
        """Resolve the finding that decided a verdict which has ended: it held as long as the verdict."""
        for detector in self._all:
            detector.forget_trouble()
            if detector.id == decider and detector.finding_state is not None:
                detector.finding_state.resolved_step = step

    def to_state(self) -> dict[str, Any]:
        """Return the state, for `pack_state`."""
        return {detector.id: detector.to_state() for detector in self._all}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the state that `to_state` returned; a detector that an older state does not have begins anew."""
        self._all = [
            detector.from_state(state[detector.id]) if detector.id in state else detector()
            for detector in DETECTOR_TYPES
        ]
        self._unconditional = _list_unconditional(self._all)
        self._watched = self._all

    @staticmethod
    def _can_observe(detector: Detector, columns: StepColumns) -> bool:
        """Return whether a detector can see anything in a block."""
        if detector.needed_series is not None and detector.needed_series not in columns.block.series:
            return False
        return detector.is_applicable(columns.architecture, columns.measurements)

    def _pass_over(self, detector: Detector, columns: StepColumns) -> int:
        """Return the position from which on a detector observes steps; the block's length if it observes none."""
        if not self._can_observe(detector, columns):
            return len(columns)
        if detector.reads_only_probes:
            return columns.first_with_probes
        return detector.pass_over(columns) if len(columns) >= FEWEST_STEPS_AT_ONCE else 0

    def _wake(self, position: int) -> None:
        """Choose what observes the steps from a position on, and what is watched.

        A detector that has not begun to observe stays as it is: if it is at rest, it need not be asked.
        """
        begun = [(detector, start <= position) for detector, start in zip(self._all, self._starts, strict=True)]
        self._watched = [detector for detector, has_begun in begun if has_begun or not detector.is_at_rest]
        self._observers = [
            detector.observe for detector, has_begun in begun if has_begun and not detector.reads_only_probes
        ]


def _has_condition(detector: Detector) -> bool:
    """Return whether it depends on the block if a detector can observe its steps."""
    return detector.needed_series is not None or type(detector).is_applicable is not Detector.is_applicable


def _list_unconditional(detectors: Sequence[Detector]) -> list[Callable[[StepView], None]]:
    """Return what observes every step of every block."""
    return [each.observe for each in detectors if not each.reads_only_probes and not _has_condition(each)]
