"""The plan of a rerun as its row stores it: how many rounds it may have, and which ones it has."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from pydantic import TypeAdapter

from gradmedic_service.database import models
from gradmedic_service.reruns.experiment import ExperimentBudget, ExperimentDesign, Round


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRound:
    """A round after the first one."""

    control: int
    start: int
    """Number of its first candidate."""
    stop: int
    """Number behind its last candidate."""
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPlan:
    """The plan of a rerun."""

    first_round: int
    """Number of candidates of the first round."""
    max_rounds: int
    """Largest number of rounds."""
    max_steps: int
    """Largest number of steps of a trial: those of the suspect run, unless the request names fewer."""
    step_seconds: float | None
    """Seconds that a step of the suspect run took; None if they are not known."""
    later_rounds: tuple[StoredRound, ...] = ()
    failed_step: int | None = None
    """Step at which the suspect run failed; None unless the rerun is of the kind `locate`."""
    locate_from: int | None = None
    """Number of steps after which its trials check each operation."""

    def rounds(self) -> tuple[Round, ...]:
        """Return the rounds after the first one."""
        return tuple(
            Round(control=stored.control, candidates=range(stored.start, stored.stop), steps=stored.steps)
            for stored in self.later_rounds
        )

    def with_round(self, added: Round) -> StoredPlan:
        """Return the plan with a further round."""
        stored = StoredRound(
            control=added.control, start=added.candidates.start, stop=added.candidates.stop, steps=added.steps
        )
        return replace(self, later_rounds=(*self.later_rounds, stored))


PLAN = TypeAdapter(StoredPlan)


def plan_of(rerun: models.Rerun) -> StoredPlan:
    """Return the plan of a rerun. One that an earlier version has made has a single round."""
    if rerun.plan is None:
        return StoredPlan(first_round=len(rerun.candidates) - 1, max_rounds=1, max_steps=rerun.steps, step_seconds=None)
    return PLAN.validate_python(rerun.plan)


def store_plan(rerun: models.Rerun, plan: StoredPlan) -> None:
    """Put a plan into the row of a rerun."""
    rerun.plan = asdict(plan)


def design_of(rerun: models.Rerun) -> ExperimentDesign:
    """Return the design of a rerun's experiment."""
    plan = plan_of(rerun)
    return ExperimentDesign(
        candidates=plan.first_round,
        seeds=tuple(rerun.seeds),
        budget=ExperimentBudget(steps=rerun.steps, trials=rerun.max_trials, rounds=plan.max_rounds),
        later_rounds=plan.rounds(),
    )


def steps_of(rerun: models.Rerun, candidate: int) -> int:
    """Return the number of steps of each trial of a candidate."""
    return design_of(rerun).round_of(candidate).steps
