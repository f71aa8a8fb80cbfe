"""The measure by which a trial is judged: its loss, its loss in `eval()`, or a metric.

An operator names it in `worker.toml` (`judge_by`), a script in `init(objective=...)`; otherwise it is the loss. A loss
is corrected by what the evaluation at the end of a trial shows: what batch normalization and dropout do in `train()`
says little of how good the model is.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.objectives import format_objective
from gradmedic.protocol.runs import Loss, Objective, Training
from gradmedic.protocol.trial_report import TrialEvaluation
from gradmedic.protocol.verdicts import Learning
from gradmedic_service.reruns.loss_curves import (
    EVALUATED_LOSS,
    LOSS,
    LossCurve,
    Measure,
    best_level,
    digest_of,
    final_loss,
    start_loss,
    summarize_losses,
)

THE_LOSS = Objective(kind="loss", direction="minimize")
MOST_OUTPUT_DIFFERENCE = 0.5
"""Difference between the outputs in `eval()` and in `train()`, as a share of their own standard deviation, up to which
the loss in `train()` counts as that of the model. A judgement: at 1, the outputs in `eval()` say no more of those in
`train()` than a constant does. It decides only where the loss itself cannot be computed in `eval()`."""
CONTRAST = "cross_entropy"
"""Kind of a surrogate that still measures progress: a contrast within the batch falls only as pairs are told apart."""
NAME_A_METRIC = "name a metric with judge_by in worker.toml"


def choose_objective(judge_by: Objective | None, training: Training | None) -> Objective | None:
    """Return the declared objective of a trial: the operator's, else the script's; None if neither declares one."""
    return judge_by or (None if training is None else training.objective)


def summarize_trial(
    losses: NDArray[np.float64],
    declared: Objective | None,
    values: NDArray[np.float64],
    training: Training | None,
    evaluation: TrialEvaluation | None,
    learning: Learning = "unknown",
) -> LossCurve | None:
    """Return the losses and the measure of a trial that has ended; None if it has no loss and declares no objective.

    Args:
        losses: its losses in the order of the steps.
        declared: its declared objective.
        values: values of the objective in the order of the steps: those of its metric, else the losses.
        training: facts about the training of its run.
        evaluation: what its models compute in `eval()`.
        learning: what its objective does at its end, by its diagnosis.
    """
    curve = summarize_losses(losses)
    if curve is None and declared is None:
        return None
    if curve is None:
        curve = LossCurve(steps=0, start=math.nan, best=math.inf, final=math.nan, digest=digest_of(values))
    return replace(curve, measure=measure_trial(declared, values, training, evaluation), learning=learning)


def measure_trial(
    declared: Objective | None,
    values: NDArray[np.float64],
    training: Training | None,
    evaluation: TrialEvaluation | None,
) -> Measure:
    """Return the measure of a trial that has ended.

    Args:
        declared: the declared objective; None if there is none, so that the loss counts.
        values: values of the objective in the order of the steps: those of its metric, else the losses.
        training: facts about the training of the trial's run.
        evaluation: what the trial's models compute in `eval()`.
    """
    objective = declared or THE_LOSS
    judged_by = LOSS if objective == THE_LOSS else format_objective(objective)
    if objective.kind == "none":
        return Measure(judged_by=judged_by, problem=f"no number measures its progress: {NAME_A_METRIC}")
    if not len(values):
        if objective.kind == "loss":
            return Measure(judged_by=judged_by, problem="it reports no loss")
        problem = f"the metric {objective.metric!r}, by which it is judged, was never logged"
        return Measure(judged_by=judged_by, problem=problem)
    sign = -1.0 if objective.direction == "maximize" else 1.0
    measure = Measure(
        judged_by=judged_by,
        start=start_loss(values if objective.kind == "loss" else values[:1]),
        best=sign * best_level(sign * values),
        final=sign * final_loss(sign * values),
    )
    if objective != THE_LOSS:
        return measure
    loss = Loss() if training is None or training.loss is None else training.loss
    if declared is None and loss.surrogate and loss.kind != CONTRAST:
        return replace(measure, problem=f"its loss is a surrogate that measures no progress: {NAME_A_METRIC}")
    level = loss.constant_level
    if level is not None and level > 0 and not loss.surrogate:
        measure = replace(measure, constant_level=level)
    return measure if evaluation is None else _correct(measure, evaluation)


def _correct(measure: Measure, evaluation: TrialEvaluation) -> Measure:
    """Return the measure of a loss as it is in `eval()`."""
    training_loss, loss = evaluation.training_loss, evaluation.loss
    if loss is not None and training_loss is not None:
        if not math.isfinite(training_loss) or not math.isfinite(measure.final) or measure.final > measure.start:
            return measure  # the training has failed in `train()` already: its end says nothing of its best level
        return replace(
            measure,
            judged_by=EVALUATED_LOSS,
            final=_correct_level(measure.final, training_loss, loss),
            best=_correct_level(measure.best, training_loss, loss),
        )
    difference = evaluation.output_difference
    if difference is None or difference <= MOST_OUTPUT_DIFFERENCE:
        return measure
    problem = (
        f"its outputs in eval() differ from those in train() by {difference:.0%} of their own standard deviation, and "
        f"its loss could not be computed in eval(): {NAME_A_METRIC}"
    )
    return replace(measure, problem=problem)


def _correct_level(level: float, training_loss: float, loss: float) -> float:
    """Return a level of the loss in `train()` as it is in `eval()`, from both losses on the last batches.

    The difference is added. Where `eval()` is better, the level falls by no larger share of itself than the loss of
    these batches does: a few batches that are harder than the others would else make it negative.

    >>> _correct_level(1.0, 0.5, 2.5), _correct_level(0.3, 1.0, 0.5)
    (3.0, 0.15)
    """
    corrected = level + (loss - training_loss)  # in this order: huge losses would swallow the level
    return max(corrected, level * loss / training_loss) if 0 <= loss < training_loss and level > 0 else corrected
