"""The experiment: which trials it starts and stops, and which candidates it calls verified."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmedic.protocol.verdicts import Learning
from gradmedic_service.reruns.experiment import (
    CANDIDATES_TO_CONFIRM,
    CONTROL,
    Conclusion,
    ExperimentBudget,
    ExperimentDesign,
    next_step,
    reason_to_stop,
)
from gradmedic_service.reruns.judging import TrialState, is_better
from gradmedic_service.reruns.loss_curves import summarize_losses

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


@pytest.mark.parametrize("state", ["stuck", "worsening"])
def test_a_control_that_learns_nothing_has_failed(state: Learning) -> None:
    """Candidates race against a control whose gradients are healthy, and whose loss is stuck or gets worse."""
    control = learning(CONTROL, final=2.0)
    assert control.curve is not None
    assert next_step(design(), [control]).conclusion is not None
    failed = replace(control, curve=replace(control.curve, learning=state))
    assert next_step(design(), [failed]).start == ((1, 0), (2, 0), (3, 0))


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
