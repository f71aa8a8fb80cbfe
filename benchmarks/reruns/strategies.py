"""The strategies: our advice, random remedies, and AUTOTRAINER's published order of repairs.

A strategy returns the candidates and their order; everything else is the same for every strategy, except that only our
advice has further rounds. The service's own experiment races the candidates (`race`). To count the trials until the
first verified remedy, they are also tried one by one (`trials_in_turn`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.reruns.trials import Laboratory, Result, Subject
from gradmedic.protocol.remedies import REMEDIES, Remedy
from gradmedic.protocol.remedy_kind import Choice
from gradmedic_service.reruns import experiment, judging, rounds
from gradmedic_service.reruns.candidates import candidates_of_advice
from gradmedic_service.reruns.experiment import ExperimentBudget, ExperimentDesign

Candidate = tuple[Remedy, ...]

MAX_CANDIDATES: Final = 8
"""Largest number of candidates in the first round of a race."""
MAX_ROUNDS: Final = 3
"""Largest number of rounds of our advice, as in the service. The other strategies have one round."""
MAX_DRAWN: Final = 16
"""Number of remedies that random search tries in turn: more than in a race, so that it finds one."""
SEEDS: Final = (0, 1, 2)
RANGES: Final = {
    "max_norm": (0.01, 10.0),
    "clip_value": (1e-3, 1.0),
    "clipping": (1e-3, 0.3),
    "factor": (1e-3, 1.0),
    "steps": (10, 100),
    "learning_rate": (1e-4, 1e-1),
    "max_learning_rate": (1e-4, 1e-1),
    "weight_decay": (1e-5, 1e-1),
    "strength": (1e-6, 1e-2),
    "threshold": (0.3, 3.0),
    "bias": (0.5, 5.0),
    "cap": (1.0, 100.0),
    "share": (0.01, 1.0),
    "epsilon": (1e-15, 1e-3),
    "beta2": (0.8, 0.999),
    "relative_norm": (1.0, 2.0),
    "standard_deviation": (1e-3, 1.0),
    "times_usual": (1.5, 10.0),
}
"""Range from which random search draws a parameter, evenly in its logarithm."""


def advised(suspect: Result, configuration: Subject) -> list[Candidate]:
    """Return the candidates of a rerun that names no remedies: those of the advice."""
    del configuration
    advice = [(remedy.id, remedy.parameters) for remedy in suspect.advice]
    return [tuple(candidate) for candidate in candidates_of_advice(advice, ())]


def at_random(suspect: Result, configuration: Subject) -> list[Candidate]:
    """Draw remedies, each equally likely, with parameters from sensible ranges."""
    del suspect
    generator = random.Random(configuration.name)
    possible = [id for id, kind in REMEDIES.items() if not kind.needs_script]
    drawn: list[Candidate] = []
    while len(drawn) < MAX_DRAWN:
        candidate = (_drawn(generator, generator.choice(possible)),)
        if candidate not in drawn:
            drawn.append(candidate)
    return drawn


def _drawn(generator: random.Random, id: str) -> Remedy:
    parameters: dict[str, float | int | str | bool] = {}
    for name, parameter in REMEDIES[id].parameters.items():
        if isinstance(parameter, Choice):
            parameters[name] = generator.choice(parameter.values)
        else:
            low, high = RANGES[name]
            value = float(f"{low * (high / low) ** generator.random():.2g}")
            parameters[name] = round(value) if parameter.is_whole else value
    return Remedy(id=id, parameters=parameters)


SELU: Final = Remedy(id="replace_activation", parameters={"activation": "SELU"})
RELU: Final = Remedy(id="replace_activation", parameters={"activation": "ReLU"})
LEAKY: Final = Remedy(id="replace_activation", parameters={"activation": "LeakyReLU"})
TANH: Final = Remedy(id="replace_activation", parameters={"activation": "Tanh"})
NORMALIZED: Final = Remedy(id="insert_normalization", parameters={"kind": "BatchNorm"})
CLIPPED: Final = Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0})
HE: Final = Remedy(id="reinitialize", parameters={"scheme": "kaiming_normal"})
XAVIER: Final = Remedy(id="reinitialize", parameters={"scheme": "xavier_uniform"})


def autotrainer(suspect: Result, configuration: Subject) -> list[Candidate]:
    """Return AUTOTRAINER's published order of repairs for the problem of the run (Zhang et al. 2021, table 2)."""
    del configuration
    order: tuple[Remedy, ...]
    if suspect.has_dead_units:
        order = (SELU, NORMALIZED, HE, XAVIER, LEAKY)
    elif suspect.verdict == "exploding":
        order = (SELU, RELU, CLIPPED, TANH, NORMALIZED)
    else:
        order = (SELU, RELU, NORMALIZED)
    return [(remedy,) for remedy in order]


STRATEGIES: Final[dict[str, Callable[[Result, Subject], list[Candidate]]]] = {
    "gradmedic": advised,
    "random": at_random,
    "AUTOTRAINER": autotrainer,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """The result of a rerun."""

    conclusion: experiment.Conclusion
    candidates: Sequence[Candidate]
    """Remedies of each candidate by its number, the control first."""
    trials: int
    is_repaired: bool
    """Whether a candidate is a repair by AUTOTRAINER's criterion: on the first seed its rules never fired."""

    @property
    def verified(self) -> list[experiment.CandidateOutcome]:
        """Outcomes that are verified."""
        return [outcome for outcome in self.conclusion.outcomes if outcome.state == "verified"]


def race(
    laboratory: Laboratory,
    configuration: Subject,
    candidates: Sequence[Candidate],
    *,
    max_rounds: int = 1,
    is_twin: bool = False,
) -> Race:
    """Rerun a configuration, or its twin, as the service would with a budget for all candidates and no early stop."""
    trials: dict[tuple[int, int], judging.TrialState] = {}
    is_repaired = False
    all_candidates: list[Candidate] = [(), *candidates[:MAX_CANDIDATES]]
    steps = configuration.faulty.steps
    most = len(all_candidates) + (max_rounds - 1) * rounds.MAX_ROUND_CANDIDATES
    design = ExperimentDesign(
        candidates=len(all_candidates) - 1,
        seeds=SEEDS,
        budget=ExperimentBudget(steps=steps, trials=most * len(SEEDS), rounds=max_rounds),
    )
    while True:
        next_step = experiment.next_step(design, list(trials.values()))
        if next_step.needs_round:
            new = rounds.propose_round(
                design,
                all_candidates,
                trials.values(),
                {
                    number: laboratory.trial(configuration, all_candidates[number], seed, has_advice=True).advice
                    for number, seed in trials
                    if seed == SEEDS[0] and number != experiment.CONTROL
                },
                (),
                max_trials=design.budget.trials - len(trials),
                max_steps=steps,
            )
            if new is None:
                design = replace(design, budget=replace(design.budget, rounds=len(design.rounds)))
            else:
                added = rounds.number_round(new, len(all_candidates))
                design = replace(design, later_rounds=(*design.later_rounds, added))
                all_candidates += new.candidates
            continue
        if next_step.conclusion is not None:
            return Race(
                conclusion=next_step.conclusion,
                candidates=all_candidates,
                trials=len(trials),
                is_repaired=is_repaired,
            )
        for candidate, seed in next_step.start:
            result = laboratory.trial(configuration, all_candidates[candidate], seed, is_twin=is_twin)
            trials[candidate, seed] = result.as_trial(candidate, seed)
            is_repaired |= candidate != experiment.CONTROL and seed == SEEDS[0] and result.is_silent


def trials_in_turn(laboratory: Laboratory, configuration: Subject, candidates: Sequence[Candidate]) -> int | None:
    """Return how many trials it takes to the first verified candidate, tried one after the other; None if none is.

    Each gets a trial on the first seed, and one on each other seed if it passes there. The control's trials, one a seed
    for every strategy, are not counted.
    """
    spent = 0

    def passes(candidate: Candidate, seed: int) -> bool:
        nonlocal spent
        spent += 1
        control = laboratory.trial(configuration, (), seed).as_trial(experiment.CONTROL, seed)
        trial = laboratory.trial(configuration, candidate, seed).as_trial(1, seed)
        return judging.is_better(trial, control)

    for candidate in candidates:
        if all(passes(candidate, seed) for seed in SEEDS):
            return spent
    return None
