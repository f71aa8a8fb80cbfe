"""Rounds: which candidates follow from the trials of the rounds before, and that every rerun with rounds ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.service.reruns.test_experiment import failing, learning, trial

from gradmedic.protocol.remedies import Remedy
from gradmedic_service.reruns.candidates import GENERAL
from gradmedic_service.reruns.dials import DIALS, Setting, next_value
from gradmedic_service.reruns.experiment import (
    CANNOT_WIN,
    CONTROL,
    Conclusion,
    ExperimentBudget,
    ExperimentDesign,
    Round,
    next_step,
    reason_to_stop,
)
from gradmedic_service.reruns.forecast import expected_seconds, expected_trials
from gradmedic_service.reruns.judging import TrialState
from gradmedic_service.reruns.loss_curves import Measure
from gradmedic_service.reruns.rounds import MAX_ROUND_CANDIDATES, NewRound, number_round, propose_round

STEPS = 20
Place = tuple[int, int]


def rate(factor: float) -> Remedy:
    """Return the remedy that scales the learning rate."""
    return Remedy(id="scale_learning_rate", parameters={"factor": factor})


CLIP = Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0})
RESIDUAL = Remedy(id="add_residual")
NORMALIZED = Remedy(id="insert_normalization", parameters={"kind": "LayerNorm"})
SCRIPT_ONLY = Remedy(id="use_bfloat16")


def design(
    candidates: int, *, seeds: int = 3, trials: int = 60, rounds: int = 3, later_rounds: tuple[Round, ...] = ()
) -> ExperimentDesign:
    """Return a design."""
    budget = ExperimentBudget(steps=STEPS, trials=trials, rounds=rounds)
    return ExperimentDesign(candidates=candidates, seeds=tuple(range(seeds)), budget=budget, later_rounds=later_rounds)


def exploding(candidate: int, seed: int = 0) -> TrialState:
    """Return a trial that fails as the control does."""
    return replace(failing(seed), candidate=candidate)


def too_slow(candidate: int, final: float = 2.25, seed: int = 0) -> TrialState:
    """Return a trial that is healthy and learns too little."""
    return trial(candidate, seed, 2.3, 2.3, final)


def propose(
    remedies: Sequence[Sequence[Remedy]],
    trials: Sequence[TrialState],
    advice: Mapping[int, Sequence[Remedy]] | None = None,
    *,
    max_trials: int = 40,
    max_steps: int = STEPS,
    later_rounds: tuple[Round, ...] = (),
    first_round: int | None = None,
) -> NewRound | None:
    """Return the round that follows from the trials of these candidates, the control left out."""
    candidates = len(remedies) if first_round is None else first_round
    return propose_round(
        design(candidates, later_rounds=later_rounds),
        [[], *remedies],
        trials,
        advice or {},
        (),
        max_trials=max_trials,
        max_steps=max_steps,
    )


def proposed(*arguments: object, **options: object) -> list[tuple[Remedy, ...]]:
    """Return the candidates of the round that follows from the trials, general remedies left out."""
    new = propose(*arguments, **options)  # type: ignore[arg-type]
    return [] if new is None else [each for each in new.candidates if each not in [(other,) for other in GENERAL]]


def test_a_rate_that_was_too_high_is_lowered_further() -> None:
    """A rate x .3 that still explodes is followed by x .1."""
    new = propose([[rate(0.3)]], [failing(), exploding(1)])
    assert new is not None
    assert new.candidates[0] == (rate(0.1),)


def test_a_rate_that_was_too_low_is_raised_again() -> None:
    """A rate x .1 that is healthy and learns too little is followed by x .3, since the control shows that 1 fails."""
    assert proposed([[rate(0.1)]], [failing(), too_slow(1)]) == [(rate(0.32),)]


def test_between_two_rates_lies_the_next_one() -> None:
    """Between a rate that explodes and one that is too slow, their geometric mean is tried; never one of both again."""
    trials = [failing(), exploding(1), too_slow(2)]
    assert proposed([[rate(0.3)], [rate(0.03)]], trials) == [(rate(0.095),)]
    assert proposed([[rate(0.3)], [rate(0.2)]], trials) == []


@pytest.mark.parametrize(
    ("id", "value", "is_too_weak", "expected"),
    [
        ("warm_up", 100.0, True, 300.0),
        ("warm_up", 100.0, False, 30.0),
        ("clip_grad_norm", 1.0, True, 0.3),
        ("clip_grad_norm", 1.0, False, 3.0),
        ("limit_learning_rate", 0.05, True, 0.01),
    ],
)
def test_dials_turn_to_the_side_that_was_missing(id: str, value: float, is_too_weak: bool, expected: float) -> None:
    """A remedy that was too weak gets stronger: most by a smaller value, a warm-up by a longer one."""
    tried = Setting(value, is_too_weak=is_too_weak)
    assert next_value(DIALS[id], tried, [tried]) == expected


def test_what_still_ails_a_trial_is_treated_as_well() -> None:
    """A candidate whose trial has a diagnosis of its own is tried again with what that advises, if it can be tried."""
    trials = [failing(), trial(1, 0, 2.3, 2.3, 2.25, verdict="vanishing")]
    advice = {1: [SCRIPT_ONLY, NORMALIZED, CLIP, RESIDUAL]}
    assert proposed([[RESIDUAL]], trials, advice) == [(RESIDUAL, NORMALIZED), (RESIDUAL, CLIP)]


def test_two_that_each_helped_are_combined() -> None:
    """Two candidates with a better loss than the control are tried together; one that did not help is not."""
    control = trial(CONTROL, 0, 2.3, 2.3, 2.29, verdict="vanishing")
    trials = [control, too_slow(1, 2.28), too_slow(2, 2.27), trial(3, 0, 2.3, 2.3, 2.4)]
    assert proposed([[RESIDUAL], [NORMALIZED], [Remedy(id="weight_normalization")]], trials) == [(NORMALIZED, RESIDUAL)]


def test_general_remedies_follow_advice_that_proved_nothing() -> None:
    """Remedies that need no cause take turns with the others, unless a candidate has them already."""
    trials = [failing(), exploding(1), exploding(2)]
    new = propose([[rate(0.3)], [RESIDUAL, CLIP]], trials)
    assert new is not None
    general = [(each,) for each in GENERAL if each.id not in ("scale_learning_rate", "add_residual")]
    assert [each for each in new.candidates if each in general] == general
    assert new.candidates[:2] == ((rate(0.1),), general[0])


def test_without_a_number_that_shows_progress_there_is_no_further_round() -> None:
    """Where no trial reports a number that could verify it, nothing else is tried."""
    healthy = trial(1, 0, 2.3, 1.0)
    assert healthy.curve is not None
    surrogate = replace(healthy.curve, measure=Measure(judged_by="loss", final=1.0, problem="it is a surrogate"))
    assert propose([[CLIP]], [failing(), replace(healthy, curve=surrogate)], {1: [RESIDUAL]}, max_steps=100) is None
    assert propose([[CLIP]], [failing(), replace(healthy, curve=None)], {1: [RESIDUAL]}) is None
    assert propose([[CLIP]], [failing(), healthy], {1: [RESIDUAL]}) is not None


def test_a_round_repeats_nothing_and_is_small() -> None:
    """No candidate is proposed that was tried, in any order, and no more than fit into the budget of trials."""
    remedies = [[RESIDUAL], [NORMALIZED], [NORMALIZED, RESIDUAL], [rate(0.3)], [rate(0.1)]]
    control = trial(CONTROL, 0, 2.3, 2.3, 2.29, verdict="vanishing")
    trials = [control, *(too_slow(number, 2.28) for number in range(1, 6))]
    new = proposed(remedies, trials, {1: [CLIP, rate(0.3)], 2: [CLIP], 4: [CLIP]})
    keys = [{remedy.id: tuple(remedy.parameters.items()) for remedy in candidate}.items() for candidate in new]
    assert len(new) <= MAX_ROUND_CANDIDATES
    assert all(set(candidate) != {RESIDUAL.id, NORMALIZED.id} for candidate in map(dict, keys))
    assert len(proposed(remedies, trials, {1: [CLIP]}, max_trials=8)) == 2  # six trials confirm


def test_survivors_of_short_trials_start_again_with_the_steps_of_the_job() -> None:
    """Where short trials are healthy and show too little, the best run again with a control of their own, longer."""
    trials = [failing(), too_slow(1, 2.28), exploding(2), too_slow(3, 2.26)]
    new = propose([[CLIP], [RESIDUAL], [NORMALIZED]], trials, max_steps=100)
    assert new == NewRound(candidates=((NORMALIZED,), (CLIP,)), steps=100, control=None)
    race = number_round(new, 4)
    assert (race.control, list(race.candidates), race.steps) == (4, [5, 6], 100)
    short = propose([[CLIP], [RESIDUAL], [NORMALIZED]], trials, max_steps=STEPS + 1)
    assert short is not None
    assert short.control == CONTROL


def test_a_longer_round_is_compared_with_its_own_control() -> None:
    """A candidate of a longer round must beat the control of that round, and is confirmed with it."""
    longer = Round(control=2, candidates=range(3, 4), steps=100)
    of = design(1, seeds=2, later_rounds=(longer,))
    rows = [failing(), too_slow(1)]
    assert next_step(of, rows).start == ((2, 0),)
    rows.append(replace(failing(best=1.5), candidate=2))
    assert next_step(of, rows).start == ((3, 0),)
    beaten = next_step(replace(of, budget=replace(of.budget, rounds=2)), [*rows, learning(3, final=1.6)]).conclusion
    assert beaten is not None
    assert [outcome.state for outcome in beaten.outcomes] == ["healthy", "healthy"]
    rows.append(learning(3, final=1.0))
    assert next_step(of, rows).start == ((2, 1), (3, 1))
    rows += [replace(failing(1), candidate=2), learning(3, 1)]
    conclusion = next_step(of, rows).conclusion
    assert conclusion is not None
    assert [(outcome.candidate, outcome.state) for outcome in conclusion.outcomes] == [(1, "healthy"), (3, "verified")]
    assert conclusion.reason == "1 of 2 candidates verified in 2 rounds"


def test_a_job_that_recovers_in_longer_trials_proves_nothing_there() -> None:
    """If the control of a longer round does not fail, its candidates do not run."""
    longer = Round(control=2, candidates=range(3, 4), steps=100)
    of = design(1, seeds=1, rounds=2, later_rounds=(longer,))
    conclusion = next_step(of, [failing(), too_slow(1), trial(2, 0, 2.3, 2.0, 1.0)]).conclusion
    assert conclusion is not None
    assert [(outcome.candidate, outcome.state) for outcome in conclusion.outcomes] == [(1, "healthy")]
    trials = [failing(), too_slow(1), trial(2, 0, 2.3, 2.0, 1.0)]
    new = propose([[rate(0.1)], [], [rate(0.1)]], trials, first_round=1, later_rounds=(longer,), max_steps=100)
    assert new is not None
    assert (new.candidates[0], new.steps, new.control) == ((rate(0.32),), STEPS, CONTROL)


def test_another_round_needs_proof_to_be_missing_and_budget_to_be_left() -> None:
    """A further round is due after a round without proof, unless the budget of rounds, trials or time is spent."""
    rows = [failing(), too_slow(1)]
    assert next_step(design(1), rows).needs_round
    assert next_step(design(1, rounds=1), rows).conclusion is not None
    assert next_step(design(1, trials=4), rows).conclusion is not None
    assert next_step(design(1), rows, affordable_trials=2).conclusion is not None
    assert next_step(design(1), rows, affordable_trials=3).needs_round
    assert next_step(design(1), rows, "the worker is gone").conclusion is not None
    assert next_step(design(1, seeds=1), [failing(), learning(1)]).conclusion is not None


def test_halving_compares_within_a_round() -> None:
    """A trial of a later round is compared with its own round, and its length is that of its round."""
    longer = Round(control=4, candidates=range(5, 7), steps=100)
    of = design(3, later_rounds=(longer,))
    earlier = [replace(learning(number), rungs=(0.1,)) for number in (1, 2, 3)]
    running = TrialState(candidate=5, seed=0, status="running", verdict="exploding", rungs=(2.0,))
    assert reason_to_stop(replace(running, verdict="healthy"), earlier, failing(), of, 50) is None
    assert reason_to_stop(running, earlier, failing(), of, 50) == "it is exploding"
    assert reason_to_stop(replace(running, candidate=4), earlier, failing(), of, 50) is None


def test_the_race_ends_when_the_time_is_needed_for_the_best() -> None:
    """Candidates that have not started are cancelled once the time that is left just confirms the best."""
    of = design(3, rounds=1)
    queued = [TrialState(candidate=number, seed=0, status="queued") for number in (2, 3)]
    rows = [failing(), learning(1), *queued]
    assert next_step(of, rows, affordable_trials=4) == next_step(of, rows)
    assert next_step(of, rows, affordable_trials=3).cancel == ((2, 0), (3, 0))
    assert next_step(of, [failing(), too_slow(1), *queued], affordable_trials=-1).cancel == ()
    cancelled = [replace(row, status="cancelled", reason=CANNOT_WIN) for row in queued]
    rows = [failing(), learning(1), *cancelled]
    assert next_step(of, rows, affordable_trials=5).start == ((0, 1), (1, 1), (0, 2), (1, 2))
    rows += [failing(seed) for seed in (1, 2)] + [learning(1, seed) for seed in (1, 2)]
    conclusion = next_step(of, rows, affordable_trials=0).conclusion
    assert conclusion is not None
    assert [(outcome.candidate, outcome.state) for outcome in conclusion.outcomes] == [(1, "verified")]
    assert CANNOT_WIN in conclusion.reason


def test_the_expected_cost_counts_the_trials_that_are_left() -> None:
    """The forecast has the control, the candidates and the confirmation of two; ended trials cost nothing more."""
    of = design(4)
    assert len(expected_trials(of, [])) == 1 + 4 + 2 * 3
    assert expected_seconds(of, [], 0.5) == 11 * STEPS * 0.5
    assert expected_seconds(of, [failing()], 0.5) == 10 * STEPS * 0.5
    confirming = [failing(), *(learning(number) for number in range(1, 5)), failing(1), replace(learning(3, 1))]
    assert len(expected_trials(of, confirming)) == 7
    longer = replace(of, later_rounds=(Round(control=5, candidates=range(6, 7), steps=100),))
    assert expected_seconds(longer, [*confirming], 0.5) == (1 + 1 + 2 + 2) * 100 * 0.5


# --- whole reruns -----------------------------------------------------------------------------------------------------

DRAWN_REMEDIES = [[CLIP], [rate(0.3)], [RESIDUAL], [NORMALIZED], [CLIP, rate(0.1)], [Remedy(id="weight_normalization")]]


class Rows:
    """The rows of a rerun: its candidates, its rounds and its trials, as `advancing` changes them."""

    def __init__(self, of: ExperimentDesign, max_steps: int) -> None:
        self.design = of
        self.max_steps = max_steps
        self.candidates: list[Sequence[Remedy]] = [[], *DRAWN_REMEDIES[: of.candidates]]
        self.trials: dict[Place, TrialState] = {}

    def copy(self) -> Rows:
        """Return rows that change apart from these."""
        other = Rows(self.design, self.max_steps)
        other.candidates, other.trials = list(self.candidates), dict(self.trials)
        return other

    def advance(self, advice: Mapping[int, Sequence[Remedy]]) -> Conclusion | None:
        """Do what one transaction of `advancing` does; return the conclusion if there is one."""
        while True:
            states = list(self.trials.values())
            step = next_step(self.design, states)
            if step.needs_round:
                new = propose_round(
                    self.design,
                    self.candidates,
                    states,
                    advice,
                    (),
                    max_trials=self.design.budget.trials - len(states),
                    max_steps=self.max_steps,
                )
                if new is not None:
                    added = number_round(new, len(self.candidates))
                    self.candidates += [*([()] if new.control is None else []), *new.candidates]
                    self.design = replace(self.design, later_rounds=(*self.design.later_rounds, added))
                    continue
                ended = replace(self.design.budget, rounds=len(self.design.rounds))
                step = next_step(replace(self.design, budget=ended), states)
                assert step.conclusion is not None
            assert not step.cancel
            for place in step.start:
                assert place not in self.trials
                self.trials[place] = TrialState(candidate=place[0], seed=place[1], status="queued")
            return step.conclusion


@st.composite
def reruns(draw: st.DrawFn) -> tuple[Rows, Callable[[Place], TrialState], Mapping[int, Sequence[Remedy]]]:
    """Draw the rows of a new rerun, how each of its trials would end, and what the diagnoses advise."""
    of = design(
        draw(st.integers(0, 6)),
        seeds=draw(st.integers(1, 3)),
        trials=draw(st.integers(0, 30)),
        rounds=draw(st.integers(1, 4)),
    )
    loss = st.sampled_from([0.5, 1.9, 2.2, 2.25, math.nan])
    verdict = st.sampled_from(["healthy", "healthy", "exploding", "vanishing", "undetermined"])
    status = st.sampled_from(["done", "done", "done", "failed", "stopped", "not_applicable"])
    drawn: dict[Place, TrialState] = {}

    def end(place: Place) -> TrialState:
        if place not in drawn:
            if place == (CONTROL, 0):
                drawn[place] = failing()
            else:
                losses = [2.3, draw(loss), draw(loss)]
                drawn[place] = trial(*place, *losses, verdict=draw(verdict), status=draw(status))
        return drawn[place]

    advice = {number: draw(st.lists(st.sampled_from([CLIP, RESIDUAL, rate(0.1)]), max_size=2)) for number in range(9)}
    return Rows(of, draw(st.sampled_from([STEPS, 5 * STEPS]))), end, advice


@given(reruns(), st.randoms(use_true_random=False))
def test_every_rerun_ends_within_its_budget_and_goes_on_after_any_crash(
    drawn: tuple[Rows, Callable[[Place], TrialState], Mapping[int, Sequence[Remedy]]], random: object
) -> None:
    """Trials that end in any order lead to a conclusion; budgets hold; a crash before any commit changes nothing."""
    rows, end, advice = drawn
    while True:
        before = rows.copy()
        conclusion = rows.advance(advice)
        again = before.copy()  # the transaction was lost, and is made again
        assert repr(again.advance(advice)) == repr(conclusion)
        assert (again.design, again.candidates, again.trials) == (rows.design, rows.candidates, rows.trials)
        if conclusion is not None:
            break
        committed = rows.copy()  # the transaction was committed, and the same change arrives again
        assert committed.advance(advice) is None
        assert (committed.design, committed.trials) == (rows.design, rows.trials)
        waiting = sorted(place for place, row in rows.trials.items() if row.status == "queued")
        assert waiting
        place = waiting[random.randrange(len(waiting))]  # type: ignore[attr-defined]
        rows.trials[place] = end(place)
    budget = rows.design.budget
    assert len(rows.trials) <= budget.trials
    assert len(rows.design.rounds) <= max(1, budget.rounds)
    keys = [
        (rows.design.round_of(number).steps, sorted((remedy.id, str(remedy.parameters)) for remedy in remedies))
        for number, remedies in enumerate(rows.candidates)
        if remedies
    ]
    assert all(keys.count(key) == 1 for key in keys)
    assert len({outcome.candidate for outcome in conclusion.outcomes}) == len(conclusion.outcomes)
    assert all(rows.candidates[outcome.candidate] for outcome in conclusion.outcomes)
    for outcome in conclusion.outcomes:
        race = rows.design.round_of(outcome.candidate)
        ran = {seed for number, seed in rows.trials if number == outcome.candidate}
        if outcome.state == "verified":
            assert ran == set(rows.design.seeds) == {seed for number, seed in rows.trials if number == race.control}
    assert dataclasses.asdict(conclusion)["status"] in ("done", "failed")
