"""The measure of a trial: the loss, the loss in `eval()`, or a metric; and why it may show nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradmedic.protocol.objectives import parse_objective
from gradmedic.protocol.runs import Loss, Objective, Training
from gradmedic.protocol.trial_report import TrialEvaluation
from gradmedic_service.reruns.loss_curves import EVALUATED_LOSS, LOSS, Measure, has_converged, loss_at_rung
from gradmedic_service.reruns.measures import choose_objective, measure_trial, summarize_trial

FALLING = np.array([2.5, 2.3, 2.2, 2.1, 2.0, 1.0, 0.8, 0.6, 0.5, 0.4])
REWARD = parse_objective("maximize reward")


def with_loss(**facts: object) -> Training:
    """Return facts about a training whose loss has these."""
    return Training(loss=Loss(**facts))  # type: ignore[arg-type]


def test_the_operators_word_outranks_the_scripts() -> None:
    """The objective is that of worker.toml, else that of the script, else none is declared."""
    declares = Training(objective=parse_objective("minimize val_loss"))
    assert choose_objective(REWARD, declares) == REWARD
    assert choose_objective(None, declares) == declares.objective
    assert choose_objective(None, Training()) is choose_objective(None, None) is None


def test_the_loss_has_the_level_of_a_constant_answer() -> None:
    """Without an objective, the loss counts, beside what a constant answer gets."""
    measure = measure_trial(None, FALLING, with_loss(constant_level=2.3), None)
    assert measure == Measure(judged_by=LOSS, start=2.2, best=0.4, final=0.4, constant_level=2.3)
    assert measure_trial(parse_objective("minimize loss"), FALLING, None, None).judged_by == LOSS
    for training in (None, Training(), with_loss(), with_loss(constant_level=-1.0)):
        assert measure_trial(None, FALLING, training, None).constant_level is None


@pytest.mark.parametrize(
    ("in_training", "in_eval", "final"),
    [(0.5, 3.0, 2.9), (0.2, 0.1, 0.3), (0.5, 0.5, 0.4), (4.0, 0.5, 0.05), (-1.0, -2.0, -0.6)],
)
def test_the_evaluation_corrects_the_loss(in_training: float, in_eval: float, final: float) -> None:
    """What `eval()` adds to the loss on the last batches is added to its levels; no batch makes an error negative."""
    evaluation = TrialEvaluation(batches=4, training_loss=in_training, loss=in_eval)
    measure = measure_trial(None, FALLING, with_loss(constant_level=2.3), evaluation)
    assert (measure.judged_by, measure.start, measure.constant_level) == (EVALUATED_LOSS, 2.2, 2.3)
    assert [measure.final, measure.best] == pytest.approx([final, final])


def test_an_evaluation_that_is_not_finite() -> None:
    """A loss that is NaN in `eval()` is NaN; one that is NaN in `train()` already is judged there."""
    bad = measure_trial(None, FALLING, None, TrialEvaluation(batches=1, training_loss=0.4, loss=math.nan))
    assert (bad.judged_by, math.isnan(bad.final)) == (EVALUATED_LOSS, True)
    lost = measure_trial(None, FALLING, None, TrialEvaluation(batches=1, training_loss=math.inf, loss=math.nan))
    assert (lost.judged_by, lost.final) == (LOSS, 0.4)


def test_the_evaluation_of_a_training_that_has_blown_up_leaves_its_best_level() -> None:
    """The losses of the end differ by their rounding alone, which is far more than the losses of the beginning."""
    rising = np.array([18.0] * 20 + [1e5] * 60 + [1e25] * 20)
    for in_eval in (1e25, 1e25 * (1 + 1e-7), 1e25 * (1 - 1e-7)):
        measure = measure_trial(None, rising, None, TrialEvaluation(batches=4, training_loss=1e25, loss=in_eval))
        assert (measure.judged_by, measure.best, measure.final) == (LOSS, 18.0, 1e25)


@pytest.mark.parametrize(("difference", "is_trusted"), [(0.5, True), (0.51, False), (math.inf, False), (None, True)])
def test_outputs_that_differ_wildly_need_a_measure(difference: float | None, is_trusted: bool) -> None:
    """Where the loss cannot be computed in `eval()`, outputs that differ by half of their deviation verify nothing."""
    evaluation = TrialEvaluation(batches=1, output_difference=difference)
    measure = measure_trial(None, FALLING, None, evaluation)
    assert (measure.judged_by, measure.final) == (LOSS, 0.4)
    assert (measure.problem is None) is is_trusted
    if difference == 0.51:
        assert measure.problem == (
            "its outputs in eval() differ from those in train() by 51% of their own standard deviation, and its loss "
            "could not be computed in eval(): name a metric with judge_by in worker.toml"
        )
    metric = measure_trial(REWARD, FALLING, None, evaluation)
    assert (metric.judged_by, metric.problem) == ("maximize reward", None)


def test_a_metric_has_its_own_direction() -> None:
    """The best level of a metric to be maximized is its highest, and its start is its first value."""
    measure = measure_trial(REWARD, -FALLING, with_loss(constant_level=2.3), None)
    assert measure == Measure(judged_by="maximize reward", start=-2.5, best=-0.4, final=-0.4)
    assert measure.sign == -1.0
    assert measure_trial(parse_objective("maximize loss"), FALLING, None, None).sign == -1.0


@pytest.mark.parametrize(
    ("objective", "training", "values", "problem"),
    [
        (REWARD, None, (), "the metric 'reward', by which it is judged, was never logged"),
        (parse_objective("minimize loss"), None, (), "it reports no loss"),
        (Objective(kind="none"), None, FALLING, "no number measures its progress: name a metric with judge_by"),
        (None, with_loss(surrogate=True, kind="other"), FALLING, "its loss is a surrogate that measures no progress"),
        (parse_objective("minimize loss"), with_loss(surrogate=True, kind="other"), FALLING, None),
        (None, with_loss(surrogate=True, kind="cross_entropy"), FALLING, None),
        (None, with_loss(surrogate=False), FALLING, None),
    ],
    ids=["no metric", "no loss", "none", "surrogate", "declared", "contrast", "loss"],
)
def test_what_shows_nothing(
    objective: Objective | None, training: Training | None, values: object, problem: str | None
) -> None:
    """A metric that was never logged, an objective of none, and a surrogate loss verify nothing, with the reason."""
    measure = measure_trial(objective, np.array(values, dtype=np.float64), training, None)
    assert (measure.problem is None) if problem is None else (problem in (measure.problem or ""))
    assert math.isinf(measure.best) == (not len(np.array(values)) or objective == Objective(kind="none"))


def test_a_script_without_a_loss_is_judged_by_its_metric() -> None:
    """Without losses there is a summary only if an objective was declared; equal metrics are equal seeds."""
    nothing = np.zeros(0)
    assert summarize_trial(nothing, None, nothing, None, None) is None
    first = summarize_trial(nothing, REWARD, FALLING, None, None)
    second = summarize_trial(nothing, REWARD, FALLING + 1.0, None, None)
    assert first is not None
    assert second is not None
    assert (first.steps, first.digest == second.digest) == (0, False)
    silent = summarize_trial(nothing, REWARD, nothing, None, None)
    assert silent is not None
    assert (silent.digest, silent.measure is not None and silent.measure.problem is not None) == ("", True)


def test_converged_at_a_rung() -> None:
    """A loss of a tenth of a constant answer's counts at a rung, although the gradients vanish."""
    losses = np.array([3.0, 2.0, 0.2])
    assert loss_at_rung(losses, "vanishing", 2.3) == 0.2
    assert loss_at_rung(losses, "vanishing", 1.9) == math.inf
    assert loss_at_rung(losses, "vanishing") == math.inf
    assert loss_at_rung(losses, "exploding", 2.3) == math.inf
    assert not has_converged(math.nan, 3.0, 2.3)
