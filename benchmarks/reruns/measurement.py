"""Measures the strategies on one failing training: its races, its trials in turn, and whether its proofs are true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from benchmarks.reruns.strategies import MAX_ROUNDS, SEEDS, STRATEGIES, Candidate, Race, race, trials_in_turn
from benchmarks.reruns.trials import (
    LEAST_SKILL,
    LOST_SKILL,
    Laboratory,
    Subject,
    reason_not_failing,
    skill,
)

OURS: Final = "gradmedic"
RANDOM: Final = "random"
LEAST_GAIN: Final = 0.05
"""A verified remedy that gains no more skill than this over the faulty training is a false proof."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A remedy of the advice that the experiment verified."""

    remedies: str
    skill: float
    """Median over the seeds."""
    is_false: bool
    """Whether it does not repair the training in truth: its skill is at most a quarter of the twin's, or within 0.05 of
    the faulty training's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The results of the measured strategies on a failing training."""

    configuration: Subject
    races: dict[str, Race]
    in_turn: dict[str, int | None]
    """Trials to the first verified remedy, one after the other, by strategy; None if none was verified."""
    skills: dict[str, float]
    """Median skills of the control, the best verified remedy (NaN if there is none) and the twin."""
    slowest: float
    """CPU seconds of its longest control."""
    verdict: str
    """Verdict of the control on the first seed."""
    proofs: list[Proof] = field(default_factory=list)

    @property
    def is_truly_verified(self) -> bool:
        """Whether a remedy of the advice was verified, and no false one."""
        return bool(self.proofs) and not any(proof.is_false for proof in self.proofs)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A training that is not measured."""

    configuration: Subject
    reason: str


def measure(
    laboratory: Laboratory, configuration: Subject, strategies: Sequence[str] = tuple(STRATEGIES)
) -> Measured | LeftOut:
    """Rerun a training by some strategies, if it fails on every seed and its twin learns."""
    for seed in SEEDS:
        reason = reason_not_failing(laboratory, configuration, seed)
        if reason is not None:
            return LeftOut(configuration=configuration, reason=reason)
    controls = [laboratory.trial(configuration, (), seed) for seed in SEEDS]
    suspect = controls[0]
    control_skill = median(skill(control, configuration.faulty) for control in controls)
    twins = (laboratory.trial(configuration, (), seed, is_twin=True) for seed in SEEDS)
    twin_skill = median(skill(twin, configuration.twin) for twin in twins)
    races, in_turn, proofs, best = {}, {}, [], math.nan
    for name in strategies:
        candidates = STRATEGIES[name](suspect, configuration)
        races[name] = race(laboratory, configuration, candidates, max_rounds=MAX_ROUNDS if name == OURS else 1)
        is_reproduced = races[name].conclusion.status == "done"  # else a rerun would try nothing
        in_turn[name] = trials_in_turn(laboratory, configuration, candidates) if is_reproduced else None
        if name == OURS and races[name].verified:
            proofs = [
                _proof(laboratory, configuration, races[name].candidates[outcome.candidate], control_skill, twin_skill)
                for outcome in sorted(races[name].verified, key=lambda outcome: outcome.loss or 0.0)
            ]
            best = proofs[0].skill
    return Measured(
        configuration=configuration,
        races=races,
        in_turn=in_turn,
        skills={"control": control_skill, "repaired": best, "twin": twin_skill},
        slowest=max(control.cpu_seconds or 0.0 for control in controls),
        verdict=suspect.verdict,
        proofs=proofs,
    )


def _proof(
    laboratory: Laboratory, configuration: Subject, candidate: Candidate, control_skill: float, twin_skill: float
) -> Proof:
    trials = (laboratory.trial(configuration, candidate, seed) for seed in SEEDS)
    reached = median(skill(trial, configuration.faulty) for trial in trials)
    return Proof(
        remedies=" + ".join(remedy.id for remedy in candidate),
        skill=reached,
        is_false=is_false_proof(reached, control_skill, twin_skill),
    )


def is_false_proof(reached: float, control: float, twin: float) -> bool:
    """Whether a verified remedy leaves the training as bad as it was, by median skills.

    >>> is_false_proof(0.9, 0.0, 1.0), is_false_proof(0.2, 0.0, 1.0), is_false_proof(0.5, 0.48, 0.9)
    (False, True, True)
    """
    return reached <= LOST_SKILL * twin or reached <= control + LEAST_GAIN


def status_of_twin(laboratory: Laboratory, configuration: Subject) -> str | None:
    """Rerun a twin as if it were suspect; return the status of the rerun, None if the twin does not learn."""
    twin = laboratory.trial(configuration, (), SEEDS[0], is_twin=True)
    if skill(twin, configuration.twin) < LEAST_SKILL:
        return None
    return race(laboratory, configuration, [], is_twin=True).conclusion.status


def median_turns(measured: Sequence[Measured], name: str) -> float:
    """Return the median number of trials to the first verified remedy; infinity if no remedy was verified."""
    if not measured:
        return math.nan
    return median(math.inf if turns is None else turns for turns in (result.in_turn[name] for result in measured))
