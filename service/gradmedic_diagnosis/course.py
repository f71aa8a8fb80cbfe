"""The course of a disease: the onset of an unhealthy verdict, what decided it, what followed, and its end.

What is called a loss here is what counts as progress of the run: its loss, or a metric with the sign that makes smaller
better. The loss of a policy gradient counts as none: after an explosion nothing shows then that the run has recovered.

Detectors vote at every step. The course keeps the verdict between the votes: an explosion kills units, after which the
gradients are zero and the loss is flat, and those detectors vote for vanishing. That is a consequence, not another
disease. So a verdict ends only when the run has recovered, and what the votes alone would do never shows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from gradmedic.protocol.verdicts import Learning, Verdict
from gradmedic_diagnosis.detectors.base import Detector
from gradmedic_diagnosis.detectors.nonfinite import DEAD_STRENGTH, Nonfinite
from gradmedic_diagnosis.detectors.step_view import StepView
from gradmedic_diagnosis.learning import OUTLIER_SQUARE
from gradmedic_diagnosis.loss_progress import (
    RELEASE_DECLINE,
    RELEASE_ERRORS,
    SLOW_ERROR,
    SLOW_HORIZON,
    UNMOVED_SHARE,
    LossProgress,
)
from gradmedic_diagnosis.state import Persistent

RECOVERED_LOSSES = 20
"""Consecutive losses for which a run must have recovered: half of the slow average's horizon. As many losses have a
median of their own, so that a dip that is shorter than this never counts."""
CERTAIN_LOSSES = 20
"""Consecutive risen losses with a vote for exploding after which a vanishing run is called exploding: an excursion of a
run that stays stuck ends before. Non-finite weights, or a loss that stays non-finite, need no proof. The opposite never
happens, so a run changes between the two at most once."""
LOSS_RISE = 2.0
"""A loss of this many times its reference has risen, as in `growth_in_time`."""
RECOVERED_SHARE = 0.1
"""The level from before an explosion is reached up to this share of what the run had gained by then: as little as a
loss that has not moved may fall (`UNMOVED_SHARE`)."""
RECOVERY_DEAD_SHARE = 0.5
"""A network does not recover while this share of its weight matrices or more is dead, as in `zero_gradient`."""
LEVEL_LOSSES = 10
"""Losses from which on the slow average counts as a level of the run. Before that, it is a few single losses."""
MAX_STRENGTH = 0.99
"""Bound of a strength where several are combined: no single finding gives certainty."""
CONSEQUENCES = {
    "zero_gradient": "gradients are exactly zero",
    "depth_gap": "gradients fade towards the input",
    "saturation": "units are saturated",
    "contracting_recurrence": "a recurrent matrix shrinks the gradients",
    "insensitive_loss": "the gradients are too small to move the loss",
    "excessive_clipping": "clipping leaves almost nothing of the gradients",
    "starvation": "the updates move no weight",
    "no_signal_from_loss": "the loss sends no gradient into the model",
    "plateau": "the loss is flat",
}
"""What may follow from an explosion, by detector, in words for a summary. Faults of the script never do."""
PROGRESS_STATES: tuple[Learning, ...] = ("learning", "converged")
"""States of learning with which a run may have recovered from an explosion."""
NO_PROGRESS_STATES: tuple[Learning, ...] = ("stuck", "worsening")
"""States of learning with which vanishing does not end. `unknown` does not count: the loss of some runs shows no more,
and an explosion needs better proof that it is over, since it may have destroyed the network."""


@dataclass(slots=True)
class Course(Persistent):
    """The course of one run, step by step. Every attribute is a number, a text or a list: the state of a run."""

    verdict: Verdict | None = None
    """The verdict that the run has since `since_step`: vanishing or exploding; None while it has neither."""
    since_step: int | None = None
    """Step at which the verdict was adopted."""
    onset_step: int | None = None
    """First step of the finding that decided the verdict."""
    supporters: list[str] = field(default_factory=list)
    """Ids of the detectors that have voted for the verdict, the deciding one first."""
    peak_strength: float = 0.0
    """Largest combined strength of the votes for the verdict so far."""
    steps_since: int = 0
    """Steps since the verdict was adopted."""
    level: float = math.nan
    """For an explosion, the best level of the loss before it; for vanishing, the level at which the loss was found
    stuck. NaN where no loss shows one."""
    gained: float = 0.0
    """How far the loss had fallen before an explosion, from its start; 0 if that was no more than noise."""
    explosion_losses: int = 0
    """Consecutive risen losses with a vote for exploding, while the verdict is vanishing."""
    recent_losses: list[float] = field(default_factory=list)
    """The last `RECOVERED_LOSSES` losses since the verdict was adopted."""
    recovered_losses: int = 0
    """Consecutive losses for which the run has recovered; steps where no loss shows it."""
    best_level: float = math.inf
    """Lowest slow average of the objective so far."""
    noise_variance: float = math.nan
    """Variance of a single loss about its own trend: half the mean square of successive differences (von Neumann,
    "Distribution of the ratio of the mean square successive difference to the variance", 1941)."""
    last_loss: float = math.nan
    values_read: int = 0
    """Values of the objective so far."""
    recovered_onset: int | None = None
    """Onset of the last verdict that ended."""
    recovered_step: int | None = None
    """Step at which it ended."""
    recovered_verdict: Verdict | None = None
    """The verdict that ended."""

    def advance(self, voting: Sequence[Detector], view: StepView, learning: Learning) -> None:
        """Read the next step.

        Args:
            voting: The detectors that are not muted and whose strength is above 0.
            view: The step.
            learning: What the objective does, as of this step.
        """
        value = self._read_objective(view)
        if self.verdict is None:
            if voting:
                self._begin(voting, view)
            return
        self.steps_since += 1
        if value is not None:
            self.recent_losses = [*self.recent_losses[1 - RECOVERED_LOSSES :], value]
        votes = [detector for detector in voting if detector.verdict == self.verdict]
        if votes:
            self._add_votes(votes)
        if self.verdict == "vanishing" and self._is_explosion_certain(voting, view):
            self._begin(voting, view)
        elif voting:
            self.recovered_losses = 0
        elif value is not None or not self._has_objective(view):
            self.recovered_losses = self.recovered_losses + 1 if self._has_recovered(view, learning) else 0
            if self.recovered_losses >= (1 if math.isnan(self.level) else RECOVERED_LOSSES):
                self._end(view.step)

    def take_up(
        self, verdict: Verdict, since_step: int | None, detectors: Sequence[Detector], progress: LossProgress | None
    ) -> None:
        """Go on from a state without a course, as version 0.1 stored it. Its votes are those of its last step."""
        if progress is not None and progress.count:
            self.best_level = min(progress.start, progress.slow_average)
        votes = [detector for detector in detectors if detector.strength and detector.verdict == verdict]
        if not votes:
            return
        self._adopt(votes, since_step, progress)

    def decider(self, muted: Collection[str]) -> str | None:
        """Return the first detector that voted for the verdict and is not muted; None if there is none."""
        return next((identity for identity in self.supporters if identity not in muted), None)

    def is_consequence(self, detector: Detector) -> bool:
        """Whether a detector's finding followed from the explosion that the run has not recovered from."""
        finding = detector.finding_state
        if self.verdict != "exploding" or detector.id not in CONSEQUENCES or finding is None:
            return False
        return self.onset_step is not None and finding.first_step >= self.onset_step

    def forget(self) -> None:
        """Drop the verdict: every detector that voted for it was muted."""
        self.verdict, self.since_step, self.onset_step = None, None, None
        self.supporters, self.recent_losses = [], []
        self.peak_strength, self.steps_since, self.recovered_losses, self.explosion_losses = 0.0, 0, 0, 0

    def _begin(self, voting: Sequence[Detector], view: StepView) -> None:
        """Adopt the verdict of the votes, exploding before vanishing."""
        verdict = "exploding" if any(detector.verdict == "exploding" for detector in voting) else "vanishing"
        votes = [detector for detector in voting if detector.verdict == verdict]
        self._adopt(votes, view.step, None if self._has_several_losses(view) else view.objective)

    def _adopt(self, votes: Sequence[Detector], step: int | None, progress: LossProgress | None) -> None:
        """Adopt the verdict of the votes; the strongest detector decides."""
        deciding = max(votes, key=lambda detector: detector.strength)
        self.forget()
        self.verdict, self.since_step = deciding.verdict, step
        self.onset_step = step if deciding.finding_state is None else deciding.finding_state.first_step
        self.supporters = [deciding.id]
        self._add_votes(votes)
        self.level, self.gained = math.nan, 0.0
        if progress is None or progress.count == 0:
            return
        if self.verdict == "vanishing":
            self.level = progress.slow_average
            return
        self.level = self.best_level if math.isfinite(self.best_level) else progress.start
        gained = progress.start - self.level
        if gained >= UNMOVED_SHARE * progress.scale and gained > self._level_error():
            self.gained = gained

    def _add_votes(self, votes: Sequence[Detector]) -> None:
        chance_mistaken = 1.0
        for detector in votes:
            chance_mistaken *= 1 - min(detector.strength, MAX_STRENGTH)
            if detector.id not in self.supporters:
                self.supporters.append(detector.id)
        self.peak_strength = max(self.peak_strength, 1 - chance_mistaken)

    def _end(self, step: int) -> None:
        self.recovered_verdict, self.recovered_onset, self.recovered_step = self.verdict, self.onset_step, step
        self.forget()

    def _read_objective(self, view: StepView) -> float | None:
        """Advance best level and noise; return the value of the objective at this step, None where it has none."""
        progress = view.objective
        if progress.count == self.values_read or self._has_several_losses(view):
            return None
        self.values_read = progress.count
        value = progress.recent_losses[-1]
        if progress.count >= LEVEL_LOSSES and progress.slow_average < self.best_level:
            self.best_level = progress.slow_average
        difference = value - self.last_loss
        square = difference * difference / 2  # a power would raise for a loss near the largest number
        self.last_loss = value
        variance = self.noise_variance
        if math.isnan(variance):
            self.noise_variance = square if square < math.inf else math.nan
        elif square < math.inf:
            if 0 < variance * OUTLIER_SQUARE < square:
                square = variance * OUTLIER_SQUARE
            self.noise_variance = variance + (square - variance) / min(progress.count, SLOW_HORIZON)
        return value

    @staticmethod
    def _has_several_losses(view: StepView) -> bool:
        """Whether the objective is a loss, and several losses take turns. None of them has a level of the run."""
        return view.has_several_streams and view.objective is view.progress

    def _has_objective(self, view: StepView) -> bool:
        """Whether there is one series of numbers that a level could be read from, whether or not it means progress."""
        return not math.isnan(self.level) and not self._has_several_losses(view)

    def _level_error(self) -> float:
        """Return the difference of two distant slow averages that noise alone does not reach."""
        return RELEASE_ERRORS * SLOW_ERROR * math.sqrt(self.noise_variance) if self.noise_variance > 0 else 0.0

    def _has_recovered(self, view: StepView, learning: Learning) -> bool:
        """Whether the objective is where a run that has recovered has it, and the run learns, with live gradients.

        Where nothing has a level, silent detectors are all that is known.
        """
        if not self._has_objective(view):
            return True
        error = self._level_error()
        if len(self.recent_losses) < RECOVERED_LOSSES:
            return False
        # The slow average follows a dip at once and comes back slowly; the median of the recent losses does neither.
        loss = max(view.objective.slow_average, statistics.median(self.recent_losses))
        has_fallen = self.level - loss > max(RELEASE_DECLINE * abs(self.level), error)
        if self.verdict == "vanishing":
            return has_fallen and learning not in NO_PROGRESS_STATES
        is_back = loss <= self.level + max(RECOVERED_SHARE * self.gained, error)
        # A loss that never fell is at its level from before also after the network was destroyed.
        is_undone = is_back if self.gained or self.supporters == [Nonfinite.id] else has_fallen
        return is_undone and view.dead_share < RECOVERY_DEAD_SHARE and learning in PROGRESS_STATES

    def _is_explosion_certain(self, voting: Sequence[Detector], view: StepView) -> bool:
        """Whether a run that was called vanishing exploded after all, for good or for long."""
        exploding = [detector for detector in voting if detector.verdict == "exploding"]
        if not exploding or view.loss_ratio < LOSS_RISE:
            self.explosion_losses = 0
        elif view.loss_ratio >= LOSS_RISE:  # NaN where the step has no loss
            self.explosion_losses += 1
        is_dead = any(detector.id == Nonfinite.id and detector.strength >= DEAD_STRENGTH for detector in exploding)
        return is_dead or self.explosion_losses >= CERTAIN_LOSSES
