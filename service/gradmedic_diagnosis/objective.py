"""What counts as progress of a run, and whether the run makes progress.

That is the loss, unless the user declared a metric, or that nothing measures progress. The loss of a policy gradient,
of adversaries or of a contrast within the batch measures none either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from gradmedic.protocol.runs import Loss, Objective, Training
from gradmedic.protocol.verdicts import Learning
from gradmedic_diagnosis.block import Block
from gradmedic_diagnosis.detectors.loss_mismatch import LINEAR
from gradmedic_diagnosis.learning import LearningTracker
from gradmedic_diagnosis.loss_progress import LossProgress

THE_LOSS = Objective(kind="loss", direction="minimize")
DISTANCES = ("squared_error", "absolute_error", "huber")
"""Kinds of losses that compare numbers with numbers."""


class ObjectiveTracker:
    """Follows the objective of one run, step by step.

    Args:
        training: Facts about the training: the declared objective, and what the client saw of the loss.
    """

    def __init__(self, training: Training) -> None:
        self._objective = training.objective or THE_LOSS
        self._is_declared = training.objective is not None
        self._is_surrogate = training.loss is not None and training.loss.surrogate is True
        self._is_given = training.loss is not None and training.loss.surrogate is False
        """Whether the loss was seen to compare the output with given targets."""
        self._may_rise = training.loss is not None and compares_chosen_values(training.loss)
        self.constant_level = math.nan if training.loss is None else _read_constant_level(training, self._objective)
        """Loss of a predictor with a constant output; NaN where it is unknown or does not bound the objective."""
        self._learning = LearningTracker()
        self._metric_progress = LossProgress()
        """Progress of a metric, with the sign that makes smaller better."""

    @property
    def is_loss(self) -> bool:
        """Whether the loss is the objective."""
        return self._objective.kind == "loss"

    @property
    def measures_progress(self) -> bool:
        """Whether the objective measures progress: as declared, else as the loss looks."""
        if self._is_declared:
            return self._objective.kind != "none"
        return not self._is_surrogate and self._learning.measures_progress

    @property
    def is_loss_measure(self) -> bool:
        """Whether the loss measures progress. Beside a declared metric, that must have been seen."""
        return self.measures_progress if self.is_loss else self._is_given

    def read(self, block: Block, losses: Sequence[float | None]) -> Sequence[float | None]:
        """Return what counts as progress at each step, so that smaller is better; None where a step has none."""
        objective = self._objective
        if objective.kind == "none":
            return [None] * len(block)
        values = losses
        if objective.kind == "metric":
            series = block.metrics.get(objective.metric or "")
            values = [None] * len(block) if series is None else series.to_list(None)
        if objective.direction == "maximize":
            return [None if value is None else -value for value in values]
        return values

    def add(self, value: float | None, loss: LossProgress, step: int, learning_rate: float) -> LossProgress:
        """Read the next value of `read`; return the progress of the objective.

        Args:
            value: The value; None where the step has none.
            loss: Progress of the loss, which has read the loss of this step already.
            step: The step.
            learning_rate: NaN where it is unknown.
        """
        progress = self._metric_progress if self._objective.kind == "metric" else loss
        if value is not None and math.isfinite(value):
            if progress is self._metric_progress:
                progress.add(value)
            self._learning.add(value, progress, step, learning_rate, self.constant_level)
        return progress

    def judge(self, *, has_several_streams: bool) -> Learning:
        """Return what the objective does. Losses that take turns, as in a GAN, say nothing of progress.

        Nor does a loss that gets worse while the training computes its targets itself.
        """
        if not self.measures_progress or (has_several_streams and self._objective.kind != "metric"):
            return "unknown"
        is_no_news = self._may_rise and not self._is_declared and self._learning.state == "worsening"
        return "unknown" if is_no_news else self._learning.state

    def describe(self) -> str:
        """Describe an objective that is stuck or gets worse in one sentence; empty for the other states."""
        return self._learning.describe(self._objective, self.constant_level)

    def to_state(self) -> dict[str, Any]:
        """Return the state, for `pack_state`."""
        state = {"learning": self._learning.to_state()}
        if self._objective.kind == "metric":
            state["metric"] = self._metric_progress.to_state()
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the state that `to_state` returned; what an older state does not have keeps its first value."""
        self._learning.restore(state.get("learning", {}))
        self._metric_progress.restore(state.get("metric", {}))


def compares_chosen_values(loss: Loss) -> bool:
    """Whether a loss compares the value of a chosen action, as in Q-learning, with a target.

    Such a training computes its targets from its own values. They grow with the rewards that it learns to get, and the
    loss with them (Mnih et al. 2015, "Human-level control through deep reinforcement learning").

    >>> compares_chosen_values(Loss(kind="huber", operations=["SmoothL1Loss", "Select", "Gather", "Addmm"]))
    True
    >>> compares_chosen_values(Loss(kind="squared_error", operations=["MseLoss", "Addmm", "Gather"]))
    False
    """
    of_loss = takewhile(lambda operation: operation not in LINEAR, loss.operations)
    return loss.kind in DISTANCES and "Gather" in of_loss


def _read_constant_level(training: Training, objective: Objective) -> float:
    """Return the loss of a predictor with a constant output; NaN where it is unknown or no bound of the objective."""
    loss = training.loss
    if loss is None or loss.surrogate or loss.constant_level is None or objective != THE_LOSS:
        return math.nan
    if compares_chosen_values(loss):
        return math.nan  # the targets of the first batches say nothing of later ones
    return loss.constant_level if loss.constant_level > 0 else math.nan
