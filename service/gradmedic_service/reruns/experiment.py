"""What a rerun tries next, and what it has shown: the experiment, without any input or output.

One idea: rows are the truth, and everything else follows from them. `plan` looks at the trials that there are and says
which to start, or how it all came out; asked again after any crash it says the same. `reason_to_stop` looks at one
trial that is under way beside the others at the same step.

1. The control, unchanged, must fail as the suspect run did, else the rerun is `not_reproduced`.
2. Every candidate runs on the first seed with the same budget of steps. At each rung the worse half is stopped, but
   the best two go on: successive halving without waiting (Li et al. 2020, A system for massively parallel
   hyperparameter tuning, section 3.3).
3. The best two that beat the control there are confirmed, with the control, on the other seeds; if neither holds, the
   next best is, and so on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS

CONTROL = 0
"""The candidate without remedies."""
CONFIRMED = 2
"""Candidates that are tried on further seeds, and that halving never stops."""
RUNGS = (0.5, 0.75)
"""Shares of the budget at which trials are compared: late, because a remedy that lowers the learning rate is behind at
first, and often is the one that holds."""
LAST_STOP = 0.9
"""Share of the budget beyond which stopping saves too little to be worth not knowing the end."""
LEAST_RUNG = 10
"""Steps before which nothing is compared: the losses of so few say little."""
FINAL_SHARE = 0.1
"""Of a trial's losses, the last: their median is its final loss."""
START_LOSSES = 5
"""The median of so many losses is where a trial started: no single odd batch."""
LEAST_DECLINE = 0.1
"""Share of its start by which a trial must have fallen to have learned. Without a margin, chance alone beats a control
that learned nothing by a thousandth."""
ENDED = ("done", "failed", "cancelled", "stopped", "not_applicable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a rerun may spend."""

    steps: int
    """Of each trial."""
    trials: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What was asked for."""

    candidates: int
    """Besides the control; they are numbered from 1, the most promising first."""
    seeds: tuple[int, ...]
    budget: Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What the losses of a trial come to."""

    steps: int
    """How many it reported a loss for."""
    start: float
    """NaN where there is none."""
    best: float
    """Smallest finite loss; infinite where there is none."""
    final: float
    """Median of the last tenth; not finite where most of those are not."""
    digest: str
    """Of every loss: the same for trials that are one and the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate on one seed, as it stands."""

    candidate: int
    seed: int
    status: str
    verdict: str = "undetermined"
    curve: Curve | None = None
    """Of a trial that has ended; None where no loss was reported."""
    rungs: tuple[float, ...] = ()
    """Loss at each rung that it has passed; infinite where it was bad there."""
    seconds: float = 0.0
    reason: str | None = None
    """Why it did not run to its end."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions and device that it ran on."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateOutcome:
    """What trying one candidate has shown."""

    candidate: int
    state: str
    """`verified`, `healthy`, `failed` or `not_applicable`."""
    seeds: int
    """On which it ran, one and the same loss curve counted once."""
    healthy: int
    """Of them, those that ended with the verdict healthy."""
    loss: float | None
    control_loss: float | None
    cost_seconds: float
    reason: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions and device that its trials ran on; several are separated by commas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """How a rerun came out."""

    status: str
    """`done`, `not_reproduced` or `failed`."""
    reason: str
    outcomes: tuple[CandidateOutcome, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do now: start these trials, in this order, or nothing until one ends; or it is over."""

    start: tuple[tuple[int, int], ...] = ()
    """Candidate and seed."""
    conclusion: Conclusion | None = None


def describe_curve(losses: NDArray[np.float64]) -> Curve | None:
    """Sum up the losses of a trial, in the order of its steps; None if there are none."""
    if not len(losses):
        return None
    finite = losses[np.isfinite(losses)]
    return Curve(
        steps=len(losses),
        start=median(finite[:START_LOSSES].tolist()) if len(finite) else math.nan,
        best=float(finite.min()) if len(finite) else math.inf,
        final=final_loss(losses),
        digest=hashlib.blake2b(losses.astype("<f8").tobytes(), digest_size=16).hexdigest(),
    )


def final_loss(losses: NDArray[np.float64]) -> float:
    """Return the median of the last tenth, at least of the last one; NaN where half of them or more are not finite.

    >>> final_loss(np.array([3.0, 2.0, 1.0]))
    1.0
    >>> final_loss(np.array([1.0] * 18 + [np.nan, 1.0]))
    nan
    """
    last = losses[-max(1, round(len(losses) * FINAL_SHARE)) :]
    finite = last[np.isfinite(last)]
    return median(finite.tolist()) if 2 * len(finite) > len(last) else math.nan


def rungs_of(steps: int) -> tuple[int, ...]:
    """Return the numbers of steps after which trials with this budget are compared.

    >>> rungs_of(200), rungs_of(18), rungs_of(4)
    ((100, 150), (13,), ())
    """
    return tuple(rung for share in RUNGS if (rung := int(steps * share)) >= LEAST_RUNG)


def loss_at_rung(losses: NDArray[np.float64], verdict: str) -> float:
    """Return what a trial is compared by at a rung: its final loss so far; infinity where it is bad already."""
    loss = final_loss(losses) if len(losses) else math.inf
    return loss if math.isfinite(loss) and verdict not in UNHEALTHY_VERDICTS else math.inf


def reason_to_stop(trial: Trial, others: Iterable[Trial], control: Trial, design: Design, steps: int) -> str | None:
    """Say why a trial under way is not worth its further steps; None if it is, or is not in the race.

    It is compared with those that may still win: that run as well, or have ended and beaten the control. A remedy that
    learns fast and explodes later would otherwise drive out the ones that do not.

    Args:
        trial: that runs, with its loss at the rungs that it has passed.
        others: trials of the same rerun.
        control: the ended control on the first seed.
        design: what was asked for.
        steps: how many it has done.
    """
    first = design.seeds[0]
    if trial.candidate == CONTROL or trial.seed != first or steps > LAST_STOP * design.budget.steps:
        return None
    if trial.verdict == "exploding":
        return "it is exploding"
    if not trial.rungs:
        return None
    rung = len(trial.rungs)
    theirs = [
        other.rungs[rung - 1]
        for other in others
        if other.candidate not in (CONTROL, trial.candidate)
        and other.seed == first
        and len(other.rungs) >= rung
        and (is_better(other, control) or not other.has_ended)
    ]
    better = sum(loss < trial.rungs[-1] for loss in theirs)
    if better >= max(CONFIRMED, math.ceil((len(theirs) + 1) / 2)):
        return f"{better} of {len(theirs)} others were better at the same step"
    return None


def plan(design: Design, trials: Sequence[Trial], closed: str | None = None) -> Plan:
    """Say what a rerun does now. Never starts a trial twice, nor more trials than the budget has.

    Args:
        design: what was asked for.
        trials: all that there are.
        closed: why no further trial can be started, if that is so.
    """
    known = {(trial.candidate, trial.seed): trial for trial in trials}
    left = design.budget.trials - len(trials)
    first = design.seeds[0]

    control = known.get((CONTROL, first))
    if control is None:
        if left < 1 or closed is not None:
            return _concluded("failed", closed or "the budget allows not even the control", ())
        return Plan(start=((CONTROL, first),))
    if not control.has_ended:
        return Plan()
    if control.verdict not in UNHEALTHY_VERDICTS:
        if control.status != "done":
            return _concluded("failed", f"the control did not run: {control.reason or control.status}", ())
        reason = f"the unchanged control is {control.verdict} after {design.budget.steps} steps"
        return _concluded("not_reproduced", reason, ())

    racing = [(candidate, first) for candidate in range(1, _racing(design) + 1)]
    missing = () if closed is not None else tuple(place for place in racing if place not in known)[:left]
    if missing:
        return Plan(start=missing)
    if not all(known[place].has_ended for place in racing if place in known):
        return Plan()

    promising = _promising(design, known, control)
    if promising and not any(seed != first for _, seed in known) and closed is None:
        group = (CONTROL, *promising[:CONFIRMED])
        places = [(candidate, seed) for seed in design.seeds[1:] for candidate in group]
        whole = tuple(places[: left - left % len(group)])  # a seed without its control would show nothing
        if whole:
            return Plan(start=whole)
    if not all(trial.has_ended for trial in trials):
        return Plan()
    following = _following(design, known, promising)
    if following and len(following) <= left and closed is None:
        return Plan(start=following)
    outcomes = tuple(_outcome(design, known, candidate) for candidate in range(1, design.candidates + 1))
    tried = [outcome for outcome in outcomes if outcome is not None]
    verified = sum(outcome.state == "verified" for outcome in tried)
    reason = f"{verified} of {len(tried)} candidates verified"
    if closed is not None:
        reason += f"; not everything was tried: {closed}"
    elif len(tried) < design.candidates:
        reason += "; not everything was tried: the budget of trials is spent"
    return _concluded("done", reason, tried)


def is_better(trial: Trial, control: Trial) -> bool:
    """Whether a trial meets the criterion of `verified` on its seed.

    It ran to its end, its verdict is healthy, and it learns: its final loss is below the control's best and at least a
    tenth below its own start.
    """
    curve = trial.curve
    if trial.status != "done" or trial.verdict != "healthy" or curve is None or not math.isfinite(curve.final):
        return False
    if control.curve is None and control.verdict not in UNHEALTHY_VERDICTS:
        return False  # it never ran: there is nothing to be better than
    best = math.inf if control.curve is None else control.curve.best
    return curve.final < best and curve.final <= curve.start - LEAST_DECLINE * abs(curve.start)


def _racing(design: Design) -> int:
    """Return how many candidates the budget of trials lets race, if the best are to be confirmed."""
    for_confirmation = (len(design.seeds) - 1) * (1 + min(CONFIRMED, design.candidates))
    return min(design.candidates, max(design.budget.trials - 1 - for_confirmation, 1))


def _promising(design: Design, known: Mapping[tuple[int, int], Trial], control: Trial) -> list[int]:
    """Return the candidates that beat the control on the first seed, the best first."""
    finals = [
        (trial.curve.final, trial.candidate)
        for (candidate, seed), trial in known.items()
        if candidate != CONTROL and seed == design.seeds[0] and is_better(trial, control) and trial.curve is not None
    ]
    return [candidate for _, candidate in sorted(finals)]


def _following(
    design: Design, known: Mapping[tuple[int, int], Trial], promising: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Return the trials that confirm the next best candidate, if those before it did not hold on every seed."""
    others = design.seeds[1:]
    if not others or not all((CONTROL, seed) in known for seed in others):
        return ()
    for candidate in promising:
        if all((candidate, seed) not in known for seed in others):
            return tuple((candidate, seed) for seed in others)
        if all(
            (candidate, seed) in known and is_better(known[candidate, seed], known[CONTROL, seed]) for seed in others
        ):
            return ()
    return ()


def _outcome(design: Design, known: dict[tuple[int, int], Trial], candidate: int) -> CandidateOutcome | None:
    mine = [trial for seed in design.seeds if (trial := known.get((candidate, seed))) is not None]
    mine = [trial for trial in mine if trial.status != "cancelled"]
    if not mine:
        return None
    controls = {trial.seed: trial for seed in design.seeds if (trial := known.get((CONTROL, seed))) is not None}
    distinct: dict[str, list[Trial]] = {}
    for trial in mine:
        distinct.setdefault(trial.curve.digest if trial.curve else f"seed {trial.seed}", []).append(trial)
    is_proven = [trial.seed in controls and is_better(trial, controls[trial.seed]) for trial in mine]
    refused = next((trial for trial in mine if trial.status == "not_applicable"), None)
    healthy = [same for same in distinct.values() if all(_is_healthy(trial) for trial in same)]
    if refused is not None:
        state, reason = "not_applicable", refused.reason or "it could not be applied"
    elif all(is_proven) and len(mine) == len(design.seeds):
        state, reason = "verified", "healthy on every seed, and better than the control"
    elif len(healthy) == len(distinct):
        state, reason = "healthy", _why_not_verified(design, mine, controls)
    else:
        worst = next(trial for trial in mine if not _is_healthy(trial))
        state, reason = "failed", worst.reason or f"it is {worst.verdict} on seed {worst.seed}"
    return CandidateOutcome(
        candidate=candidate,
        state=state,
        seeds=0 if refused is not None else len(distinct),
        healthy=len(healthy),
        loss=_typical(mine),
        control_loss=_typical([controls[trial.seed] for trial in mine if trial.seed in controls]),
        cost_seconds=sum(trial.seconds for trial in mine),
        reason=reason,
        environment=_environment_of(mine),
    )


def _environment_of(trials: Sequence[Trial]) -> dict[str, str]:
    """Sum up what trials ran on.

    >>> one, other = {"torch": "2.13.0", "device": "cpu"}, {"torch": "2.13.0", "device": "NVIDIA A100"}
    >>> ran_on = lambda seed, on: Trial(candidate=1, seed=seed, status="done", environment=on)
    >>> _environment_of([ran_on(0, one), ran_on(1, other), ran_on(2, one)])
    {'torch': '2.13.0', 'device': 'cpu, NVIDIA A100'}
    """
    seen: dict[str, dict[str, None]] = {}
    for trial in trials:
        for name, value in trial.environment.items():
            seen.setdefault(name, {})[value] = None
    return {name: ", ".join(values) for name, values in seen.items()}


def _is_healthy(trial: Trial) -> bool:
    return trial.verdict == "healthy" and trial.status in ("done", "stopped")


def _why_not_verified(design: Design, mine: Sequence[Trial], controls: dict[int, Trial]) -> str:
    for trial in mine:
        if trial.status == "stopped":
            return f"stopped early: {trial.reason}"
        if trial.curve is None:
            return "it reports no loss"
        if trial.seed not in controls or not is_better(trial, controls[trial.seed]):
            return f"its loss on seed {trial.seed} is no better than the control's, or did not fall by a tenth"
    return f"it was tried on {len(mine)} of {len(design.seeds)} seeds"


def _typical(trials: Sequence[Trial]) -> float | None:
    """Return the median of the final losses; one that is not finite counts as larger than any other."""
    finals = sorted(
        (trial.curve.final for trial in trials if trial.curve is not None),
        key=lambda loss: loss if math.isfinite(loss) else math.inf,
    )
    return finals[len(finals) // 2] if finals else None


def _concluded(status: str, reason: str, outcomes: Iterable[CandidateOutcome]) -> Plan:
    return Plan(conclusion=Conclusion(status=status, reason=reason, outcomes=tuple(outcomes)))
