"""Decides whether the norm of a gradient is a spike: far above the norms that the same training usually has.

A norm is a spike only if it is above each of three limits. The history has the norms of the steps that were taken, so
the limits follow a training whose norms decay or grow.

1. Several times the usual largest norm: the 95 % quantile of the last hundred, or the largest of the last few. The
   second makes a gradient that grows from step to step no spike: such a gradient comes from the weights, and a training
   that leaves out a step meets it again.
2. Eight standard deviations of the logarithm above the median. This one counts where norms vary by orders of magnitude:
   in recurrent networks, in policies, in a classifier that has nearly fitted its data.
3. Several times the third-largest norm of the last thousand steps. A rare kind of batch with large gradients, or a
   penalty that is computed at some steps only, is no spike as soon as it has come a few times.

ZClip (arXiv 2504.02507) clips at 2.5 standard deviations of an average over some thirty steps, AdaGC (arXiv 2502.11034)
at 1.05 times the average of each tensor. Both act often and a little. To leave out a step is more, so it must be rare.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections import deque

TIMES_USUAL = 4.0
"""A spike is above so many times the usual largest norm. The reruns' remedy has the same number by default."""
WINDOW = 100
"""Norms of steps that were taken, of which quantile and median are computed."""
FEWEST_NORMS = 20
"""Norms that must be known before a step is skipped: a twentieth of them is at least one."""
QUANTILE = 0.95
"""The usual largest norm: one step of twenty is above it."""
LAST_NORMS = 3
"""Norms of the last steps: none of them may be as large as the spike, up to TIMES_USUAL."""
SPREADS = 8.0
"""Distance of a spike from the median, in standard deviations of the logarithm. For normal logarithms, 2e-15 of the
norms are beyond; for exponential ones, which have a heavy tail, one in 150,000."""
DEVIATIONS_OF_QUANTILE = 1.645
"""Standard deviations between median and 95 % quantile of a normal distribution."""
MEMORY = 1000
"""Steps in which a large norm that came before counts."""
FEWEST_RECURRENCES = 3
"""A norm is no spike if as large ones, up to TIMES_USUAL, came so often in this memory."""
MOST_SKIPPED_IN_A_ROW = 5
"""After so many skipped steps in a row the next one is taken: larger gradients are no spike then, but the new level. A
spike comes from one batch, or lasts 1 to 8 steps (Wortsman et al. 2023, section 3.2)."""


class SpikeRule:
    """The norms of one optimizer's gradients, and what is a spike among them.

    Args:
        times_usual: a spike is above so many times the usual largest norm.
    """

    def __init__(self, times_usual: float = TIMES_USUAL) -> None:
        self._times_usual = times_usual
        self._norms: deque[float] = deque()
        self._sorted: list[float] = []
        self._memory: deque[float] = deque(maxlen=MEMORY)
        self._skipped: list[float] = []
        self._before: tuple[list[float], list[float]] | None = None
        """What was known when a new level began after too many spikes."""
        self._taken = 0
        self.limit = math.inf
        """Largest norm that was no spike at the last call of `is_spike`; infinite while too few norms are known."""

    @property
    def skipped_in_a_row(self) -> int:
        """Steps that were skipped since the last one that was taken."""
        return len(self._skipped)

    @property
    def is_exhausted(self) -> bool:
        """Whether as many steps were skipped in a row as may be: the next one is taken."""
        return len(self._skipped) >= MOST_SKIPPED_IN_A_ROW

    def is_spike(self, norm: float) -> bool:
        """Return whether a norm is a spike. One that is not finite is, as soon as enough norms are known."""
        if len(self._norms) < FEWEST_NORMS:
            self.limit = math.inf
            return False
        usual = self._sorted[int(QUANTILE * (len(self._sorted) - 1))]
        limit = self._times_usual * max(usual, *(self._norms[-1 - i] for i in range(LAST_NORMS)))
        self.limit = limit
        if norm <= limit:
            return False
        return not norm <= self._find_rare_limit(limit, usual)

    def note_taken(self, norm: float) -> None:
        """Note the norm of a step that was taken. After too many skipped steps in a row, theirs count too."""
        if self._skipped:
            if self.is_exhausted:
                self._before = list(self._norms), list(self._memory)
                self._norms.clear()
                self._sorted.clear()
                for skipped in self._skipped:
                    self._add(skipped)
            if finite := [skipped for skipped in self._skipped if math.isfinite(skipped)]:
                self._memory.append(max(finite))  # those in a row are one event
            self._skipped.clear()
        self._taken += 1
        if self._taken > FEWEST_NORMS and math.isfinite(norm):  # the first ones are often large
            self._memory.append(norm)
        self._add(norm)

    def go_back(self) -> None:
        """Forget the level that began after too many spikes: the training went back to before them."""
        if self._before is not None:
            (norms, memory), self._before = self._before, None
            self._norms.clear()
            self._sorted.clear()
            for norm in norms:
                self._add(norm)
            self._memory.clear()
            self._memory.extend(memory)
        self._skipped.clear()

    def note_skipped(self, norm: float) -> None:
        """Note the norm of a step that was skipped."""
        self._skipped.append(norm)

    def _find_rare_limit(self, limit: float, usual: float) -> float:
        """Return the largest of the limits. Most norms are below the first one, which is the cheapest."""
        median = self._sorted[len(self._sorted) // 2]
        deviation = math.log(usual / median) / DEVIATIONS_OF_QUANTILE
        spread = math.log(median) + SPREADS * deviation
        recurring = heapq.nlargest(FEWEST_RECURRENCES, self._memory)
        if len(recurring) == FEWEST_RECURRENCES:
            limit = max(limit, self._times_usual * recurring[-1])
        self.limit = max(limit, math.exp(spread) if spread < math.log(1e300) else math.inf)
        return self.limit

    def _add(self, norm: float) -> None:
        """Add a norm to the window. One of zero, of a step without gradients, shows nothing."""
        if not 0.0 < norm < math.inf:
            return
        if len(self._norms) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._norms.popleft())]
        self._norms.append(norm)
        insort(self._sorted, norm)
