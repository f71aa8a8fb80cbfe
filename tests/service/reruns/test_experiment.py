"""The experiment: which trials it starts and stops, and which candidates it calls verified."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmedic_service.reruns.experiment import (
    CANDIDATES_TO_CONFIRM,
    CONTROL,
    Conclusion,
    ExperimentBudget,
    ExperimentDesign,
    next_step,
    reason_to_stop,
)
from gradmedic_service.reruns.judging import TrialState, is_better, reason_not_better
from gradmedic_service.reruns.loss_curves import EVALUATED_LOSS, LOSS, Measure, summarize_losses

STEPS = 20


def design(candidates: int = 3, seeds: int = 3, trials: int = 40) -> ExperimentDesign:
    """Return a design."""
    budget = ExperimentBudget(steps=STEPS, trials=trials)
    return ExperimentDesign(candidates=candidates, seeds=tuple(range(seeds)), budget=budget)


def trial(candidate: int, seed: int = 0, *losses: float, verdict: str = "healthy", status: str = "done") -> TrialState:
    """Return a trial with these losses."""
    curve = summarize_losses(np.array(losses, dtype=np.float64))
    return TrialState(candidate=candidate, seed=seed, status=status, verdict=verdict, curve=curve, seconds=1.0)


def failing(seed: int = 0, best: float = 2.0) -> TrialState:
    """Return a control that fails."""
    return trial(CONTROL, seed, 2.3, best, math.nan, verdict="exploding")


def learning(candidate: int, seed: int = 0, final: float = 1.0) -> TrialState:
    """Return a candidate that learns; its curve is of its own seed."""
    return trial(candidate, seed, 2.3, 2.0 + seed / 100, final)


def carry_out(
    of: ExperimentDesign, results: dict[tuple[int, int], TrialState]
) -> tuple[Conclusion, list[tuple[int, int]]]:
    """Run an experiment whose trials end with these results; return its conclusion and the started trials."""
    done: list[TrialState] = []
    started: list[tuple[int, int]] = []
    while True:
        step = next_step(of, done)
        if step.conclusion is not None:
            return step.conclusion, started
        assert step.start
        for place in step.start:
            started.append(place)
            done.append(results[place])


def test_the_control_runs_first_and_alone() -> None:
    """Nothing else starts before the control has failed."""
    assert next_step(design(), []).start == ((CONTROL, 0),)
    assert next_step(design(), [replace(failing(), status="running")]).start == ()
    assert next_step(design(), [failing()]).start == ((1, 0), (2, 0), (3, 0))


@pytest.mark.parametrize("verdict", ["healthy", "undetermined"])
def test_a_failure_that_does_not_show_again_ends_the_rerun(verdict: str) -> None:
    """If the control ends healthy, or with too little data, the rerun ends as not reproduced."""
    conclusion = next_step(design(), [trial(CONTROL, 0, 2.0, 1.0, verdict=verdict)]).conclusion
    assert conclusion is not None
    assert (conclusion.status, conclusion.outcomes) == ("not_reproduced", ())
    assert verdict in conclusion.reason


def test_a_control_that_crashes_ends_the_rerun_unless_it_failed_as_expected() -> None:
    """A script that ends with an error because its loss is NaN has reproduced the failure; another crash has not."""
    crashed = replace(failing(), status="failed", reason="exit code 1")
    assert next_step(design(), [crashed]).start
    conclusion = next_step(design(), [replace(crashed, verdict="undetermined")]).conclusion
    assert conclusion is not None
    assert conclusion.status == "failed"
    assert "exit code 1" in conclusion.reason


def test_the_best_two_are_confirmed_with_the_control() -> None:
    """Of the candidates that beat the control on the first seed, the two with the lowest loss go on."""
    raced = [failing(), learning(1, final=1.5), learning(2, final=0.5), learning(3, final=1.0), learning(4, final=9.0)]
    assert next_step(design(candidates=4), raced).start == ((0, 1), (2, 1), (3, 1), (0, 2), (2, 2), (3, 2))


def test_verified_means_every_seed() -> None:
    """A candidate that is better on all seeds is verified; one that fails on one of them is not."""
    results = {(c, s): learning(c, s) for c in (1, 2, 3) for s in range(3)} | {(0, s): failing(s) for s in range(3)}
    results[2, 2] = trial(2, 2, 2.3, 2.0, math.nan, verdict="exploding")
    results[3, 0] = trial(3, 0, 2.3, 2.2, 2.25)
    conclusion, started = carry_out(design(), results)
    assert (conclusion.status, len(started)) == ("done", 10)
    verified, failed, healthy = conclusion.outcomes
    assert (verified.state, verified.seeds, verified.healthy, verified.loss) == ("verified", 3, 3, 1.0)
    assert verified.control_loss is not None
    assert math.isnan(verified.control_loss)
    assert verified.cost_seconds == 3.0
    assert (failed.state, failed.seeds, failed.healthy) == ("failed", 3, 2)
    assert (healthy.state, healthy.seeds, healthy.healthy) == ("healthy", 1, 1)
    assert "no better than the control" in healthy.reason


def test_the_next_best_is_confirmed_where_the_best_do_not_hold() -> None:
    """A remedy that is best on one seed only does not keep another one from being verified."""
    results = {(CONTROL, seed): failing(seed) for seed in range(3)}
    finals = {1: 0.9, 2: 0.5, 3: 0.7, 4: 1.0}
    for candidate, final in finals.items():
        holds = candidate in (1, 4)
        for seed in range(3):
            is_lost = seed == 2 and not holds
            results[candidate, seed] = failing(seed) if is_lost else learning(candidate, seed, final)
            results[candidate, seed] = replace(results[candidate, seed], candidate=candidate)
    conclusion, started = carry_out(design(candidates=4), results)
    assert [outcome.state for outcome in conclusion.outcomes] == ["verified", "failed", "failed", "healthy"]
    assert started[-2:] == [(1, 1), (1, 2)]

    conclusion, started = carry_out(design(candidates=4, trials=12), results)  # 5 on the first seed, 6 confirm two
    assert (1, 1) not in started
    assert conclusion.outcomes[0].state == "healthy"


def test_one_seed_is_enough_if_one_was_requested() -> None:
    """With one seed there is no confirmation, and the outcome counts one seed."""
    conclusion, started = carry_out(design(candidates=1, seeds=1), {(0, 0): failing(), (1, 0): learning(1)})
    assert started == [(0, 0), (1, 0)]
    assert [(o.state, o.seeds) for o in conclusion.outcomes] == [("verified", 1)]


def test_identical_curves_are_one_seed() -> None:
    """A script that ignores the seed gives the same curve three times: that counts as one."""
    results = {(1, s): trial(1, s, 2.3, 2.0, 1.0) for s in range(3)} | {(0, s): failing(s) for s in range(3)}
    conclusion, _ = carry_out(design(candidates=1), results)
    (outcome,) = conclusion.outcomes
    assert (outcome.state, outcome.seeds, outcome.healthy) == ("verified", 1, 1)


@pytest.mark.parametrize(
    ("losses", "verdict", "control_best", "expected"),
    [
        ((2.0, 1.0), "healthy", 2.0, True),
        ((2.0, 1.0), "undetermined", 2.0, False),
        ((2.0, 1.0), "vanishing", 2.0, False),
        ((2.0, 1.0), "healthy", 1.0, False),
        ((2.0, 1.81), "healthy", 3.0, False),
        ((2.0, 1.8), "healthy", 3.0, False),
        ((2.0, math.nan), "healthy", 3.0, False),
        ((-1.0, -2.0), "healthy", 0.0, True),
        ((-1.0, -1.01), "healthy", 0.0, False),
        ((), "healthy", 3.0, False),
    ],
    ids=["better", "undetermined", "bad", "as good", "fell 5 %", "fell a bit", "nan", "negative", "hardly", "no loss"],
)
def test_what_counts_as_better(losses: tuple[float, ...], verdict: str, control_best: float, expected: bool) -> None:
    """Healthy, below the control's best, and at least a tenth below its own start; never without a loss."""
    control = trial(CONTROL, 0, control_best, verdict="exploding")
    assert is_better(trial(1, 0, *losses, verdict=verdict), control) is expected


def test_a_margin_of_exactly_a_tenth() -> None:
    """Where the start is clear, a tenth below it is enough and less is not."""
    control = trial(CONTROL, 0, 100.0, verdict="exploding")
    start = [2.0] * 10
    assert is_better(trial(1, 0, *start, *[1.8] * 10), control)
    assert not is_better(trial(1, 0, *start, *[1.81] * 10), control)


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
    """A metric is compared with the control's best, else with its own start, whatever the loss."""
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


def test_a_control_without_losses_is_beaten_by_any_trial_that_learns() -> None:
    """Without a best loss of the control, the other conditions still hold."""
    control = trial(CONTROL, 0, verdict="exploding")
    assert is_better(learning(1), control)


def test_remedies_that_do_not_apply_do_not_race_on() -> None:
    """Not applicable is an outcome with its reason, and the others are tried."""
    refused = TrialState(candidate=1, seed=0, status="not_applicable", reason="Adam has no use for it")
    results = {(0, s): failing(s) for s in range(3)} | {(2, s): learning(2, s) for s in range(3)} | {(1, 0): refused}
    conclusion, _ = carry_out(design(candidates=2), results)
    first, second = conclusion.outcomes
    assert (first.state, first.seeds, first.reason) == ("not_applicable", 0, "Adam has no use for it")
    assert second.state == "verified"


def test_a_crash_is_an_outcome_and_the_others_go_on() -> None:
    """A trial that failed makes its candidate failed, with the reason."""
    crashed = TrialState(candidate=1, seed=0, status="failed", reason="killed by signal 9")
    conclusion, _ = carry_out(design(candidates=2, seeds=1), {(0, 0): failing(), (1, 0): crashed, (2, 0): learning(2)})
    first, second = conclusion.outcomes
    assert (first.state, first.reason, second.state) == ("failed", "killed by signal 9", "verified")


def test_confirmation_that_the_budget_cut_short_is_no_proof() -> None:
    """A candidate that was better on one of three seeds, because no trials were left, is healthy and not verified."""
    results = {(c, 0): learning(c) for c in (1, 2, 3)} | {(0, 0): failing()}
    conclusion, started = carry_out(design(candidates=1, trials=3), results)
    assert len(started) == 2
    (outcome,) = conclusion.outcomes
    assert (outcome.state, outcome.seeds) == ("healthy", 1)
    assert "1 of 3 seeds" in outcome.reason


def test_a_closed_rerun_starts_nothing() -> None:
    """Once no trial can be started, what has ended is summed up, with the reason; before the control, it has failed."""
    trials = [failing(), learning(1)]
    conclusion = next_step(design(), trials, "the worker is gone").conclusion
    assert conclusion is not None
    assert [o.state for o in conclusion.outcomes] == ["healthy"]
    assert conclusion.reason == "0 of 1 candidates verified; not everything was tried: the worker is gone"
    assert next_step(design(), [failing(), replace(learning(1), status="running")], "the worker is gone").start == ()
    conclusion = next_step(design(), [], "the worker is gone").conclusion
    assert conclusion is not None
    assert (conclusion.status, conclusion.reason) == ("failed", "the worker is gone")


def test_a_control_that_reported_nothing_is_no_comparison() -> None:
    """Where the control of a seed never ran, nothing is better than it."""
    lost = TrialState(candidate=CONTROL, seed=1, status="failed", verdict="undetermined")
    assert not is_better(learning(1, 1), lost)
    results = {(CONTROL, 0): failing(), (1, 0): learning(1), (CONTROL, 1): lost, (1, 1): learning(1, 1)}
    conclusion, _ = carry_out(design(candidates=1, seeds=2), results)
    assert [outcome.state for outcome in conclusion.outcomes] == ["healthy"]
    assert "seed 1" in conclusion.outcomes[0].reason


def test_one_curve_with_two_ends_is_not_healthy() -> None:
    """Of seeds with the same loss curve, one that failed makes all of them count as failed."""
    same = trial(1, 0, 2.3, 2.0, 1.0)
    results = {
        (CONTROL, 0): failing(),
        (CONTROL, 1): failing(1),
        (1, 0): same,
        (1, 1): replace(same, seed=1, status="failed", reason="it ended with exit code 1"),
    }
    conclusion, _ = carry_out(design(candidates=1, seeds=2), results)
    (outcome,) = conclusion.outcomes
    assert (outcome.state, outcome.healthy, outcome.reason) == ("failed", 0, "it ended with exit code 1")


def test_outcomes_have_versions_and_device() -> None:
    """An outcome has the versions and the device of its trials; where these differ, all are listed."""
    on = [{"torch": "2.13.0", "device": "cpu"}, {"torch": "2.12.0", "device": "cpu"}]
    results = {
        (candidate, seed): replace(failing(seed) if candidate == CONTROL else learning(1, seed), environment=on[seed])
        for candidate in (CONTROL, 1)
        for seed in (0, 1)
    }
    conclusion, _ = carry_out(design(candidates=1, seeds=2), results)
    assert conclusion.outcomes[0].environment == {"torch": "2.13.0, 2.12.0", "device": "cpu"}


def test_halving_stops_the_worse_half_but_never_the_best_two() -> None:
    """At a rung a trial stops if as many others were better there as are kept."""

    def at(candidate: int, *rungs: float, verdict: str = "healthy") -> TrialState:
        return TrialState(candidate=candidate, seed=0, status="running", verdict=verdict, rungs=rungs)

    def reason(trial: TrialState, others: list[TrialState], steps: int = 10) -> str | None:
        return reason_to_stop(trial, others, failing(), design(candidates=5), steps)

    others = [at(1, 1.0), at(2, 2.0), at(3, 3.0)]
    assert reason(at(4, 4.0), []) is None
    assert reason(at(4, 4.0), others[:1]) is None
    assert reason(at(4, 4.0), others) == "3 of 3 others were better at the same step"
    assert reason(at(4, 1.5), others) is None
    assert reason(at(4), others) is None
    assert reason(at(4, 0.5, verdict="exploding"), []) == "it is exploding"
    assert reason(at(CONTROL, math.inf, verdict="exploding"), others) is None
    assert reason(replace(at(4, 4.0), seed=1), others) is None
    assert reason(at(4, 1.0, 9.0), others) is None
    assert reason(at(4, 4.0), others, steps=19) is None


def test_halving_compares_with_those_that_may_still_win() -> None:
    """A candidate that has exploded, or ended no better than the control, stops no other one."""
    late = replace(learning(4), status="running", rungs=(2.2,), curve=None)
    winners = [replace(learning(c), rungs=(2.1,)) for c in (1, 2, 3)]
    losers = [replace(trial(c, 0, 2.3, 2.0, math.nan, verdict="exploding"), rungs=(2.1,)) for c in (1, 2, 3)]
    assert reason_to_stop(late, winners, failing(), design(candidates=5), 10) is not None
    assert reason_to_stop(late, losers, failing(), design(candidates=5), 10) is None


@st.composite
def experiments(draw: st.DrawFn) -> tuple[ExperimentDesign, dict[tuple[int, int], TrialState]]:
    """Draw a design and how each of its trials would end."""
    of = design(candidates=draw(st.integers(0, 6)), seeds=draw(st.integers(1, 4)), trials=draw(st.integers(0, 20)))
    loss = st.sampled_from([0.5, 1.0, 1.9, 2.0, 2.2, 3.0, math.nan])
    results = {}
    for candidate in range(of.candidates + 1):
        for seed in of.seeds:
            losses = [2.3, draw(loss), draw(loss)] if draw(st.integers(0, 5)) else []
            ended = trial(
                candidate,
                seed,
                *losses,
                verdict=draw(st.sampled_from(["healthy", "healthy", "vanishing", "exploding", "undetermined"])),
                status=draw(st.sampled_from(["done", "done", "done", "failed", "stopped", "not_applicable"])),
            )
            results[candidate, seed] = ended
    return of, results


@given(experiments())
def test_budgets_are_never_exceeded_and_every_rerun_ends(
    experiment: tuple[ExperimentDesign, dict[tuple[int, int], TrialState]],
) -> None:
    """With any results, no trial starts twice or beyond the budget, and the rerun ends."""
    of, results = experiment
    conclusion, started = carry_out(of, results)
    assert len(started) == len(set(started)) <= of.budget.trials
    assert all(c <= of.candidates and s in of.seeds for c, s in started)
    assert conclusion.status in ("done", "not_reproduced", "failed")
    confirmed = {c for c, s in started if s != of.seeds[0]} - {CONTROL}
    assert len(confirmed) <= CANDIDATES_TO_CONFIRM
    assert len({o.candidate for o in conclusion.outcomes}) == len(conclusion.outcomes)


@given(experiments())
def test_verified_is_exactly_the_criterion(
    experiment: tuple[ExperimentDesign, dict[tuple[int, int], TrialState]],
) -> None:
    """A candidate is verified exactly if it meets the criterion, written out here, on every seed of the design."""
    of, results = experiment
    conclusion, started = carry_out(of, results)
    for outcome in conclusion.outcomes:
        holds = []
        tried = [results[outcome.candidate, seed] for seed in of.seeds if (outcome.candidate, seed) in started]
        finals = {state.curve.digest: state.curve.final for state in tried if state.curve is not None}
        values = [final for final in finals.values() if math.isfinite(final)]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        for seed in of.seeds:
            mine, control = results[outcome.candidate, seed], results[CONTROL, seed]
            has_run = (outcome.candidate, seed) in started
            curve = mine.curve
            holds.append(
                has_run
                and mine.status == "done"
                and mine.verdict == "healthy"
                and curve is not None
                and curve.final < (control.curve.best if control.curve else math.inf) - spread
                and curve.final <= 0.9 * curve.start
            )
        assert (outcome.state == "verified") == all(holds)


@given(experiments(), st.randoms(use_true_random=False))
def test_the_order_in_which_trials_end_changes_nothing(
    experiment: tuple[ExperimentDesign, dict[tuple[int, int], TrialState]], random: object
) -> None:
    """Trials that end one by one, in any order, lead to the same conclusion; none starts twice."""
    of, results = experiment
    expected, _ = carry_out(of, results)
    rows: dict[tuple[int, int], TrialState] = {}
    while True:
        step = next_step(of, list(rows.values()))
        if step.conclusion is not None:
            break
        for place in step.start:
            assert place not in rows
            rows[place] = replace(results[place], status="running", curve=None, verdict="undetermined")
        running = sorted(place for place, row in rows.items() if row.status == "running")
        assert running
        chosen = running[random.randrange(len(running))]  # type: ignore[attr-defined]
        rows[chosen] = results[chosen]
    assert repr(dataclasses.asdict(step.conclusion)) == repr(dataclasses.asdict(expected))
