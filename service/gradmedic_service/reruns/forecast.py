"""The expected number of trials of a rerun, and the seconds that are left; without input or output."""

from __future__ import annotations

from collections.abc import Sequence

from gradmedic_service.reruns.experiment import CANDIDATES_TO_CONFIRM, ExperimentDesign, racing_candidates
from gradmedic_service.reruns.judging import TrialState


def expected_trials(design: ExperimentDesign, trials: Sequence[TrialState]) -> set[tuple[int, int]]:
    """Return candidate and seed of all trials that are there, and of those that the latest round is expected to add.

    A round is expected to race all its candidates and to confirm two of them, with its control.

    >>> from gradmedic_service.reruns.experiment import ExperimentBudget
    >>> design = ExperimentDesign(candidates=4, seeds=(0, 1, 2), budget=ExperimentBudget(steps=300, trials=40))
    >>> len(expected_trials(design, []))
    11
    """
    first_seed, *other_seeds = design.seeds
    race, racing = design.rounds[-1], racing_candidates(design, design.rounds[-1])
    places = {(trial.candidate, trial.seed) for trial in trials}
    is_confirming = any(candidate in race.candidates and seed != first_seed for candidate, seed in places)
    places |= {(candidate, first_seed) for candidate in (race.control, *racing)}
    if not is_confirming:
        group = (race.control, *racing[:CANDIDATES_TO_CONFIRM])
        places |= {(candidate, seed) for candidate in group for seed in other_seeds}
    return places


def expected_seconds(design: ExperimentDesign, trials: Sequence[TrialState], step_seconds: float) -> float:
    """Return the sum of the durations of the expected trials that have not ended; a running one counts as a whole."""
    ended = {(trial.candidate, trial.seed) for trial in trials if trial.has_ended}
    steps = sum(design.round_of(candidate).steps for candidate, _ in expected_trials(design, trials) - ended)
    return steps * step_seconds
