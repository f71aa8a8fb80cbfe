"""The bar of a verified remedy: a constant answer, the control by more than the spread, `eval()`, a metric."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from tests.service.reruns.test_experiment import carry_out, design, failing, learning, trial

from gradmedic_service.reruns.experiment import CONTROL, next_step
from gradmedic_service.reruns.judging import TrialState, reason_not_better
from gradmedic_service.reruns.loss_curves import EVALUATED_LOSS, LOSS, Measure


def judged(state: TrialState, judged_by: str = LOSS, **fields: float | str | None) -> TrialState:
    """Return a trial with a measure: that of its losses, apart from the given fields."""
    assert state.curve is not None
    curve = state.curve
    numbers: dict[str, Any] = {"start": curve.start, "best": curve.best, "final": curve.final} | fields
    return replace(state, curve=replace(curve, measure=Measure(judged_by=judged_by, **numbers)))


@pytest.mark.parametrize(
    ("final", "level", "reason"),
    [
        (1.43, 1.6, None),
        (1.45, 1.6, "its loss 1.45 is less than a tenth below a constant answer's 1.6"),
        (1.61, 1.60, "its loss 1.61 is no better than a constant answer's 1.6"),
        (1.61, None, None),
    ],
)
def test_a_constant_answer_is_no_learning(final: float, level: float | None, reason: str | None) -> None:
    """A loss that ends less than a tenth below a constant answer's is not better, even beside a control that is NaN."""
    control = judged(trial(CONTROL, 0, math.nan, verdict="exploding"))
    state = judged(trial(1, 0, 9.0, 9.0, final), start=9.0, constant_level=level)
    assert reason_not_better(state, control) == reason


@pytest.mark.parametrize(("final", "has_failed"), [(1.6, True), (1.45, True), (1.43, False), (0.1, False)])
def test_a_control_that_gives_a_constant_answer_has_failed(final: float, *, has_failed: bool) -> None:
    """A healthy control whose loss is less than a tenth below a constant answer's has learned nothing."""
    control = judged(trial(CONTROL, 0, 9.0, 5.0, final), constant_level=1.6)
    assert control.has_failed is has_failed


def test_a_control_that_has_converged_has_not_failed() -> None:
    """A loss that is stuck near zero has nothing left to learn."""
    control = judged(trial(CONTROL, 0, 9.0, 0.1, 0.1), constant_level=1.6)
    assert control.curve is not None
    assert not replace(control, curve=replace(control.curve, learning="stuck")).has_failed


def test_predicting_the_mean_is_not_verified() -> None:
    """Three seeds that fall from a bad start to what the mean of the targets gets are healthy and not verified."""
    results = {(0, s): judged(trial(0, s, math.nan, verdict="exploding")) for s in range(3)}
    for seed in range(3):
        mean = trial(1, seed, 30.0 + seed, 30.0, 1.6, 1.61)
        results[1, seed] = judged(mean, constant_level=1.6)
    conclusion, started = carry_out(design(candidates=1), results)
    (outcome,) = conclusion.outcomes
    assert (outcome.state, len(started)) == ("healthy", 2)
    assert outcome.reason == "on seed 0: its loss 1.61 is no better than a constant answer's 1.6"


def test_the_spread_of_the_seeds_must_not_explain_the_difference() -> None:
    """A candidate whose values differ between seeds by more than it beats the control on one is not verified."""
    control = {seed: failing(seed, best=2.0) for seed in range(3)}
    steady = {seed: trial(1, seed, 2.3, 2.0, final) for seed, final in enumerate((1.0, 1.1, 0.9))}
    lucky = {seed: trial(1, seed, 2.3, 2.0, final) for seed, final in enumerate((0.2, 1.79, 0.3))}
    for trials, state in ((steady, "verified"), (lucky, "healthy")):
        results = {(0, seed): control[seed] for seed in range(3)} | {(1, seed): trials[seed] for seed in range(3)}
        conclusion, _ = carry_out(design(candidates=1), results)
        (outcome,) = conclusion.outcomes
        assert outcome.state == state
    assert outcome.reason == (
        "on seed 1: its loss 1.79 is better than the control's best, 2, by less than the spread of the seeds, 0.89"
    )


def test_the_next_best_is_confirmed_where_the_spread_is_too_large() -> None:
    """A candidate that beats the control on every seed, but not by its spread, does not end the confirmations."""
    results = {(CONTROL, seed): failing(seed) for seed in range(3)}
    finals = {1: (0.1, 1.79, 0.3), 2: (0.2, 1.79, 0.3), 3: (1.0, 1.1, 0.9)}
    for candidate, values in finals.items():
        for seed, final in enumerate(values):
            results[candidate, seed] = trial(candidate, seed, 2.3, 2.0 + candidate / 100, final)
    conclusion, started = carry_out(design(candidates=3), results)
    assert started[-2:] == [(3, 1), (3, 2)]
    assert [outcome.state for outcome in conclusion.outcomes] == ["healthy", "healthy", "verified"]


def test_the_loss_in_eval_counts() -> None:
    """A trial that learns in `train()` only is not better; one whose dropout hides what it knows is."""
    control = judged(failing(), constant_level=2.3)
    bad = judged(trial(1, 0, 2.3, 2.2, 0.5), EVALUATED_LOSS, start=2.3, final=2.9, constant_level=2.3)
    assert reason_not_better(bad, control) == "its loss in eval() 2.9 is no better than a constant answer's 2.3"
    good = judged(trial(1, 0, 2.3, 2.2, 1.9), EVALUATED_LOSS, start=2.3, final=0.8, constant_level=2.3)
    assert reason_not_better(good, control) is None


def test_a_control_that_was_not_evaluated_is_compared_in_train() -> None:
    """Beside a control without an evaluation, what dropout costs in `train()` is no advantage of the trial."""
    control, evaluated = judged(failing(best=1.5)), judged(failing(best=1.5), EVALUATED_LOSS, best=1.2)
    state = judged(trial(1, 0, 2.3, 2.3, 1.6), EVALUATED_LOSS, start=2.3, final=1.1)
    assert "no better than the control's best, 1.5" in (reason_not_better(state, control) or "")
    assert reason_not_better(state, evaluated) is None


@pytest.mark.parametrize(
    ("judged_by", "final", "control", "expected"),
    [
        ("maximize val_accuracy", 0.9, {"best": 0.5}, None),
        ("maximize val_accuracy", 0.5, {"best": 0.5}, "its val_accuracy 0.5 is no better than the control's best, 0.5"),
        ("minimize val_loss", 0.4, {"best": 0.5}, None),
        ("minimize val_loss", 0.6, {"best": 0.5}, "its val_loss 0.6 is no better than the control's best, 0.5"),
        ("maximize val_accuracy", 0.9, {"best": -math.inf, "problem": "never logged"}, None),
        (
            "maximize val_accuracy", 0.41, {"best": -math.inf, "problem": "never logged"},
            "its val_accuracy did not improve by a tenth: it began at 0.4 and ends at 0.41",
        ),
        ("maximize val_accuracy", math.nan, {"best": 0.5}, "its val_accuracy ends as nan"),
    ],
)  # fmt: skip
def test_a_metric_outranks_the_loss(
    judged_by: str, final: float, control: dict[str, Any], expected: str | None
) -> None:
    """A metric is compared with the control's best, else with its own start; the loss does not count."""
    state = judged(trial(1, 0, 2.3, 2.3, 2.3), judged_by, start=0.4, final=final)
    assert reason_not_better(state, judged(failing(best=0.1), judged_by, **control)) == expected


def test_a_measure_that_shows_nothing_has_its_reason() -> None:
    """A metric that was never logged verifies nothing, and the outcome says so."""
    problem = "the metric 'val_accuracy', by which it is judged, was never logged"
    results = {
        (0, 0): judged(failing(), "maximize val_accuracy", problem=problem),
        (1, 0): judged(learning(1), "maximize val_accuracy", problem=problem),
    }
    conclusion, _ = carry_out(design(candidates=1, seeds=1), results)
    assert [(o.state, o.reason) for o in conclusion.outcomes] == [("healthy", f"on seed 0: {problem}")]


@pytest.mark.parametrize(
    ("losses", "level", "expected"),
    [
        ((9.0, 2.0, 0.1), 1.6, True),
        ((9.0, 2.0, 0.17), 1.6, False),
        ((9.0, 2.0, 0.01), None, True),
        ((9.0, 2.0, 0.1), None, False),
        ((0.0, 0.0, 0.0), None, True),
        ((-1.0, -2.0, -3.0), None, False),
        ((9.0, 2.0, math.nan), 1.6, False),
    ],
)
def test_converged_is_not_vanishing(losses: tuple[float, ...], level: float | None, expected: bool) -> None:
    """A training that vanishes because almost nothing is left to learn is healthy; such a control has not failed."""
    vanishing = judged(trial(1, 0, *losses, verdict="vanishing"), constant_level=level)
    assert (vanishing.has_converged, vanishing.is_healthy, vanishing.is_unhealthy) == (expected, expected, not expected)
    exploding = replace(vanishing, verdict="exploding")
    assert (exploding.is_healthy, exploding.is_unhealthy) == (False, True)
    conclusion = next_step(design(), [replace(vanishing, candidate=CONTROL)]).conclusion
    assert (conclusion is not None) is expected


def test_a_converged_candidate_is_verified() -> None:
    """A candidate whose gradients vanish at a loss of almost nothing is verified."""
    results = {(0, s): failing(s) for s in range(3)}
    for seed in range(3):
        state = trial(1, seed, 2.3, 1.0 + seed / 100, 0.001, verdict="vanishing")
        results[1, seed] = judged(state, constant_level=2.3)
    conclusion, _ = carry_out(design(candidates=1), results)
    assert [(o.state, o.healthy) for o in conclusion.outcomes] == [("verified", 3)]
