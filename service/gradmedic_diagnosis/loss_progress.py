"""The progress of one loss: where it started, where it is now, and whether it still falls.

A run is stuck when the later half of its life shows no decline that noise could hide. The history of the loss is kept
at a resolution that depends on the run's length, so "later half" means the same for a short run and a long one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from gradmedic_diagnosis.series_history import SeriesHistory
from gradmedic_diagnosis.state import Persistent

FIRST_LOSSES = 5
"""A run's start is the second largest of this many losses: neither one odd batch nor a fast descent defines it."""
BLOW_UP = 10.0
"""A loss of this many times its reference has blown up: the outcome that defines an exploding run. Such a loss does not
count towards the start."""
OUTLIER_SCALES = 3.0
"""A loss enters the slow average at most this many scales above it. Otherwise a blow-up would become the level that it
is compared with (a z-score whose window includes the sample itself cannot exceed sqrt(n - 1))."""
RECENT_COUNT = 9
"""The current loss is the median of this many: neither one bad batch nor a blow-up of four steps defines it."""
SLOW_HORIZON = 40
"""Steps that the slow average looks back: about five times as many as the current loss, as in a moving-average
crossover."""
MAX_LAG = 3.0
"""The slow average of a positive loss is at most this many times the current loss. Otherwise, after a steep descent, it
would hide a blow-up for hundreds of steps."""

LONG_RUN = 200
"""Number of losses from which on the beginning of a run is distinct from the rest."""
FLAT_DECLINE = 0.1
"""A loss is flat if it lost less than this share of itself over the last three quarters of the run."""
STUCK_EVERY = 4
"""Number of losses after which `is_stuck` is computed again. It takes many more losses to change."""
STUCK_DECLINE = 0.03
"""A loss that fell by less than this share of itself over the later half of the run is not falling, if the decline
also meets `STUCK_DECLINE_BOUND`."""
STUCK_DECLINE_BOUND = 0.12
"""The upper end of the confidence interval of that decline must be below this share of the loss."""
STUCK_WANDER = 0.4
"""A loss whose averages differ by more than this share of themselves is not stuck, even if it does not fall. The loss
of a network that is cut off from its input stays the same."""
CONSTANT_SHARE = 0.03
"""A loss that is flat above this share below the level of a constant predictor has learned only the level of the
targets. The level is estimated from a few batches: with 128 targets of ten classes its own error is about 0.03 (Miller
1955, "Note on the bias of information estimates")."""
UNMOVED_SHARE = 0.1
"""A loss that fell by less than this share of its start has not moved."""
NOISE_ERRORS = 2.0
"""Two losses differ if their difference exceeds this many of its standard errors (95 %)."""
RELEASE_DECLINE = 0.1
"""A stuck loss moves again when the slow average is this share below the level at which the loss was found stuck.
`is_stuck` changes often with a noisy loss; this condition does not."""
RELEASE_ERRORS = 3.0
"""It must also be this many standard errors below that level. They are more than `NOISE_ERRORS`, since the condition is
checked at every step."""
SLOW_ERROR = math.sqrt(2 / (2 * SLOW_HORIZON - 1))
"""Standard error of the difference of two distant slow averages, in standard deviations of a loss."""


@dataclass(slots=True)
class LossProgress(Persistent):
    """The finite losses of one stream. Optimizers that take turns, as in a GAN, have a stream each."""

    STORED_KEYS: ClassVar[Mapping[str, str]] = {
        "first_losses": "first",
        "recent_losses": "recent",
        "current": "fast",
        "slow_average": "slow",
        "lowest_current": "lowest",
        "highest_average": "highest",
    }

    count: int = 0
    """Number of losses so far."""
    first_losses: list[float] = field(default_factory=list)
    """The first `FIRST_LOSSES` losses that had not blown up."""
    start: float = math.nan
    """Loss at the beginning; NaN before the first loss."""
    scale: float = math.nan
    """One unit of this loss: its start; for a loss that was negative, at least its range so far."""
    reference: float = math.nan
    """The level that the next loss is compared with: the start or the slow average, whichever is higher."""
    recent_losses: list[float] = field(default_factory=list)
    """The last `RECENT_COUNT` losses."""
    current: float = 0.0
    """The current loss: the median of the recent losses."""
    slow_average: float = 0.0
    lowest_current: float = math.inf
    """Lowest current loss so far."""
    highest_average: float = -math.inf
    """Highest slow average so far."""
    history: SeriesHistory = field(default_factory=SeriesHistory)
    is_stuck: bool = False
    """Whether the later half of the history shows no decline that noise could hide."""

    def ratio_to_reference(self, loss: float) -> float:
        """Return how many times its reference a loss is; for positive losses, `loss / reference`.

        A negative loss may be as far below its reference as above it: an objective without a floor diverges downwards.
        Call it before `add`: the reference must be that of the steps before the loss.
        """
        if not self.first_losses:
            return 1.0
        unit = max(abs(self.reference), self.scale)
        if unit == 0:
            return 1.0
        distance = (loss - self.reference) / unit
        return 1.0 + (abs(distance) if loss < 0 else distance)

    @property
    def ratio_to_start(self) -> float:
        """The current loss as a multiple of its start; for positive losses, `current / start`."""
        if not self.first_losses:
            return 1.0
        unit = max(abs(self.start), max(self.first_losses) - min(self.first_losses))
        return 1.0 + (self.current - self.start) / unit if unit > 0 else 1.0

    @property
    def fallen_share(self) -> float:
        """Share of its scale by which the current loss is below its start; negative if it is above."""
        return (self.start - self.current) / self.scale if self.scale > 0 else 0.0

    def add(self, loss: float) -> None:
        """Add the next finite loss."""
        if len(self.first_losses) < FIRST_LOSSES and self.ratio_to_reference(loss) < BLOW_UP:
            self.first_losses.append(loss)
            self.start = sorted(self.first_losses)[-2:][0]
            self.scale = abs(self.start)
        self.count += 1
        self.recent_losses = [*self.recent_losses[1 - RECENT_COUNT :], loss]
        self.current = sorted(self.recent_losses)[len(self.recent_losses) // 2]
        if self.count == 1:
            self.slow_average = loss
        highest_input = self.slow_average + OUTLIER_SCALES * self.scale
        self.slow_average += (min(loss, highest_input) - self.slow_average) / min(self.count, SLOW_HORIZON)
        if self.lowest_current >= 0:
            self.slow_average = min(self.slow_average, max(self.current, 0.0) * MAX_LAG)
        self.lowest_current = min(self.lowest_current, self.current)
        self.highest_average = max(self.highest_average, self.slow_average)
        if self.lowest_current < 0:
            self.scale = max(abs(self.start), self.highest_average - self.lowest_current)
        self.reference = max(self.start, self.slow_average)
        self.history.add(loss)
        if self.count % STUCK_EVERY == 0:
            self.is_stuck = self._shows_no_decline()

    def fell_only_at_first(self) -> bool:
        """Whether the run is long enough to tell, and its loss was flat over the last three quarters."""
        if self.count < LONG_RUN:
            return False
        early, late = self.history.mean(0.25, 0.5)[0], self.history.mean(0.75, 1.0)[0]
        return early - late < FLAT_DECLINE * abs(early)

    def shows_no_learning(self) -> bool:
        """Whether the last quarter is no lower than the first losses, nor than the quarter before, except for noise.

        This is weaker than `is_stuck`, which a noisy loss cannot show. It is meant for runs that other evidence makes
        suspect.
        """
        if len(self.first_losses) < FIRST_LOSSES:
            return False
        late, deviation, count = self.history.moments(0.75, 1.0)
        fall = sum(self.first_losses) / FIRST_LOSSES - late
        if fall >= max(FLAT_DECLINE * self.scale, NOISE_ERRORS * deviation * math.sqrt(1 / FIRST_LOSSES + 1 / count)):
            return False
        earlier, error = self.history.mean(0.5, 0.75)
        noise = math.hypot(error, deviation / math.sqrt(count))
        return earlier - late < max(STUCK_DECLINE * self.scale, NOISE_ERRORS * noise)

    def has_fallen_below(self, level: float) -> bool:
        """Whether the slow average is well below a level that it once had, by more than noise explains."""
        fall = level - self.slow_average
        if fall <= RELEASE_DECLINE * abs(level):
            return False
        return fall > RELEASE_ERRORS * SLOW_ERROR * self.history.moments(0.5, 1.0)[1]

    def _shows_no_decline(self) -> bool:
        if self.count < 2 * FIRST_LOSSES:
            return False
        earlier, earlier_error = self.history.mean(0.5, 0.75)
        late, late_error = self.history.mean(0.75, 1.0)
        level = max(abs(earlier), abs(late))
        if level == 0:
            return True
        decline = (earlier - late) / level
        error = math.hypot(earlier_error, late_error) / level
        if decline >= STUCK_DECLINE or decline + NOISE_ERRORS * error >= STUCK_DECLINE_BOUND:
            return False
        means = self.history.bucket_means(0.5)
        return max(means) - min(means) < STUCK_WANDER * level
