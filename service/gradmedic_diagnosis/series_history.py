"""The whole history of a series in constant memory, at a resolution that halves whenever the history is full."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gradmedic_diagnosis.state import Persistent

MAX_BUCKETS = 32
"""Most buckets of a history. Once it has filled up for the first time, between 16 and 32 are in use."""


@dataclass(slots=True)
class SeriesHistory(Persistent):
    """The history: at most `MAX_BUCKETS` buckets of equal width. The width doubles when they are full.

    A stretch of the history is given as two shares of it, 0 being the first value and 1 the last one. So a stretch is
    long or short in relation to the run, whatever the run's length.
    """

    width: int = 1
    """Values per bucket."""
    counts: list[int] = field(default_factory=list)
    """Number of values in each bucket."""
    sums: list[float] = field(default_factory=list)
    """Sum of the values in each bucket."""
    squares: list[float] = field(default_factory=list)
    """Sum of the squared values in each bucket."""

    def add(self, value: float) -> None:
        """Append one finite value."""
        if not self.counts or self.counts[-1] == self.width:
            if len(self.counts) == MAX_BUCKETS:
                self._halve_resolution()
            self.counts.append(0)
            self.sums.append(0.0)
            self.squares.append(0.0)
        self.counts[-1] += 1
        self.sums[-1] += value
        self.squares[-1] += value * value

    def _halve_resolution(self) -> None:
        self.width *= 2
        self.counts = [a + b for a, b in zip(self.counts[::2], self.counts[1::2], strict=True)]
        self.sums = [a + b for a, b in zip(self.sums[::2], self.sums[1::2], strict=True)]
        self.squares = [a + b for a, b in zip(self.squares[::2], self.squares[1::2], strict=True)]

    def bucket_means(self, start: float) -> list[float]:
        """Return the means of the buckets from a share of the history on; the last bucket only if it is half full."""
        first = min(int(len(self.counts) * start), len(self.counts) - 1)
        stop = len(self.counts) - (self.counts[-1] < self.width / 2)
        return [self.sums[i] / self.counts[i] for i in range(first, max(first + 1, stop))]

    def mean(self, start: float, stop: float) -> tuple[float, float]:
        """Return the mean of a stretch, in whole buckets, and the standard error of the mean."""
        mean, deviation, count = self.moments(start, stop)
        return mean, deviation / math.sqrt(count)

    def moments(self, start: float, stop: float) -> tuple[float, float, int]:
        """Return mean, standard deviation and number of the values of a stretch, in whole buckets."""
        n = len(self.counts)
        first = min(int(n * start), n - 1)
        last = max(first + 1, math.ceil(n * stop))
        count = sum(self.counts[first:last])
        mean = sum(self.sums[first:last]) / count
        variance = max(0.0, sum(self.squares[first:last]) / count - mean * mean)
        return mean, math.sqrt(variance), count
