"""Is the loss still getting anywhere?

One idea: keep the whole history at a resolution that halves whenever it fills up (`History`), so that "long" always
means long for *this* run, in constant memory. A run is stuck when the later half of its life shows no decline that the
noise could hide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gradmedic_diagnosis.state import Persistent

BUCKETS = 32
"""Buckets of a history; between 16 and 32 are in use once it has filled."""

FIRST_VALUES = 5
"""A run's start is the second largest of this many losses: no single odd batch and no fast descent defines it."""

BLOW_UP = 10.0
"""Times its reference from which a loss has blown up: the outcome that defines an exploding run. Such a loss does not
count towards the start."""

OUTLIER = 3.0
"""The slow average takes a loss at most this many scales above itself, so that a blow-up does not become the norm that
it is judged against (a z-score with the sample inside its own window cannot exceed sqrt(n - 1))."""

RECENT = 9
"""The loss now is the median of this many: neither one bad batch nor a blow-up of four steps defines it."""
SLOW_HORIZON = 40
"""Steps that the slow average looks back; a factor 5 apart from the recent ones, as in a moving-average crossover."""
LAG = 3.0
"""The slow average of a positive loss never stands more than this many times above the loss now: after a steep descent
it would otherwise hide a blow-up for hundreds of steps."""

LONG = 200
"""Losses from which on a run has a beginning to tell from the rest."""
FLAT = 0.1
"""Share of itself that a flat loss may still lose over the last three quarters of the run."""
STUCK_EVERY = 4
"""Losses after which the question is asked again; the answer needs many more than that to change."""
STUCK_DECLINE = 0.03
"""A loss that fell by less than this share of itself over the later half of the run is not falling ..."""
STUCK_DECLINE_BOUND = 0.12
"""... provided that even the upper end of the decline's confidence interval is below this share."""
STUCK_WANDER = 0.4
"""A loss whose averages wander over more than this share of themselves is going somewhere, if not down: a network that
is cut off from its input repeats the same loss."""
NOISE_ERRORS = 2.0
"""Standard errors that a difference of losses must exceed to be one (95 %)."""
RELEASE = 0.1
"""Share by which the slow average must fall below the level at which the loss was found stuck before it counts as
moving again. Whether a noisy loss is stuck flickers; this does not."""
RELEASE_ERRORS = 3.0
"""Standard errors by which it must have fallen, too: the question is asked at every step, and noise has many tries."""
SLOW_ERROR = math.sqrt(2 / (2 * SLOW_HORIZON - 1))
"""Standard error of the difference of two slow averages far apart, in standard deviations of a loss."""


@dataclass(slots=True)
class History(Persistent):
    """A series at falling resolution: `BUCKETS` buckets of equal width, which doubles when they are full."""

    width: int = 1
    counts: list[int] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Append one finite value."""
        if not self.counts or self.counts[-1] == self.width:
            if len(self.counts) == BUCKETS:
                self._halve()
            self.counts.append(0)
            self.sums.append(0.0)
            self.squares.append(0.0)
        self.counts[-1] += 1
        self.sums[-1] += value
        self.squares[-1] += value * value

    def _halve(self) -> None:
        self.width *= 2
        self.counts = [a + b for a, b in zip(self.counts[::2], self.counts[1::2], strict=True)]
        self.sums = [a + b for a, b in zip(self.sums[::2], self.sums[1::2], strict=True)]
        self.squares = [a + b for a, b in zip(self.squares[::2], self.squares[1::2], strict=True)]

    def means(self, start: float) -> list[float]:
        """Return the buckets' means from a share (0 to 1) of the history on; the last bucket only if half full."""
        first = min(int(len(self.counts) * start), len(self.counts) - 1)
        stop = len(self.counts) - (self.counts[-1] < self.width / 2)
        return [self.sums[i] / self.counts[i] for i in range(first, max(first + 1, stop))]

    def mean(self, start: float, stop: float) -> tuple[float, float]:
        """Return mean and standard error of the mean between two shares (0 to 1) of the history, in whole buckets."""
        mean, spread, count = self.spread(start, stop)
        return mean, spread / math.sqrt(count)

    def spread(self, start: float, stop: float) -> tuple[float, float, int]:
        """Return mean, standard deviation and number of values between two shares of the history, in whole buckets."""
        n = len(self.counts)
        first = min(int(n * start), n - 1)
        last = max(first + 1, math.ceil(n * stop))
        count = sum(self.counts[first:last])
        mean = sum(self.sums[first:last]) / count
        variance = max(0.0, sum(self.squares[first:last]) / count - mean * mean)
        return mean, math.sqrt(variance), count


@dataclass(slots=True)
class LossProgress(Persistent):
    """Where the finite losses of one stream (one optimizer's, in a GAN) came from and are going."""

    count: int = 0
    first: list[float] = field(default_factory=list)
    start: float = math.nan
    """Loss at the beginning; NaN before there is one."""
    scale: float = math.nan
    """What counts as one unit of loss here: its start; for a loss that was negative, at least its range so far."""
    reference: float = math.nan
    """What the next loss is held against: the start or the slow average, whichever is higher."""
    recent: list[float] = field(default_factory=list)
    fast: float = 0.0
    """The loss now: median of the recent ones."""
    slow: float = 0.0
    lowest: float = math.inf
    """Of the loss now."""
    highest: float = -math.inf
    """Of the slow average."""
    history: History = field(default_factory=History)
    is_stuck: bool = False
    """Whether the later half of the history shows no decline, beyond what noise could hide."""

    def excess(self, loss: float) -> float:
        """Return how many times its reference a loss is; for positive losses, plainly `loss / reference`.

        A negative loss is as far out below as above: an objective without a floor diverges downwards. The reference
        must be that of the steps before it.
        """
        if not self.first:
            return 1.0
        unit = max(abs(self.reference), self.scale)
        if unit == 0:
            return 1.0
        distance = (loss - self.reference) / unit
        return 1.0 + (abs(distance) if loss < 0 else distance)

    @property
    def rise(self) -> float:
        """How many times its start the loss is now; for positive losses, plainly `loss / start`."""
        if not self.first:
            return 1.0
        unit = max(abs(self.start), max(self.first) - min(self.first))
        return 1.0 + (self.fast - self.start) / unit if unit > 0 else 1.0

    def observe(self, loss: float) -> None:
        """Take the next finite loss."""
        if len(self.first) < FIRST_VALUES and self.excess(loss) < BLOW_UP:
            self.first.append(loss)
            self.start = sorted(self.first)[-2:][0]
            self.scale = abs(self.start)
        self.count += 1
        self.recent = [*self.recent[1 - RECENT :], loss]
        self.fast = sorted(self.recent)[len(self.recent) // 2]
        if self.count == 1:
            self.slow = loss
        self.slow += (min(loss, self.slow + OUTLIER * self.scale) - self.slow) / min(self.count, SLOW_HORIZON)
        if self.lowest >= 0:
            self.slow = min(self.slow, max(self.fast, 0.0) * LAG)
        self.lowest = min(self.lowest, self.fast)
        self.highest = max(self.highest, self.slow)
        if self.lowest < 0:
            self.scale = max(abs(self.start), self.highest - self.lowest)
        self.reference = max(self.start, self.slow)
        self.history.add(loss)
        if self.count % STUCK_EVERY == 0:
            self.is_stuck = self._shows_no_decline()

    @property
    def fallen(self) -> float:
        """Share of its scale by which the loss is below its start now; negative above it."""
        return (self.start - self.fast) / self.scale if self.scale > 0 else 0.0

    def fell_at_first_only(self) -> bool:
        """Whether the loss has been flat for the last three quarters of a run of some length."""
        if self.count < LONG:
            return False
        early, now = self.history.mean(0.25, 0.5)[0], self.history.mean(0.75, 1.0)[0]
        return early - now < FLAT * abs(early)

    def shows_no_learning(self) -> bool:
        """Whether the last quarter is no lower than the first losses, nor than the one before, but for noise.

        Weaker than `is_stuck`, which a noisy loss cannot show: for runs that there is every reason to doubt.
        """
        if len(self.first) < FIRST_VALUES:
            return False
        later, spread, count = self.history.spread(0.75, 1.0)
        fall = sum(self.first) / FIRST_VALUES - later
        if fall >= max(FLAT * self.scale, NOISE_ERRORS * spread * math.sqrt(1 / FIRST_VALUES + 1 / count)):
            return False
        earlier, error = self.history.mean(0.5, 0.75)
        noise = math.hypot(error, spread / math.sqrt(count))
        return earlier - later < max(STUCK_DECLINE * self.scale, NOISE_ERRORS * noise)

    def has_left(self, level: float) -> bool:
        """Whether the slow average is well below a level that it once had, further than noise alone would take it."""
        fall = level - self.slow
        if fall <= RELEASE * abs(level):
            return False
        return fall > RELEASE_ERRORS * SLOW_ERROR * self.history.spread(0.5, 1.0)[1]

    def _shows_no_decline(self) -> bool:
        if self.count < 2 * FIRST_VALUES:
            return False
        earlier, earlier_error = self.history.mean(0.5, 0.75)
        later, later_error = self.history.mean(0.75, 1.0)
        level = max(abs(earlier), abs(later))
        if level == 0:
            return True
        decline = (earlier - later) / level
        error = math.hypot(earlier_error, later_error) / level
        if decline >= STUCK_DECLINE or decline + 2 * error >= STUCK_DECLINE_BOUND:
            return False
        means = self.history.means(0.5)
        return max(means) - min(means) < STUCK_WANDER * level
