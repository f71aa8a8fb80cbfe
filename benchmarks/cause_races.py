"""Races the first advices of diagnosed runs against an unchanged control, on runs whose cause a rerun can treat.

A remedy is *verified* if its trials (`benchmarks.cause_trials`) meet the criterion of the service
(`judging.is_better`) on each of three seeds: healthy, a tenth below its own start and a constant answer's loss, and
below the control's best level. Beside this, it must be true in skill: beyond a constant predictor and beyond the
control, by a measure that no trial reports.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Final

from benchmarks import cause_trials
from benchmarks.cause_trials import CauseTrial, try_remedies
from benchmarks.causes import CauseReading, describe_share
from benchmarks.corpus.causes.cases import CauseCase, CauseProgram
from benchmarks.corpus.causes.splits import CAUSES_FIT, CAUSES_SPLITS
from gradmedic.protocol.remedies import REMEDIES, Remedy, describe_remedies
from gradmedic_service.reruns import experiment, judging

RACED: Final = 3
"""Number of advices that race."""
SEEDS: Final = (0, 1, 2)
LEAST_SKILL: Final = 0.05
"""Skill from which a training is beyond a constant predictor, and by which it is beyond its control."""
DRAWN: Final = 17
"""Seed of the sample of runs."""
TARGET_FIRST: Final = 0.60
TARGET_FIRST_THREE: Final = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class RemedyRace:
    """What became of one remedy of a run."""

    is_verified: bool
    """Whether it meets the criterion of the service on every seed."""
    is_true: bool
    """Whether it is true in skill on every seed on which it was tried."""
    is_applicable: bool
    why: str
    """The last trial beside its control, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseRace:
    """What became of the first advices of a run."""

    reading: CauseReading
    verified: tuple[bool, ...]
    """Whether each advice is verified on every seed, in their order, until the first one that is."""
    is_true: bool
    """Whether the one that is verified is true in skill on every seed."""
    lines: tuple[str, ...] = ()
    """What became of each advice that was tried, in words."""


def list_raceable(reading: CauseReading) -> list[Remedy]:
    """Return the first advices that the SDK can apply in a rerun."""
    remedies = [advice.remedy for advice in reading.advice]
    return [remedy for remedy in remedies if not REMEDIES[remedy.id].needs_script][:RACED]


def is_verified(control: CauseTrial, trial: CauseTrial, seed: int) -> bool:
    """Return whether a trial meets the criterion of the service on its seed."""
    return judging.is_better(trial.as_state(1, seed), control.as_state(experiment.CONTROL, seed))


def is_true_in_skill(control: CauseTrial, trial: CauseTrial) -> bool:
    """Return whether a trial is beyond a constant predictor and beyond its control, by its skill."""
    skill, of_control = trial.trained.skill, control.trained.skill
    return skill >= LEAST_SKILL and skill >= max(of_control, 0.0) + LEAST_SKILL


def race_remedy(case: CauseCase, program: CauseProgram, remedy: Remedy, seeds: Sequence[int] = SEEDS) -> RemedyRace:
    """Try a remedy on one seed after the other, until it does not hold."""
    is_true, why = True, ""
    for seed in seeds:
        control, trial = (try_remedies(case, program, remedies, seed) for remedies in ((), (remedy,)))
        is_true = is_true and is_true_in_skill(control, trial)
        why = f"{describe_remedies([remedy])}: seed {seed}, {describe_trial(control, trial)}"
        if not is_verified(control, trial, seed):
            is_applicable = trial.trained.status != "not_applicable"
            return RemedyRace(is_verified=False, is_true=False, is_applicable=is_applicable, why=why)
    return RemedyRace(is_verified=True, is_true=is_true, is_applicable=True, why=f"{why}; verified")


def describe_trial(control: CauseTrial, trial: CauseTrial) -> str:
    """Describe a trial beside its control in one line."""
    if trial.trained.status != "done":
        return f"{trial.trained.status}: {trial.trained.reason}"
    ours, theirs = trial.as_state(1, 0).curve, control.as_state(experiment.CONTROL, 0).curve
    losses = "no loss" if ours is None else f"loss {ours.start:.3g} to {ours.final:.3g}"
    best = "" if theirs is None else f"; control {control.verdict}, best {theirs.best:.3g}, final {theirs.final:.3g}"
    return f"{trial.verdict}, {losses}, skill {trial.trained.skill:.2f}{best}, skill {control.trained.skill:.2f}"


def race(case: CauseCase, program: CauseProgram, reading: CauseReading) -> CauseRace:
    """Try the first advices in turn, each on all seeds, until one is verified."""
    races: list[RemedyRace] = []
    for remedy in list_raceable(reading):
        races.append(race_remedy(case, program, remedy))
        if races[-1].is_verified:
            break
    return CauseRace(
        reading=reading,
        verified=tuple(done.is_verified for done in races),
        is_true=any(done.is_verified and done.is_true for done in races),
        lines=tuple(done.why for done in races),
    )


def draw_sample(readings: Sequence[CauseReading], count: int) -> list[CauseReading]:
    """Draw runs whose cause a rerun can treat, the same ones each time."""
    treatable = [reading for reading in readings if reading.run.is_failing and reading.run.treatable]
    return random.Random(DRAWN).sample(treatable, min(count, len(treatable)))  # no secret


def race_sample(
    split: str, readings: Sequence[CauseReading], count: int, jobs: int, *, is_verbose: bool = False
) -> list[tuple[str, str, bool]]:
    """Race the advices of a sample, print the shares, and return name and value, target, and whether it is met.

    Args:
        split: name of the split.
        readings: the diagnoses of its runs.
        count: number of runs that race.
        jobs: number of processes.
        is_verbose: whether to print what became of each advice; without effect on the split that is set aside.
    """
    cause_trials.RESULTS.mkdir(parents=True, exist_ok=True)
    sample = draw_sample(readings, count)
    print(f"racing the first {RACED} advices of {len(sample)} runs (finished trials are kept) ...", flush=True)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        races = list(pool.map(_race_by_id, [split] * len(sample), sample))
    if is_verbose and split == CAUSES_FIT:
        print("\n".join(describe_misses(races)))
    first = sum(done.verified[:1] == (True,) for done in races)
    any_of_three = sum(any(done.verified) for done in races)
    true = sum(done.is_true for done in races)
    print(f"first advice verified: {describe_share(first, len(races))}")
    print(f"one of the first {RACED} verified: {describe_share(any_of_three, len(races))}, true in skill {true}")
    print(f"without advice that a rerun can apply: {sum(not done.verified for done in races)}")
    shares = first / max(1, len(races)), any_of_three / max(1, len(races))
    return [
        (f"first advice verified: {shares[0]:.1%}", f">= {TARGET_FIRST:.0%}", shares[0] >= TARGET_FIRST),
        (
            f"one of the first {RACED} verified: {shares[1]:.1%}",
            f">= {TARGET_FIRST_THREE:.0%}",
            shares[1] >= TARGET_FIRST_THREE,
        ),
    ]


def describe_misses(races: Sequence[CauseRace]) -> list[str]:
    """Return lines on each run whose first advice was not verified. Only for a split that is open."""
    lines = []
    for done in races:
        if done.verified[:1] != (True,):
            named = ", ".join(done.reading.named[:3]) or "none"
            place = f"place {len(done.verified)}" if any(done.verified) else "not repaired"
            lines.append(f"  {done.reading.run.id}: {place}; names {named}")
            lines += [f"    {line}" for line in done.lines]
    return lines


def _race_by_id(split: str, reading: CauseReading) -> CauseRace:
    return race(*find_case(split, reading.run.id), reading)


def find_case(split: str, id: str) -> tuple[CauseCase, CauseProgram]:
    """Return a case of a split, and its program.

    Raises:
        StopIteration: the split has no case of that id.
    """
    return next((case, program) for program in CAUSES_SPLITS[split] for case in program.cases() if case.id == id)
