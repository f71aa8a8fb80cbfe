"""The candidates of another round, from what the trials of the rounds before have shown; without input or output.

1. Where a candidate is stable and has not learned enough, the trial may have been too short: the best of these are
   started again, with a control, for as many steps as the job has and the budget allows.
2. Otherwise the candidates come from what is left: a candidate with what its own diagnosis advises, a value between or
   beyond those that were too weak or too strong, two candidates together that each helped, and general remedies that no
   candidate has yet: the diagnosis may have named the wrong cause.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, zip_longest

from gradmedic.protocol.encoding import encode_json
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.trainables import TrainableParameter
from gradmedic_service.reruns.candidates import GENERAL, is_possible
from gradmedic_service.reruns.dials import DIALS, Setting, next_value, turn, value_of
from gradmedic_service.reruns.experiment import (
    CANDIDATES_TO_CONFIRM,
    ExperimentDesign,
    Round,
)
from gradmedic_service.reruns.judging import TrialState, is_better

MAX_ROUND_CANDIDATES = 8
"""Largest number of candidates of a round after the first one."""
MAX_PATIENTS = 4
"""Number of candidates of the rounds before, the best ones, that a round builds on."""
MAX_ADVICE_FOR_PATIENT = 2
"""Number of remedies of a trial's own advice that are added to its candidate, each in a candidate of its own."""
MAX_SURVIVORS = 3
"""Number of candidates that are started again with more steps."""
MIN_LONGER = 1.5
"""Least factor by which the trials of a longer round are longer. Less would show little more."""
JUDGED = ("done", "stopped")
"""Statuses of trials whose losses show something about their candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRound:
    """Candidates to add to a rerun."""

    candidates: tuple[tuple[Remedy, ...], ...]
    """Remedies of each candidate, the most promising first."""
    steps: int
    """Number of steps of each trial."""
    control: int | None
    """Number of the control; None if the round needs its own, because its trials have other steps than those before."""


def propose_round(
    design: ExperimentDesign,
    candidates: Sequence[Sequence[Remedy]],
    trials: Iterable[TrialState],
    advice: Mapping[int, Sequence[Remedy]],
    parameters: Sequence[TrainableParameter],
    *,
    max_trials: int,
    max_steps: int,
) -> NewRound | None:
    """Return the candidates of the next round; None if there is nothing left to try, or no number shows any progress.

    Args:
        design: the rounds so far, which have ended without a verified candidate.
        candidates: the remedies of each candidate by its number; none for a control.
        trials: all trials of the rerun.
        advice: what the diagnosis of each candidate's trial on the first seed advises, by the candidate's number.
        parameters: the parameters of the trainable, which limit what can be tried.
        max_trials: number of trials that the budget still allows.
        max_steps: largest number of steps of each trial that the job has and the budget allows.
    """
    on_first_seed = {trial.candidate: trial for trial in trials if trial.seed == design.seeds[0]}
    raced = [race for race in design.rounds if any(number in on_first_seed for number in race.candidates)]
    if not raced:
        return None
    race = raced[-1]  # the last round may have ended with its control
    control = on_first_seed[race.control]
    compared = [other for other in design.rounds if other.control == race.control]
    numbers = [number for other in compared for number in other.candidates if number in on_first_seed]
    ranked = sorted(numbers, key=lambda number: _rank(on_first_seed[number], control))
    if not any(_is_measured(on_first_seed[number]) for number in numbers):
        return None
    room = _room(design, max_trials)

    survivors = [
        number
        for number in ranked
        if _is_stable(on_first_seed[number]) and not is_better(on_first_seed[number], control)
    ]
    survivors = survivors[: min(MAX_SURVIVORS, room - 1)]
    if survivors and max_steps >= MIN_LONGER * max(other.steps for other in design.rounds):
        again = tuple(tuple(candidates[number]) for number in survivors)
        return NewRound(candidates=again, steps=max_steps, control=None)

    known = {_key(candidates[number]) for other in compared for number in other.candidates}
    new: list[tuple[Remedy, ...]] = []
    for treatment in _treatments(ranked, candidates, on_first_seed, control, advice, parameters):
        if len(new) < min(MAX_ROUND_CANDIDATES, room) and _key(treatment) not in known:
            known.add(_key(treatment))
            if is_possible(treatment, parameters):
                new.append(treatment)
    return NewRound(candidates=tuple(new), steps=race.steps, control=race.control) if new else None


def number_round(new: NewRound, first: int) -> Round:
    """Return a new round. Its own control, or else its first candidate, gets the number `first`.

    >>> number_round(NewRound(candidates=((), ()), steps=900, control=None), 4)
    Round(control=4, candidates=range(5, 7), steps=900)
    """
    control = first if new.control is None else new.control
    start = first + 1 if new.control is None else first
    return Round(control=control, candidates=range(start, start + len(new.candidates)), steps=new.steps)


def _room(design: ExperimentDesign, max_trials: int) -> int:
    """Return the number of trials on the first seed after which the best can still be confirmed; at least one."""
    return max(1, max_trials - (len(design.seeds) - 1) * (1 + CANDIDATES_TO_CONFIRM))


def _treatments(
    ranked: Sequence[int],
    candidates: Sequence[Sequence[Remedy]],
    on_first_seed: Mapping[int, TrialState],
    control: TrialState,
    advice: Mapping[int, Sequence[Remedy]],
    parameters: Sequence[TrainableParameter],
) -> Iterator[tuple[Remedy, ...]]:
    """Yield new candidates, the most promising first: the four kinds take turns."""
    judged = [number for number in ranked if on_first_seed[number].status in JUDGED]
    patients = judged[:MAX_PATIENTS]
    helped = [number for number in patients if _has_helped(on_first_seed[number], control)]
    kinds = (
        _with_further_advice(patients, candidates, advice, parameters),
        _with_other_values(patients, judged, candidates, on_first_seed, control),
        _together(helped, candidates),
        _untried(candidates),
    )
    for treatments in zip_longest(*kinds):
        yield from (treatment for treatment in treatments if treatment is not None)


def _with_further_advice(
    patients: Sequence[int],
    candidates: Sequence[Sequence[Remedy]],
    advice: Mapping[int, Sequence[Remedy]],
    parameters: Sequence[TrainableParameter],
) -> Iterator[tuple[Remedy, ...]]:
    """Yield each candidate with a remedy for what still ails its trial, as far as it can be tried."""
    for number in patients:
        further = ((*candidates[number], remedy) for remedy in advice.get(number, ()))
        possible = (treatment for treatment in further if is_possible(treatment, parameters))
        yield from islice(possible, MAX_ADVICE_FOR_PATIENT)


def _with_other_values(
    patients: Sequence[int],
    judged: Sequence[int],
    candidates: Sequence[Sequence[Remedy]],
    on_first_seed: Mapping[int, TrialState],
    control: TrialState,
) -> Iterator[tuple[Remedy, ...]]:
    """Yield each candidate with a stronger remedy if its trial failed, with a weaker one if it learned too little."""
    for number in patients:
        for position, remedy in enumerate(candidates[number]):
            value = value_of(remedy)
            if value is None or value <= 0:
                continue
            dial = DIALS[remedy.id]
            settings = [
                Setting(other_value, is_too_weak=not _is_stable(on_first_seed[other]))
                for other in judged
                if (other_value := _value_in_place(candidates[other], candidates[number], position)) is not None
            ]
            if dial.neutral is not None and control.verdict == "exploding":
                settings.append(Setting(dial.neutral, is_too_weak=True))
            tried = Setting(value, is_too_weak=not _is_stable(on_first_seed[number]))
            other_value = next_value(dial, tried, settings)
            if other_value is not None:
                changed = list(candidates[number])
                changed[position] = turn(remedy, other_value)
                yield tuple(changed)


def _value_in_place(other: Sequence[Remedy], remedies: Sequence[Remedy], position: int) -> float | None:
    """Return the value of the dial in a place if all else is the same in both candidates; None otherwise."""
    if len(other) != len(remedies) or other[position].id != remedies[position].id:
        return None
    value = value_of(other[position])
    if value is None or value <= 0:
        return None
    turned = [*remedies[:position], turn(remedies[position], value), *remedies[position + 1 :]]
    return value if _key(turned) == _key(other) else None


def _together(helped: Sequence[int], candidates: Sequence[Sequence[Remedy]]) -> Iterator[tuple[Remedy, ...]]:
    """Yield two candidates that each helped as one, where they share no remedy."""
    for first, second in combinations(helped, 2):
        if not {remedy.id for remedy in candidates[first]} & {remedy.id for remedy in candidates[second]}:
            yield (*candidates[first], *candidates[second])


def _untried(candidates: Sequence[Sequence[Remedy]]) -> Iterator[tuple[Remedy, ...]]:
    """Yield each general remedy that no candidate has, by itself."""
    tried = {remedy.id for remedies in candidates for remedy in remedies}
    yield from ((remedy,) for remedy in GENERAL if remedy.id not in tried)


def _has_helped(trial: TrialState, control: TrialState) -> bool:
    """Whether a trial ended better than the control, by what both are judged by."""
    value = _final_value(trial)
    return math.isfinite(value) and value < _final_value(control)


def _is_stable(trial: TrialState) -> bool:
    """Whether a trial has shown healthy gradients and a finite value."""
    return trial.status in JUDGED and not trial.is_unhealthy and math.isfinite(_final_value(trial))


def _rank(trial: TrialState, control: TrialState) -> tuple[bool, bool, float, int]:
    """Return the key by which candidates are sorted, those nearest to a proof first."""
    return not is_better(trial, control), not _is_stable(trial), _final_value(trial), trial.candidate


def _is_measured(trial: TrialState) -> bool:
    """Whether a trial has a number by which it could be verified."""
    return trial.measure is not None and trial.measure.problem is None


def _final_value(trial: TrialState) -> float:
    """Return what a trial is judged by at its end, smaller for a better one; infinity where it is not finite."""
    measure = trial.measure
    return measure.sign * measure.final if measure is not None and math.isfinite(measure.final) else math.inf


def _key(remedies: Iterable[Remedy]) -> bytes:
    """Return the same bytes for the same remedies in any order."""
    return encode_json(sorted([remedy.id, sorted(remedy.parameters.items())] for remedy in remedies))
