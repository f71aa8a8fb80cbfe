"""The trials of a rerun of the kind `locate`, and its result; without input or output.

All trials run the unchanged script. The first one runs to the step before the failure, and each operation is checked
from there on. Further trials show what the failure depends on:

1. If the first trial fails earlier than the suspect run did, the next one begins its checks earlier.
2. A second trial on the same seed repeats the first. If it stays finite although its losses were the same, the failure
   is not deterministic.
3. A trial on another seed has other weights. If it fails in the same place on the same batch, the batch is the reason.
   This is not asked where a number grew beyond the range of its dtype, nor at the first step, which has no batch before
   it that passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gradmedic.protocol.origins import Origin
from gradmedic_service.reruns.judging import ENDED

MAX_TRIALS = 4
"""Largest number of trials: one whose checks begin too late, and three that locate."""
EXPECTED_TRIALS = 3
CANDIDATES = 3
"""Numbers that trials on one seed may have as candidates. None of them has remedies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocateTrial:
    """A trial as it stands."""

    candidate: int
    seed: int
    status: str
    reason: str | None = None
    steps: int = 0
    """Number of steps that it has logged."""
    origin: Origin | None = None
    """What it found, or the reason why it found nothing; None if every number was finite."""
    has_same_losses: bool | None = None
    """Whether its losses before the failure were those of the first trial that found the origin; None if there are
    none to compare."""
    earlier_start: int | None = None
    """Step from which on the next trial must check, because this one failed before its checks began."""

    @property
    def has_ended(self) -> bool:
        """Whether the trial has ended."""
        return self.status in ENDED

    @property
    def has_located(self) -> bool:
        """Whether it found an operation."""
        return self.origin is not None and self.origin.operation is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Result of a rerun."""

    status: str
    """`done`, `not_reproduced` or `failed`."""
    reason: str
    origin: Origin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocateStep:
    """The next action of a rerun. If no field is set, it is to wait for a trial."""

    start: tuple[int, int] | None = None
    """Candidate and seed of the trial to start."""
    locate_from: int | None = None
    """Step from which on it checks, where that changes."""
    result: Located | None = None


def next_step(
    trials: Sequence[LocateTrial],
    *,
    seed: int,
    failed_step: int,
    max_trials: int,
    reason_for_no_new_trials: str | None = None,
) -> LocateStep:
    """Return the next action of a rerun.

    Args:
        trials: all trials of the rerun, in the order of their starts.
        seed: seed of all trials but the one with other weights.
        failed_step: step at which the suspect run failed.
        max_trials: largest number of trials.
        reason_for_no_new_trials: why no further trial can be started; None if trials can be started.
    """
    can_start = reason_for_no_new_trials is None and len(trials) < max_trials
    if any(not trial.has_ended for trial in trials):
        return LocateStep()
    same_seed = [trial for trial in trials if trial.seed == seed]
    if not same_seed:
        if not can_start:
            return _conclude("failed", reason_for_no_new_trials or "the budget allows no trial")
        return LocateStep(start=(0, seed))
    first = next((trial for trial in same_seed if trial.has_located), None)
    if first is None or first.origin is None:
        latest = same_seed[-1]
        if latest.earlier_start is not None and len(same_seed) == 1 and can_start:
            return LocateStep(start=(1, seed), locate_from=latest.earlier_start)
        return LocateStep(result=_describe_nothing(latest, failed_step))
    again = next((trial for trial in same_seed if trial.candidate > first.candidate), None)
    other = next((trial for trial in trials if trial.seed != seed), None)
    if again is None and can_start:
        return LocateStep(start=(first.candidate + 1, seed))
    if other is None and can_start and again is not None and _may_be_data(first.origin, again.origin):
        return LocateStep(start=(first.candidate, seed + 1))
    origin = _judge(first.origin, again, other)
    return _conclude("done", (origin.text or f"the origin is `{origin.operation}`").removesuffix("."), origin)


def _judge(origin: Origin, again: LocateTrial | None, other: LocateTrial | None) -> Origin:
    """Return the origin with what the further trials have shown."""
    kind, reproduced, shown = origin.kind, "1 of 1", ""
    if again is not None and again.origin is not None and _is_same_place(origin, again.origin):
        reproduced = "2 of 2"
    elif again is not None and (again.origin is not None or again.status == "done"):
        reproduced = "1 of 2"
        if again.origin is None and again.has_same_losses:
            kind = "not_deterministic"
            shown = "A second trial had the same losses and stayed finite: the failure is not deterministic."
        else:
            shown = "A second trial did not fail in this place, and its losses were different."
            if again.has_same_losses:
                shown = "A second trial had the same losses and failed in another place."
    if (
        other is not None
        and other.origin is not None
        and other.has_same_losses is False
        and _is_same_place(origin, other.origin)
        and _digests(origin) == _digests(other.origin)
    ):
        kind, shown = "data", "The same batch fails with the weights of another seed too."
    text = " ".join(part for part in (origin.text, shown) if part)
    return replace(origin, kind=kind, reproduced=reproduced, text=text or None)


def _may_be_data(origin: Origin, again: Origin | None) -> bool:
    """Whether a trial with other weights would show that the batch is the reason."""
    has_overflown = origin.input is not None and origin.input.special == "overflow"
    return (
        again is not None
        and _is_same_place(origin, again)
        and origin.kind == "numeric"
        and _digests(origin) is not None
        and bool(origin.step)
        and not has_overflown
    )


def _digests(origin: Origin) -> list[str] | None:
    """Return the digests of the batch of a step; None if one is not known."""
    digests = [tensor.digest for tensor in origin.batch_tensors if tensor.digest is not None]
    return digests if digests and len(digests) == len(origin.batch_tensors) else None


def _is_same_place(first: Origin, second: Origin) -> bool:
    places = [(each.operation, each.direction, each.source, each.module, each.step) for each in (first, second)]
    return places[0] == places[1]


def _describe_nothing(trial: LocateTrial, failed_step: int) -> Located:
    """Return the result of a rerun whose trials found no operation."""
    if trial.origin is not None:
        text = trial.origin.text or trial.origin.reason or "the origin was not found"
        return Located(status="done", reason=text.removesuffix("."), origin=replace(trial.origin, reproduced="1 of 1"))
    if trial.status != "done":
        return Located(status="failed", reason=f"the trial did not run: {trial.reason or trial.status}")
    if trial.steps <= failed_step:
        reason = f"the script ended after {trial.steps} steps, all of them finite; the run failed at step {failed_step}"
    else:
        reason = f"the unchanged script stayed finite in {trial.steps} steps; the run failed at step {failed_step}"
    return Located(status="not_reproduced", reason=reason)


def _conclude(status: str, reason: str, origin: Origin | None = None) -> LocateStep:
    return LocateStep(result=Located(status=status, reason=reason, origin=origin))
