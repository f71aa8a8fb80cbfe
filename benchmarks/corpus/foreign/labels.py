"""Labels of the foreign part, from the outcome alone: the loss, the weights and the skill.

No gradient and no diagnosis is read. A run whose outcome is ambiguous, or contradicts what was meant, is dropped with
its reason. The rules, in their order:

1. A weight, or every loss of the last steps, is non-finite: *exploding, critical*.
2. The loss ended above ten times its start, and the run has no skill or the loss is no surrogate: *exploding,
   critical*.
3. The run has its skill at the end: *healthy, ok*. If it has a fault and less than nine tenths of its twin's skill, or
   a fault that let its surrogate loss end above ten times its start, it is ambiguous.
4. The loss peaked above ten times its start, or the run had its skill and lost it and the loss ended a fifth above its
   start: *exploding, critical*.
5. Its fault is one of signal, its twin learns, and it has at most a quarter of the twin's skill: *vanishing, critical*.
6. It has another fault, its twin learns, and it has at most half of its twin's skill: *healthy, attention*. A run that
   learned targets without a rule by heart is ambiguous.
7. It had its skill and lost it, and its loss was never more than a fifth above its start, or is a surrogate: *healthy,
   attention*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

BLOW_UP: Final = 10.0
"""A loss this many times its start is an explosion (the rule of the shared recordings)."""
RISEN: Final = 1.2
"""A loss that ended above this many times its start is above it, and not for its noise."""
VANISHING_SHARE: Final = 0.25
"""A vanishing run has at most this share of its twin's skill (as in `benchmarks.corpus.outcome`)."""
STUCK_SHARE: Final = 0.5
"""A run that is stuck or got worse has at most this share of its twin's skill."""
KEPT_SHARE: Final = 0.9
"""A fault that does no harm leaves at least this share of the twin's skill."""
FALLING: Final = 0.05
"""A loss that falls by this share of its start in the last quarter of a run has not settled: it learns late."""
BY_HEART: Final = 0.25
"""A loss that fell by this share of its start over targets without a rule was learned by heart: it is no failure that
the loss could show."""
CLEAR: Final = 4.0
"""Standard errors by which two means differ beyond noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What the labels depend on."""

    losses: list[float]
    died: bool
    skill: float
    """Skill at the end; minus infinity without a finite one."""
    best_skill: float
    """Largest skill at a checkpoint."""
    min_skill: float
    surrogate: bool

    @property
    def learns(self) -> bool:
        """Whether the run has its skill at the end."""
        return not self.died and self.skill >= self.min_skill

    @property
    def start(self) -> float:
        """The first loss; for a loss of both signs the median size of the first twenty, for a surrogate the largest."""
        first = [abs(loss) for loss in self.losses[:20] if math.isfinite(loss)]
        if self.surrogate:
            return max(first, default=math.nan)
        if any(loss < 0 for loss in self.losses):
            return float(np.median(first)) if first else math.nan
        return self.losses[0] if math.isfinite(self.losses[0]) else (first[0] if first else math.nan)

    @property
    def end(self) -> float:
        """The median of the last ten losses."""
        return float(np.median(self.losses[-10:]))

    @property
    def peak(self) -> float:
        """The largest finite loss."""
        return max((loss for loss in self.losses if math.isfinite(loss)), default=math.nan)

    @property
    def is_still_falling(self) -> bool:
        """Whether the loss fell by a twentieth of its start, and beyond its noise, over the last quarter."""
        quarter = max(1, len(self.losses) // 4)
        before, last = np.array(self.losses[-2 * quarter : -quarter]), np.array(self.losses[-quarter:])
        error = float(np.hypot(before.std(), last.std())) / math.sqrt(quarter)
        return float(last.mean()) < float(before.mean()) - max(FALLING * self.start, CLEAR * error)


@dataclass(frozen=True, slots=True)
class Label:
    """The labels of a run. Both are None for a run that is dropped."""

    verdict: str | None
    """`healthy`, `vanishing` or `exploding`."""
    level: str | None
    """`ok`, `attention` or `critical`."""
    why: str


def label_of(ending: Ending, kind: str, twin_skill: float | None) -> Label:
    """Return the labels of a run, by the rules of this module.

    Args:
        ending: outcome of the run.
        kind: what was meant: `healthy`, or the kind of the fault (`blow_up`, `signal`, `irreducible`, `other`).
        twin_skill: skill of the repaired twin; None for a run without a fault.
    """
    label = _by_outcome(ending, kind, twin_skill)
    if kind == "healthy" and label.level not in (None, "ok"):
        return Label(None, None, f"meant to be healthy, but: {label.why}")
    return label


def _by_outcome(ending: Ending, kind: str, twin_skill: float | None) -> Label:
    if ending.died:
        return Label("exploding", "critical", "the loss or a weight turned non-finite for good")
    has_risen = ending.end > BLOW_UP * ending.start
    if has_risen and not (ending.surrogate and ending.learns):
        return Label("exploding", "critical", "the loss ended above ten times its start")
    if ending.learns:
        if has_risen and kind == "blow_up":
            return Label(None, None, "it learns while its surrogate loss grows without bound")
        if twin_skill is not None and ending.skill < KEPT_SHARE * twin_skill:
            return Label(None, None, "it learns, and clearly less than its twin")
        return Label("healthy", "ok", "it has its skill at the end")
    blew_up = ending.peak > BLOW_UP * ending.start
    if blew_up or (not ending.surrogate and ending.end > RISEN * ending.start and _has_lost(ending)):
        return Label("exploding", "critical", "it has no skill after a blow-up")
    if twin_skill is None:
        return Label(None, None, "it does not learn")
    if ending.is_still_falling and not ending.surrogate:
        return Label(None, None, "its loss was still falling when the run ended")
    share = max(ending.skill, 0.0) / twin_skill
    if kind == "signal":
        if share <= VANISHING_SHARE:
            return Label("vanishing", "critical", "finite, and at most a quarter of the twin's skill")
        return Label(None, None, "between a quarter of the twin's skill and the program's minimum")
    if kind == "irreducible" and ending.end < ending.start - BY_HEART * abs(ending.start):
        return Label(None, None, "it learns its training data by heart")
    if kind in ("other", "irreducible"):
        if share <= STUCK_SHARE:
            return Label("healthy", "attention", "finite, and at most half of the twin's skill")
        return Label(None, None, "between half of the twin's skill and the program's minimum")
    if _has_lost(ending) and share <= STUCK_SHARE and (ending.surrogate or ending.peak <= RISEN * ending.start):
        return Label("healthy", "attention", "it got worse and lost its skill, without a blow-up")
    return Label(None, None, "meant to blow up, but it neither learns nor blows up")


def _has_lost(ending: Ending) -> bool:
    """Whether the run had its skill at a checkpoint, and has at most half of its best one at the end."""
    return ending.best_skill >= ending.min_skill and ending.skill <= STUCK_SHARE * ending.best_skill
