"""What the loss does: whether the run learns, has converged, is stuck, or gets worse.

This is a question of its own, apart from the verdict on the gradients: a run with sound gradients may go nowhere, and a
run that learns may carry a fault. A state is adopted only after it has held for a while, so that noise does not change
it back and forth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradmedic.protocol.runs import Objective
from gradmedic.protocol.verdicts import Learning
from gradmedic_diagnosis.detectors.base import STUCK_PATIENCE
from gradmedic_diagnosis.loss_progress import (
    CONSTANT_SHARE,
    FLAT_DECLINE,
    LONG_RUN,
    SLOW_ERROR,
    SLOW_HORIZON,
    STUCK_EVERY,
    UNMOVED_SHARE,
    LossProgress,
)
from gradmedic_diagnosis.state import Persistent

MIN_LOSSES = 20
"""Losses before anything is said of learning: half of what the slow average looks back."""
HOLD_LOSSES = 20
"""Consecutive losses for which a state must hold before it is adopted; `HOLD_SHARE` of a longer run. Half of the slow
average's horizon: an excursion that the average itself causes is over by then."""
HOLD_SHARE = 0.05
LOST_SHARE = 0.25
"""A run gets worse when it has lost this share of what it had gained. A judgement: a cycle of a learning rate schedule
loses less, a run that was destroyed loses more. In our recordings any share between 0.15 and 0.5 separates the two."""
WORSE_ERRORS = 3.0
"""The rise must also be this many standard errors of a slow average: the best level is the lowest of many."""
SLOWEST_RUNS = 10
"""A loss that needs more than this many times the run so far for a fall of `UNMOVED_SHARE` is stuck. A judgement: a
user who waits ten times as long as planned has noticed."""
FAR_ABOVE = 10.0
"""Times the level of a constant output from which on a loss of a long run is far above it. A judgement: outputs that
are so bad learn nothing yet but to become smaller."""
QUARTERS = 4
"""Quarters of a run."""
OUTLIER_SQUARE = 9.0
"""A squared difference counts at most this many times the variance: three standard deviations, as for outliers in
general (Pukelsheim 1994, "The three sigma rule")."""
RATE_JUMP = 2.0
"""A learning rate that rose by this factor since the best loss is named as evidence. The sharpness that plain gradient
descent tolerates is inverse to the rate (Cohen et al. 2021, "Gradient Descent on Neural Networks Typically Occurs at
the Edge of Stability")."""
SURROGATE_SIGN_CHANGES = 4
"""A loss that changed its sign this often measures no progress. An error or a likelihood passes zero at most once on
its way, and once more for noise; the loss of a policy gradient goes back and forth about zero (Spinning Up, "Intro to
Policy Optimization": the loss function "doesn't mean anything" about performance)."""


@dataclass(slots=True)
class LearningTracker(Persistent):
    """The state of learning of one loss, loss by loss."""

    state: Learning = "unknown"
    """The adopted state."""
    best_average: float = math.inf
    """Lowest slow average so far."""
    best_step: int | None = None
    """Step of the lowest slow average."""
    best_learning_rate: float = math.nan
    """Learning rate of the step before, which led to it; NaN where it is unknown."""
    last_learning_rate: float = math.nan
    start: float = math.nan
    """The loss at the beginning, as `LossProgress` defines it."""
    current: float = math.nan
    """The current loss."""
    noise_variance: float = math.nan
    """Variance of a single loss about its own trend: half the mean square of successive differences (von Neumann,
    "Distribution of the ratio of the mean square successive difference to the variance", 1941)."""
    last_loss: float = math.nan
    sign_changes: int = 0
    """Times that a loss had another sign than the loss before."""
    candidate: Learning = "unknown"
    """State that the last losses agree with."""
    held_losses: int = 0
    """Consecutive losses that agree with the candidate."""

    def add(
        self, loss: float, progress: LossProgress, step: int, learning_rate: float, constant_level: float = math.nan
    ) -> None:
        """Read the next finite loss.

        Args:
            loss: The loss, or what else counts as progress, so that smaller is better.
            progress: Its progress, which has read it already.
            step: The step.
            learning_rate: NaN where it is unknown.
            constant_level: Loss of a predictor with a constant output; NaN where it is unknown.
        """
        self._estimate_noise(loss, progress.count)
        self.start, self.current = progress.start, progress.current
        rate_before, self.last_learning_rate = self.last_learning_rate, learning_rate  # a loss follows the step before
        if progress.count >= MIN_LOSSES // 2 and progress.slow_average < self.best_average:
            self.best_average, self.best_step = progress.slow_average, step
            self.best_learning_rate = rate_before
        if progress.count % STUCK_EVERY:
            return
        found = self._judge(progress, constant_level)
        self.held_losses = self.held_losses + STUCK_EVERY if found == self.candidate else STUCK_EVERY
        self.candidate = found
        if self.held_losses >= max(HOLD_LOSSES, HOLD_SHARE * progress.count) or self.state == "unknown":
            self.state = found

    @property
    def measures_progress(self) -> bool:
        """Whether the signs of the loss allow it to measure progress."""
        return self.sign_changes < SURROGATE_SIGN_CHANGES

    def describe(self, objective: Objective, constant_level: float) -> str:
        """Describe an objective that is stuck or gets worse in one sentence; empty for the other states."""
        name, is_maximized = objective.metric or "loss", objective.direction == "maximize"
        sign = -1.0 if is_maximized else 1.0
        current, start, best = sign * self.current, sign * self.start, sign * self.best_average
        if self.state == "stuck":
            verb = "rise" if is_maximized else "fall"
            is_above_constant = not self.current < (1 - CONSTANT_SHARE) * constant_level
            if is_above_constant and self.start - self.current >= UNMOVED_SHARE * abs(self.start):
                return (
                    f"The {name} is no better than that of a constant output: it is {current:.3g}, and a constant "
                    f"output gets about {constant_level:.3g}."
                )
            return f"The {name} does not {verb}: it is {current:.3g}, and it began at {start:.3g}."
        if self.state != "worsening":
            return ""
        text = f"The {name} gets worse: it is {current:.3g}, after {best:.3g} at step {self.best_step}"
        growth = self.last_learning_rate / self.best_learning_rate if self.best_learning_rate > 0 else math.nan
        if growth >= RATE_JUMP:
            return f"{text}. The learning rate is {growth:.2g} times what it was then."
        return f"{text}."

    def _estimate_noise(self, loss: float, count: int) -> None:
        if math.isfinite(self.last_loss):
            self.sign_changes += (self.last_loss < 0) != (loss < 0)
            difference = loss - self.last_loss
            square = difference * difference / 2  # a power would raise for a loss near the largest number
            if math.isnan(self.noise_variance):
                self.noise_variance = square if math.isfinite(square) else 0.0
            elif math.isfinite(square):
                if self.noise_variance > 0:  # the spike of a blow-up is no noise, and would hide what follows
                    square = min(square, OUTLIER_SQUARE * self.noise_variance)
                self.noise_variance += (square - self.noise_variance) / min(count, SLOW_HORIZON)
        self.last_loss = loss

    def _judge(self, progress: LossProgress, constant_level: float) -> Learning:
        """Return the state that the loss shows now."""
        if progress.count < MIN_LOSSES or not self.measures_progress:
            return "unknown"
        if self._is_worse(progress, constant_level):
            return "worsening"
        if progress.is_stuck and progress.count >= STUCK_PATIENCE:
            has_moved = progress.fallen_share >= UNMOVED_SHARE
            if has_moved and not progress.current >= (1 - CONSTANT_SHARE) * constant_level:
                return "converged"
            if not self._falls_slowly(progress):
                return "stuck"
        if self._stays_above(progress, constant_level):
            return "stuck"
        return "unknown" if progress.shows_no_learning() else "learning"

    def _falls_slowly(self, progress: LossProgress) -> bool:
        """Whether the loss falls beyond noise, and fast enough to get somewhere.

        The last quarter of the run must be below the quarter before by more than the noise of single losses. At this
        speed the loss must move within `SLOWEST_RUNS` times the run so far.
        """
        earlier, _, earlier_count = progress.history.moments(0.5, 0.75)
        late, _, late_count = progress.history.moments(0.75, 1.0)
        error = math.sqrt(self.noise_variance * (1 / earlier_count + 1 / late_count))
        slowest_decline = UNMOVED_SHARE * progress.scale / (4 * SLOWEST_RUNS)
        return earlier - late > max(WORSE_ERRORS * error, slowest_decline)

    @staticmethod
    def _stays_above(progress: LossProgress, constant_level: float) -> bool:
        """Whether a long run is far above what a constant output gets, or will be above it after as many losses again.

        Above that level, a loss that falls shows no more than that outputs become smaller.
        """
        if progress.count < LONG_RUN or not progress.current > (1 + CONSTANT_SHARE) * constant_level:
            return False
        if progress.current > FAR_ABOVE * constant_level:
            return True
        earlier, late = progress.history.mean(0.5, 0.75)[0], progress.history.mean(0.75, 1.0)[0]
        return QUARTERS * (earlier - late) < late - constant_level

    def _is_worse(self, progress: LossProgress, constant_level: float) -> bool:
        """Whether the slow average is far above its best, in the loss's own units and beyond its noise.

        A run that began far above what a constant output gets has gained nothing on the way down to that level.
        """
        rise = progress.slow_average - self.best_average
        start = progress.start if math.isnan(constant_level) else min(progress.start, constant_level)
        gained = max(start - self.best_average, 0.0)
        noise = WORSE_ERRORS * SLOW_ERROR * math.sqrt(self.noise_variance)
        return rise > max(LOST_SHARE * gained, FLAT_DECLINE * abs(self.best_average), noise)
