"""Whether a trial is better than its control: the criterion of `verified`, without input or output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import stdev
from typing import Final

from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS, Learning
from gradmedic_service.reruns.loss_curves import EVALUATED_LOSS, LOSS, LossCurve, Measure, has_converged

MIN_DECLINE = 0.1
"""Share of its start loss by which a trial's loss must have fallen, and of a constant answer's loss by which it must be
below that. Without this margin, a thousandth below a control that learned nothing would count as learning. The loss of
a constant answer is estimated from a few batches: the variance of 256 targets is right to 9 % (its standard error is
the square root of 2 / 256)."""
NO_PROGRESS: Final[tuple[Learning, ...]] = ("stuck", "worsening")
"""What the objective of a training does that learns nothing."""
ENDED = ("done", "failed", "cancelled", "stopped", "not_applicable")
"""Statuses of trials that have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialState:
    """One candidate on one seed, as it stands."""

    candidate: int
    seed: int
    status: str
    verdict: str = "undetermined"
    curve: LossCurve | None = None
    """Summary of a trial that has ended; None where it has reported no number to judge it by."""
    rungs: tuple[float, ...] = ()
    """Loss at each rung that the trial has passed; infinity where it was unhealthy there."""
    seconds: float = 0.0
    reason: str | None = None
    """Why the trial did not run to its end."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions and device that the trial ran on."""

    @property
    def has_ended(self) -> bool:
        """Whether the trial has ended."""
        return self.status in ENDED

    @property
    def measure(self) -> Measure | None:
        """What the trial is judged by; None where it has reported no number to judge it by."""
        curve = self.curve
        if curve is None or curve.measure is not None:
            return None if curve is None else curve.measure
        return Measure(judged_by=LOSS, start=curve.start, best=curve.best, final=curve.final)

    @property
    def has_converged(self) -> bool:
        """Whether the loss is so small that almost nothing is left to learn."""
        if self.curve is None or self.measure is None:
            return False
        return has_converged(self.curve.final, self.curve.start, self.measure.constant_level)

    @property
    def is_unhealthy(self) -> bool:
        """Whether the trial vanishes or explodes. The gradients of a training that has converged may vanish."""
        return self.verdict in UNHEALTHY_VERDICTS and not (self.verdict == "vanishing" and self.has_converged)

    @property
    def learns_nothing(self) -> bool:
        """Whether its objective is stuck or gets worse, or its loss ends no better than that of a constant answer."""
        curve, measure = self.curve, self.measure
        if curve is None or measure is None or self.has_converged:
            return False
        return curve.learning in NO_PROGRESS or _is_constant(measure)

    @property
    def has_failed(self) -> bool:
        """Whether a rerun has something to repair in it: its gradients are unhealthy, or it learns nothing."""
        return self.is_unhealthy or self.learns_nothing

    @property
    def is_healthy(self) -> bool:
        """Whether the verdict is healthy, or vanishing of a training that has converged."""
        return self.verdict == "healthy" or (self.verdict == "vanishing" and self.has_converged)


def is_better(trial: TrialState, control: TrialState) -> bool:
    """Whether a trial meets the criterion of `verified` on its seed, apart from the spread between seeds."""
    return reason_not_better(trial, control) is None


def reason_not_better(trial: TrialState, control: TrialState, spread: float = 0.0) -> str | None:
    """Return why a trial does not meet the criterion of `verified` on its seed; None if it does.

    It ran to its end, it is healthy, and it ends better than the control's best level. A loss must also be at least a
    tenth below its own start, and below the loss of a constant answer where that is known; a metric must have improved
    by a tenth where the control has never logged it.

    Args:
        trial: the trial.
        control: the control on the same seed.
        spread: standard deviation between the seeds of the trial's candidate, by which it must be better.
    """
    measure, other = trial.measure, control.measure
    if trial.status != "done":
        return trial.reason or f"it is {trial.status}"
    if not trial.is_healthy:
        return f"it is {trial.verdict}"
    if measure is None:
        return "it reports no loss"
    if measure.problem is not None:
        return measure.problem
    name = _name(measure)
    if not math.isfinite(measure.final):
        return f"its {name} ends as {measure.final:g}"
    if control.curve is None and not control.is_unhealthy:
        return "the control did not run, so that there is nothing to compare with"
    level = measure.constant_level
    if level is not None and _is_constant(measure):
        relation = "is no better than" if measure.final >= level else "is less than a tenth below"
        return f"its {name} {measure.final:.3g} {relation} a constant answer's {level:.3g}"
    final = measure.sign * measure.final
    is_compared = other is not None and (other.judged_by == measure.judged_by or (other.is_loss and measure.is_loss))
    if is_compared and other is not None and math.isfinite(other.best):
        if (measure.judged_by, other.judged_by) == (EVALUATED_LOSS, LOSS) and trial.curve is not None:
            final = max(final, trial.curve.final)  # a control that failed was not evaluated: both losses are in train()
        best = other.sign * other.best
        if not final < best:
            return f"its {name} {measure.final:.3g} is no better than the control's best, {other.best:.3g}"
        if not final < best - spread:
            return (
                f"its {name} {measure.final:.3g} is better than the control's best, {other.best:.3g}, by less than the "
                f"spread of the seeds, {spread:.2g}"
            )
        if not measure.is_loss:
            return None
    if not measure.sign * measure.final <= measure.sign * measure.start - MIN_DECLINE * abs(measure.start):
        return f"its {name} did not improve by a tenth: it began at {measure.start:.3g} and ends at {measure.final:.3g}"
    return None


def find_reason_not_verified(trials: Sequence[TrialState], controls: Mapping[int, TrialState]) -> str | None:
    """Return why the trials of a candidate do not verify it; None if they do, as far as they go."""
    spread = _spread(trials)
    for trial in trials:
        if trial.status == "stopped":
            return f"stopped early: {trial.reason}"
        if trial.seed not in controls:
            return f"the control did not run on seed {trial.seed}"
        if (reason := reason_not_better(trial, controls[trial.seed], spread)) is not None:
            return f"on seed {trial.seed}: {reason}"
    return None


def _is_constant(measure: Measure) -> bool:
    """Whether a loss is no better than that of a constant answer: less than a tenth below it."""
    level = measure.constant_level
    return level is not None and measure.final > (1.0 - MIN_DECLINE) * level


def _name(measure: Measure) -> str:
    """Return the name of a measure in a sentence.

    >>> _name(Measure(judged_by="maximize val_accuracy")), _name(Measure(judged_by="loss in eval()"))
    ('val_accuracy', 'loss in eval()')
    """
    return measure.judged_by if measure.is_loss else measure.judged_by.partition(" ")[2]


def _spread(trials: Iterable[TrialState]) -> float:
    """Return the standard deviation of the final values of trials on several seeds; 0 for a single one.

    Trials with identical losses count once.
    """
    finals = {
        trial.curve.digest: trial.measure.final
        for trial in trials
        if trial.curve is not None and trial.measure is not None
    }
    values = [value for value in finals.values() if math.isfinite(value)]
    return stdev(values) if len(values) > 1 else 0.0
