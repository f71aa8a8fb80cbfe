"""The experiment of a rerun: which trials to start next, which to stop early, and the result; without input or output.

`next_step` reads the rounds and the trials that exist, and returns which trials to start, that another round is due, or
the conclusion. It depends on them alone: called again after a crash, it returns the same. `reason_to_stop` compares one
running trial with the others at the same step. The candidates of another round come from `rounds`.

1. The control, unchanged, must fail: vanish, explode, or learn nothing. Otherwise the rerun ends `not_reproduced`.
2. Every candidate of a round runs on the first seed with the same number of steps. At each rung the worse half is
   stopped, but never the best two: successive halving without waiting (Li et al. 2020, A system for massively parallel
   hyperparameter tuning, section 3.3). Candidates that have not started are cancelled once the time that is left is
   needed to confirm the best: they cannot win any more.
3. The best two that beat the control there are confirmed, with the control, on the other seeds. If neither holds, the
   next best candidate is confirmed, and so on.
4. A round that verifies no candidate is followed by another one, while the budget lasts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gradmedic_service.reruns.judging import TrialState, find_reason_not_verified, is_better
from gradmedic_service.reruns.loss_curves import LOSS

CONTROL = 0
"""Number of the candidate without remedies."""
CANDIDATES_TO_CONFIRM = 2
"""Number of candidates that run on further seeds. Halving never stops so many of the best."""
LAST_STOP_SHARE = 0.9
"""Share of the budget of steps beyond which no trial is stopped: it would save little and hide the end."""
CANNOT_WIN = "the time that is left is needed to confirm the best candidates"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentBudget:
    """The budget of a rerun."""

    steps: int
    """Number of steps of each trial of the first round."""
    trials: int
    rounds: int = 1
    """Largest number of rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Candidates that race together, and the control that they are compared with."""

    control: int = CONTROL
    """Number of the control. A round whose trials are longer has a control of its own, otherwise it is `CONTROL`."""
    candidates: range
    """Numbers of the candidates, the most promising first."""
    steps: int
    """Number of steps of each trial."""

    @property
    def members(self) -> tuple[int, ...]:
        """The control and the candidates."""
        return (self.control, *self.candidates)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentDesign:
    """The candidates and seeds that the experiment compares, and its budget."""

    candidates: int
    """Number of candidates of the first round, besides the control. They are numbered from 1, the most promising
    first."""
    seeds: tuple[int, ...]
    budget: ExperimentBudget
    later_rounds: tuple[Round, ...] = ()

    @property
    def rounds(self) -> tuple[Round, ...]:
        """All rounds so far."""
        return (Round(candidates=range(1, self.candidates + 1), steps=self.budget.steps), *self.later_rounds)

    def round_of(self, candidate: int) -> Round:
        """Return the round that a candidate, or a control, was added by."""
        return next(race for race in self.rounds if candidate in race.members)


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
    judged_by: str | None = None
    """What its trials are judged by, where that is not their loss: a metric, or the loss in `eval()`."""
    judged_value: float | None = None
    """Median of its final values."""
    control_judged_value: float | None = None
    """The same of the control's; None where the control is judged by its loss."""
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
    """The next action of a rerun: the field that is set. If none is, it is to wait for a trial."""

    start: tuple[tuple[int, int], ...] = ()
    """Candidate and seed of each trial to start, in this order."""
    cancel: tuple[tuple[int, int], ...] = ()
    """Candidate and seed of each queued trial to cancel, with the reason `CANNOT_WIN`."""
    needs_round: bool = False
    """Whether another round is due: candidates of it are to be added, or none is possible."""
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
        control: the ended control of its round on the first seed.
        design: the candidates, seeds and budget of the experiment.
        steps: number of steps that the trial has done.
    """
    first_seed, race = design.seeds[0], design.round_of(trial.candidate)
    if trial.candidate == race.control or trial.seed != first_seed or steps > LAST_STOP_SHARE * race.steps:
        return None
    if trial.verdict == "exploding":
        return "it is exploding"
    if not trial.rungs:
        return None
    rung = len(trial.rungs)
    compared = [
        other.rungs[rung - 1]
        for other in others
        if other.candidate in race.candidates
        and other.candidate != trial.candidate
        and other.seed == first_seed
        and len(other.rungs) >= rung
        and (is_better(other, control) or not other.has_ended)
    ]
    better = sum(loss < trial.rungs[-1] for loss in compared)
    if better >= max(CANDIDATES_TO_CONFIRM, math.ceil((len(compared) + 1) / 2)):
        return f"{better} of {len(compared)} others were better at the same step"
    return None


def next_step(
    design: ExperimentDesign,
    trials: Sequence[TrialState],
    reason_for_no_new_trials: str | None = None,
    affordable_trials: int | None = None,
) -> NextStep:
    """Return the next action of a rerun. It never starts a trial twice, nor more trials than the budget allows.

    Args:
        design: the rounds, seeds and budget of the experiment.
        trials: all trials of the rerun.
        reason_for_no_new_trials: why no further trial can be started; None if trials can be started.
        affordable_trials: number of trials that the time allows besides those that are running or queued, negative if
            it does not allow these; None if no trial has shown yet how long one takes.
    """
    can_start = reason_for_no_new_trials is None
    trial_at = {(trial.candidate, trial.seed): trial for trial in trials}
    trials_left = design.budget.trials - len(trials) if can_start else 0

    control = trial_at.get((CONTROL, design.seeds[0]))
    if control is None:
        if trials_left < 1:
            return _conclude("failed", reason_for_no_new_trials or "the budget of trials does not allow the control")
        return NextStep(start=((CONTROL, design.seeds[0]),))
    if not control.has_ended:
        return NextStep()
    if not control.has_failed:
        if control.status != "done":
            return _conclude("failed", f"the control did not run: {control.reason or control.status}")
        state = "healthy" if control.is_healthy else control.verdict
        reason = f"the unchanged control is {state} after {design.budget.steps} steps"
        return _conclude("not_reproduced", reason)

    for race in design.rounds:
        action = _next_step_of_round(design, race, trial_at, trials_left, affordable_trials)
        if action is not None:
            return action
    outcomes = [
        outcome
        for race in design.rounds
        for candidate in race.candidates
        if (outcome := _outcome(design, trial_at, candidate)) is not None
    ]
    verified = sum(outcome.state == "verified" for outcome in outcomes)
    trials_of_candidate = len(design.seeds)
    is_affordable = affordable_trials is None or affordable_trials >= trials_of_candidate
    may_go_on = len(design.rounds) < design.budget.rounds and trials_left >= trials_of_candidate and is_affordable
    if not verified and may_go_on:
        return NextStep(needs_round=True)

    reason = f"{verified} of {len(outcomes)} candidates verified"
    if len(design.rounds) > 1:
        reason += f" in {len(design.rounds)} rounds"
    if reason_for_no_new_trials is not None:
        reason += f"; not everything was tried: {reason_for_no_new_trials}"
    elif any(trial.reason == CANNOT_WIN for trial in trials):
        reason += f"; not everything was tried: {CANNOT_WIN}"
    elif len(outcomes) < sum(len(race.candidates) for race in design.rounds):
        reason += "; not everything was tried: the budget of trials is spent"
    return _conclude("done", reason, outcomes)


def racing_candidates(design: ExperimentDesign, race: Round) -> range:
    """Return the candidates of a round that race.

    Of the first round, these are so many that the budget of trials still allows to confirm the best. A later round has
    no more than that.
    """
    if race.candidates.start != CONTROL + 1:
        return race.candidates
    for_confirmation = (len(design.seeds) - 1) * (1 + min(CANDIDATES_TO_CONFIRM, design.candidates))
    return race.candidates[: max(design.budget.trials - 1 - for_confirmation, 1)]


def _next_step_of_round(
    design: ExperimentDesign,
    race: Round,
    trial_at: Mapping[tuple[int, int], TrialState],
    trials_left: int,
    affordable_trials: int | None,
) -> NextStep | None:
    """Return the next action of a round whose predecessors have ended; None if it has ended too."""
    first_seed = design.seeds[0]
    control = trial_at.get((race.control, first_seed))
    if control is None:
        return NextStep(start=((race.control, first_seed),)) if trials_left > 0 else None
    if not control.has_ended:
        return NextStep()
    if not control.has_failed:
        return None  # in trials of this length the job recovers by itself, so that they can prove nothing

    places = [(candidate, first_seed) for candidate in racing_candidates(design, race)]
    missing = tuple(place for place in places if place not in trial_at)[:trials_left]
    if missing:
        return NextStep(start=missing)
    promising = _candidates_better_than_control(design, race, trial_at)
    confirmation = tuple(_first_confirmation(design, race, trial_at, promising, trials_left))
    queued = tuple(place for place in places if place in trial_at and trial_at[place].status == "queued")
    if queued and confirmation and affordable_trials is not None and affordable_trials < len(confirmation):
        return NextStep(cancel=queued)
    if not all(trial_at[place].has_ended for place in places if place in trial_at):
        return NextStep()

    if confirmation and not any((candidate, seed) in trial_at for candidate, seed in _confirming(design, race)):
        return NextStep(start=confirmation)
    if not all(trial_at[place].has_ended for place in _confirming(design, race) if place in trial_at):
        return NextStep()
    if not all(trial.has_ended for (candidate, _), trial in trial_at.items() if candidate == race.control):
        return NextStep()
    further = _next_confirmation(design, race, trial_at, promising)
    return NextStep(start=further) if further and len(further) <= trials_left else None


def _candidates_better_than_control(
    design: ExperimentDesign, race: Round, trial_at: Mapping[tuple[int, int], TrialState]
) -> list[int]:
    """Return the candidates of a round that beat its control on the first seed, the best first."""
    control = trial_at[race.control, design.seeds[0]]
    final_values = [
        (measure.sign * measure.final, candidate)
        for candidate in race.candidates
        if (trial := trial_at.get((candidate, design.seeds[0]))) is not None
        and is_better(trial, control)
        and (measure := trial.measure) is not None
    ]
    return [candidate for _, candidate in sorted(final_values)]


def _confirming(design: ExperimentDesign, race: Round) -> Iterator[tuple[int, int]]:
    """Yield candidate and seed of every trial that could confirm a candidate of a round."""
    return ((candidate, seed) for candidate in race.candidates for seed in design.seeds[1:])


def _first_confirmation(
    design: ExperimentDesign,
    race: Round,
    trial_at: Mapping[tuple[int, int], TrialState],
    promising: Sequence[int],
    trials_left: int,
) -> Iterator[tuple[int, int]]:
    """Yield the trials that confirm the best two candidates, seed by seed, as far as the budget of trials allows.

    Only whole seeds are started: a seed without its control would show nothing.
    """
    if not promising:
        return
    group = (race.control, *promising[:CANDIDATES_TO_CONFIRM])
    for seed in design.seeds[1:]:
        places = [(candidate, seed) for candidate in group if (candidate, seed) not in trial_at]
        trials_left -= len(places)
        if trials_left < 0:
            return
        yield from places


def _next_confirmation(
    design: ExperimentDesign, race: Round, trial_at: Mapping[tuple[int, int], TrialState], promising: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Return the trials that confirm the next best candidate, unless one before it has held on every seed."""
    others = design.seeds[1:]
    if not others or not all((race.control, seed) in trial_at for seed in others):
        return ()
    controls = {seed: trial_at[race.control, seed] for seed in design.seeds}
    for candidate in promising:
        if all((candidate, seed) not in trial_at for seed in others):
            return tuple((candidate, seed) for seed in others)
        trials = [trial_at[candidate, seed] for seed in design.seeds if (candidate, seed) in trial_at]
        if len(trials) == len(design.seeds) and find_reason_not_verified(trials, controls) is None:
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
    control = design.round_of(candidate).control
    controls = {trial.seed: trial for seed in design.seeds if (trial := trial_at.get((control, seed))) is not None}
    by_curve: dict[str, list[TrialState]] = {}
    for trial in trials:
        by_curve.setdefault((trial.curve and trial.curve.digest) or f"seed {trial.seed}", []).append(trial)
    not_verified = find_reason_not_verified(trials, controls)
    refused = next((trial for trial in trials if trial.status == "not_applicable"), None)
    healthy = [same for same in by_curve.values() if all(_is_healthy(trial) for trial in same)]
    if refused is not None:
        state, reason = "not_applicable", refused.reason or "it could not be applied"
    elif not_verified is None and len(trials) == len(design.seeds):
        state, reason = "verified", "healthy on every seed, and better than the control"
    elif len(healthy) == len(by_curve):
        state = "healthy"
        reason = not_verified or f"it was tried on {len(trials)} of {len(design.seeds)} seeds"
    else:
        worst = next(trial for trial in trials if not _is_healthy(trial))
        state, reason = "failed", worst.reason or f"it is {worst.verdict} on seed {worst.seed}"
    judged_by = next((measure.judged_by for trial in trials if (measure := trial.measure) is not None), LOSS)
    compared = [controls[trial.seed] for trial in trials if trial.seed in controls]
    return CandidateOutcome(
        candidate=candidate,
        state=state,
        seeds=0 if refused is not None else len(by_curve),
        healthy=len(healthy),
        loss=_median_final_loss(trials),
        control_loss=_median_final_loss(compared),
        judged_by=None if judged_by == LOSS else judged_by,
        judged_value=_median_final_value(trials, judged_by),
        control_judged_value=_median_final_value(compared, judged_by),
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
    return trial.is_healthy and trial.status in ("done", "stopped")


def _median_final_loss(trials: Sequence[TrialState]) -> float | None:
    """Return the median of the final losses. A loss that is not finite counts as larger than any other."""
    losses = sorted(
        (trial.curve.final for trial in trials if trial.curve is not None and trial.curve.steps),
        key=lambda loss: loss if math.isfinite(loss) else math.inf,
    )
    return losses[len(losses) // 2] if losses else None


def _median_final_value(trials: Sequence[TrialState], judged_by: str) -> float | None:
    """Return the median of the final values of a measure other than the loss; None where it has none."""
    measures = [
        measure for trial in trials if (measure := trial.measure) is not None and measure.judged_by == judged_by
    ]
    values = sorted(measure.final for measure in measures if math.isfinite(measure.final))
    return values[len(values) // 2] if values and judged_by != LOSS else None


def _conclude(status: str, reason: str, outcomes: Iterable[CandidateOutcome] = ()) -> NextStep:
    return NextStep(conclusion=Conclusion(status=status, reason=reason, outcomes=tuple(outcomes)))
