"""The experiment of a rerun: which trials to start next, which to stop early, and the result; without input or output.

`next_step` reads the trials that exist and returns which trials to start, or the conclusion. It depends on them alone:
called again after a crash, it returns the same. `reason_to_stop` compares one running trial with the others at the same
step.

1. The control, unchanged, must fail as the suspect run did. Otherwise the rerun ends `not_reproduced`.
2. Every candidate runs on the first seed with the same budget of steps. At each rung the worse half is stopped, but
   never the best two: successive halving without waiting (Li et al. 2020, A system for massively parallel
   hyperparameter tuning, section 3.3).
3. The best two that beat the control there are confirmed, with the control, on the other seeds. If neither holds, the
   next best candidate is confirmed, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS
from gradmedic_service.reruns.loss_curves import LossCurve

CONTROL = 0
"""Number of the candidate without remedies."""
CANDIDATES_TO_CONFIRM = 2
"""Number of candidates that run on further seeds. Halving never stops so many of the best."""
LAST_STOP_SHARE = 0.9
"""Share of the budget of steps beyond which no trial is stopped: it would save little and hide the end."""
MIN_DECLINE = 0.1
"""Share of its start loss by which a trial's loss must have fallen. Without this margin, a thousandth below a control
that learned nothing would count as learning."""
ENDED = ("done", "failed", "cancelled", "stopped", "not_applicable")
"""Statuses of trials that have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentBudget:
    """The budget of a rerun."""

    steps: int
    """Number of steps of each trial."""
    trials: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentDesign:
    """The candidates and seeds that the experiment compares, and its budget."""

    candidates: int
    """Number of candidates besides the control. They are numbered from 1, the most promising first."""
    seeds: tuple[int, ...]
    budget: ExperimentBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialState:
    """One candidate on one seed, as it stands."""

    candidate: int
    seed: int
    status: str
    verdict: str = "undetermined"
    curve: LossCurve | None = None
    """Summary of the losses of a trial that has ended; None where no loss was reported."""
    rungs: tuple[float, ...] = ()
    """Loss at each rung that the trial has passed; infinity where it was unhealthy there."""
    seconds: float = 0.0
    reason: str | None = None
    """Why the trial did not run to its end."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions and device that the trial ran on."""

    @property
    def has_ended(self) -> bool:
        """Whether the trial has ended."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateOutcome:
    """Result of one candidate."""

    candidate: int
    state: str
    """`verified`, `healthy`, `failed` or `not_applicable`."""
    seeds: int
    """Number of seeds on which the candidate ran. Trials with identical losses count as one."""
    healthy: int
    """Number of these seeds that ended with the verdict healthy."""
    loss: float | None
    control_loss: float | None
    cost_seconds: float
    reason: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions and device that the trials ran on; where they differ, the values are separated by commas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """Result of a rerun."""

    status: str
    """`done`, `not_reproduced` or `failed`."""
    reason: str
    outcomes: tuple[CandidateOutcome, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """The next action of a rerun: to start trials, to conclude, or, if both fields are empty, to wait for a trial."""

    start: tuple[tuple[int, int], ...] = ()
    """Candidate and seed of each trial to start, in this order."""
    conclusion: Conclusion | None = None


def reason_to_stop(
    trial: TrialState, others: Iterable[TrialState], control: TrialState, design: ExperimentDesign, steps: int
) -> str | None:
    """Return why a running trial is not worth its further steps; None if it is, or is not part of the race.

    A trial is compared with the candidates that may still win: those that are running, and those that have ended and
    beaten the control. A remedy that learns fast and explodes later would otherwise stop the ones that hold.

    Args:
        trial: the running trial, with its loss at the rungs that it has passed.
        others: the other trials of the same rerun.
        control: the ended control on the first seed.
        design: the candidates, seeds and budget of the experiment.
        steps: number of steps that the trial has done.
    """
    first_seed = design.seeds[0]
    if trial.candidate == CONTROL or trial.seed != first_seed or steps > LAST_STOP_SHARE * design.budget.steps:
        return None
    if trial.verdict == "exploding":
        return "it is exploding"
    if not trial.rungs:
        return None
    rung = len(trial.rungs)
    compared = [
        other.rungs[rung - 1]
        for other in others
        if other.candidate not in (CONTROL, trial.candidate)
        and other.seed == first_seed
        and len(other.rungs) >= rung
        and (is_better(other, control) or not other.has_ended)
    ]
    better = sum(loss < trial.rungs[-1] for loss in compared)
    if better >= max(CANDIDATES_TO_CONFIRM, math.ceil((len(compared) + 1) / 2)):
        return f"{better} of {len(compared)} others were better at the same step"
    return None


def next_step(
    design: ExperimentDesign, trials: Sequence[TrialState], reason_for_no_new_trials: str | None = None
) -> NextStep:
    """Return the next action of a rerun. It never starts a trial twice, nor more trials than the budget allows.

    Args:
        design: the candidates, seeds and budget of the experiment.
        trials: all trials of the rerun.
        reason_for_no_new_trials: why no further trial can be started; None if trials can be started.
    """
    can_start = reason_for_no_new_trials is None
    trial_at = {(trial.candidate, trial.seed): trial for trial in trials}
    trials_left = design.budget.trials - len(trials)
    first_seed = design.seeds[0]

    control = trial_at.get((CONTROL, first_seed))
    if control is None:
        if trials_left < 1 or not can_start:
            return _conclude("failed", reason_for_no_new_trials or "the budget of trials does not allow the control")
        return NextStep(start=((CONTROL, first_seed),))
    if not control.has_ended:
        return NextStep()
    if control.verdict not in UNHEALTHY_VERDICTS:
        if control.status != "done":
            return _conclude("failed", f"the control did not run: {control.reason or control.status}")
        reason = f"the unchanged control is {control.verdict} after {design.budget.steps} steps"
        return _conclude("not_reproduced", reason)

    race = [(candidate, first_seed) for candidate in range(1, _number_of_racing_candidates(design) + 1)]
    missing = tuple(place for place in race if place not in trial_at)[:trials_left] if can_start else ()
    if missing:
        return NextStep(start=missing)
    if not all(trial_at[place].has_ended for place in race if place in trial_at):
        return NextStep()

    promising = _candidates_better_than_control(design, trial_at, control)
    if promising and not any(seed != first_seed for _, seed in trial_at) and can_start:
        group = (CONTROL, *promising[:CANDIDATES_TO_CONFIRM])
        places = [(candidate, seed) for seed in design.seeds[1:] for candidate in group]
        # Only whole seeds are started: a seed without its control would show nothing.
        whole_seeds = tuple(places[: trials_left - trials_left % len(group)])
        if whole_seeds:
            return NextStep(start=whole_seeds)
    if not all(trial.has_ended for trial in trials):
        return NextStep()
    confirmation = _next_confirmation(design, trial_at, promising)
    if confirmation and len(confirmation) <= trials_left and can_start:
        return NextStep(start=confirmation)

    candidates = range(1, design.candidates + 1)
    outcomes = [outcome for candidate in candidates if (outcome := _outcome(design, trial_at, candidate)) is not None]
    verified = sum(outcome.state == "verified" for outcome in outcomes)
    reason = f"{verified} of {len(outcomes)} candidates verified"
    if reason_for_no_new_trials is not None:
        reason += f"; not everything was tried: {reason_for_no_new_trials}"
    elif len(outcomes) < design.candidates:
        reason += "; not everything was tried: the budget of trials is spent"
    return _conclude("done", reason, outcomes)


def is_better(trial: TrialState, control: TrialState) -> bool:
    """Whether a trial meets the criterion of `verified` on its seed.

    It ran to its end, its verdict is healthy, and it learns: its final loss is below the control's best level and at
    least a tenth below its own start.
    """
    curve = trial.curve
    if trial.status != "done" or trial.verdict != "healthy" or curve is None or not math.isfinite(curve.final):
        return False
    if control.curve is None and control.verdict not in UNHEALTHY_VERDICTS:
        return False  # the control never ran, so that there is nothing to compare with
    best = math.inf if control.curve is None else control.curve.best
    return curve.final < best and curve.final <= curve.start - MIN_DECLINE * abs(curve.start)


def _number_of_racing_candidates(design: ExperimentDesign) -> int:
    """Return how many candidates can race so that the budget of trials still allows to confirm the best."""
    for_confirmation = (len(design.seeds) - 1) * (1 + min(CANDIDATES_TO_CONFIRM, design.candidates))
    return min(design.candidates, max(design.budget.trials - 1 - for_confirmation, 1))


def _candidates_better_than_control(
    design: ExperimentDesign, trial_at: Mapping[tuple[int, int], TrialState], control: TrialState
) -> list[int]:
    """Return the candidates that beat the control on the first seed, the best first."""
    final_losses = [
        (trial.curve.final, trial.candidate)
        for (candidate, seed), trial in trial_at.items()
        if candidate != CONTROL and seed == design.seeds[0] and is_better(trial, control) and trial.curve is not None
    ]
    return [candidate for _, candidate in sorted(final_losses)]


def _next_confirmation(
    design: ExperimentDesign, trial_at: Mapping[tuple[int, int], TrialState], promising: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Return the trials that confirm the next best candidate, unless one before it has held on every seed."""
    others = design.seeds[1:]
    if not others or not all((CONTROL, seed) in trial_at for seed in others):
        return ()
    for candidate in promising:
        if all((candidate, seed) not in trial_at for seed in others):
            return tuple((candidate, seed) for seed in others)
        if all(
            (candidate, seed) in trial_at and is_better(trial_at[candidate, seed], trial_at[CONTROL, seed])
            for seed in others
        ):
            return ()
    return ()


def _outcome(
    design: ExperimentDesign, trial_at: Mapping[tuple[int, int], TrialState], candidate: int
) -> CandidateOutcome | None:
    """Return the result of a candidate; None if it was not tried."""
    trials = [trial for seed in design.seeds if (trial := trial_at.get((candidate, seed))) is not None]
    trials = [trial for trial in trials if trial.status != "cancelled"]
    if not trials:
        return None
    controls = {trial.seed: trial for seed in design.seeds if (trial := trial_at.get((CONTROL, seed))) is not None}
    by_curve: dict[str, list[TrialState]] = {}
    for trial in trials:
        by_curve.setdefault(trial.curve.digest if trial.curve else f"seed {trial.seed}", []).append(trial)
    is_proven = [trial.seed in controls and is_better(trial, controls[trial.seed]) for trial in trials]
    refused = next((trial for trial in trials if trial.status == "not_applicable"), None)
    healthy = [same for same in by_curve.values() if all(_is_healthy(trial) for trial in same)]
    if refused is not None:
        state, reason = "not_applicable", refused.reason or "it could not be applied"
    elif all(is_proven) and len(trials) == len(design.seeds):
        state, reason = "verified", "healthy on every seed, and better than the control"
    elif len(healthy) == len(by_curve):
        state, reason = "healthy", _reason_not_verified(design, trials, controls)
    else:
        worst = next(trial for trial in trials if not _is_healthy(trial))
        state, reason = "failed", worst.reason or f"it is {worst.verdict} on seed {worst.seed}"
    return CandidateOutcome(
        candidate=candidate,
        state=state,
        seeds=0 if refused is not None else len(by_curve),
        healthy=len(healthy),
        loss=_median_final_loss(trials),
        control_loss=_median_final_loss([controls[trial.seed] for trial in trials if trial.seed in controls]),
        cost_seconds=sum(trial.seconds for trial in trials),
        reason=reason,
        environment=_merge_environments(trials),
    )


def _merge_environments(trials: Sequence[TrialState]) -> dict[str, str]:
    """Return the versions and devices of all trials.

    >>> cpu, gpu = {"torch": "2.13.0", "device": "cpu"}, {"torch": "2.13.0", "device": "NVIDIA A100"}
    >>> trial = lambda seed, ran_on: TrialState(candidate=1, seed=seed, status="done", environment=ran_on)
    >>> _merge_environments([trial(0, cpu), trial(1, gpu), trial(2, cpu)])
    {'torch': '2.13.0', 'device': 'cpu, NVIDIA A100'}
    """
    distinct: dict[str, dict[str, None]] = {}
    for trial in trials:
        for name, value in trial.environment.items():
            distinct.setdefault(name, {})[value] = None
    return {name: ", ".join(values) for name, values in distinct.items()}


def _is_healthy(trial: TrialState) -> bool:
    return trial.verdict == "healthy" and trial.status in ("done", "stopped")


def _reason_not_verified(
    design: ExperimentDesign, trials: Sequence[TrialState], controls: Mapping[int, TrialState]
) -> str:
    for trial in trials:
        if trial.status == "stopped":
            return f"stopped early: {trial.reason}"
        if trial.curve is None:
            return "it reports no loss"
        if trial.seed not in controls or not is_better(trial, controls[trial.seed]):
            return f"its loss on seed {trial.seed} is no better than the control's, or did not fall by a tenth"
    return f"it was tried on {len(trials)} of {len(design.seeds)} seeds"


def _median_final_loss(trials: Sequence[TrialState]) -> float | None:
    """Return the median of the final losses. A loss that is not finite counts as larger than any other."""
    losses = sorted(
        (trial.curve.final for trial in trials if trial.curve is not None),
        key=lambda loss: loss if math.isfinite(loss) else math.inf,
    )
    return losses[len(losses) // 2] if losses else None


def _conclude(status: str, reason: str, outcomes: Iterable[CandidateOutcome] = ()) -> NextStep:
    return NextStep(conclusion=Conclusion(status=status, reason=reason, outcomes=tuple(outcomes)))
