"""Races the first advices of diagnosed runs against an unchanged control, on runs whose cause a rerun can treat.

A trial is the training of a case with remedies applied by the SDK, as a worker starts it: the same instructions in the
environment, the same number of steps, every step sampled, and a seed of its own. Its steps are read back from its
journal and diagnosed. A remedy is *verified* if it meets the criterion of the service (`experiment.is_better`) on each
of three seeds: healthy, a tenth below its own start, and below the control's best loss. Beside this, it must be true in
skill: beyond a constant predictor and beyond the control, by a measure that no trial reports.

Results are kept in `benchmarks/.cache/cause-races`, named after the case, the remedies, the seed and the code.
"""

from __future__ import annotations

import functools
import hashlib
import math
import multiprocessing
import os
import random
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from unittest import mock

import msgspec
import numpy as np

import gradmedic_diagnosis
from benchmarks.causes import CauseReading, describe_share
from benchmarks.corpus.causes.cases import CauseCase, CauseProgram
from benchmarks.corpus.causes.generate import digest_of, record_case
from benchmarks.corpus.causes.splits import CAUSES_SPLITS
from benchmarks.corpus.foreign.loading import CACHE
from gradmedic.configuration import Configuration, as_trial
from gradmedic.exceptions import TrialEnded
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.remedies import REMEDIES, Remedy
from gradmedic.protocol.runs import Training
from gradmedic.trial import SEED_VARIABLE, TRIAL_VARIABLE, TrialInstructions
from gradmedic_diagnosis import Diagnostician
from gradmedic_service.reruns import experiment
from gradmedic_service.reruns.loss_curves import summarize_losses

RESULTS: Final = CACHE / "cause-races"
RACED: Final = 3
"""Number of advices that race."""
SEEDS: Final = (0, 1, 2)
LONGEST_SECONDS: Final = 300.0
"""Seconds of a trial: a remedy may make a training slow, and the machine may be busy."""
LEAST_SKILL: Final = 0.05
"""Skill from which a training is beyond a constant predictor, and by which it is beyond its control."""
DRAWN: Final = 17
"""Seed of the sample of runs."""
TARGET_FIRST: Final = 0.60
TARGET_FIRST_THREE: Final = 0.85
DIAGNOSIS: Final = Path(gradmedic_diagnosis.__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseTrial:
    """The result of a trial."""

    status: str
    """`done`, `failed` or `not_applicable`."""
    reason: str | None
    verdict: str
    losses: list[float]
    skill: float
    """Skill at the end; minus infinity without one."""

    def as_state(self, candidate: int, seed: int) -> experiment.TrialState:
        """Return the result in the form that the experiment reads."""
        return experiment.TrialState(
            candidate=candidate,
            seed=seed,
            status=self.status,
            verdict=self.verdict,
            curve=summarize_losses(np.array(self.losses)),
            reason=self.reason,
        )


@functools.cache
def _diagnosis_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(DIAGNOSIS.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def try_remedies(case: CauseCase, program: CauseProgram, remedies: Sequence[Remedy], seed: int) -> CauseTrial:
    """Return the result of a trial; run it in a process of its own if there is no kept result."""
    key = to_json([digest_of(case, program), _diagnosis_digest(), list(remedies), seed])
    kept = RESULTS / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.msgpack"
    if kept.exists():
        return msgspec.msgpack.decode(kept.read_bytes(), type=CauseTrial)
    draft = kept.with_suffix(".draft")
    process = multiprocessing.get_context("fork").Process(
        target=_run_trial, args=(case, program, tuple(remedies), seed, draft), daemon=True
    )
    process.start()
    process.join(LONGEST_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    if not draft.exists():
        ended = CauseTrial(status="failed", reason="it ended early", verdict="", losses=[], skill=-math.inf)
        draft.write_bytes(msgspec.msgpack.encode(ended))
    draft.replace(kept)
    return msgspec.msgpack.decode(kept.read_bytes(), type=CauseTrial)


def _run_trial(case: CauseCase, program: CauseProgram, remedies: tuple[Remedy, ...], seed: int, path: Path) -> None:
    """Train with the instructions of a trial in the environment, and write the result."""
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  # the process ends with this function
    os.environ[SEED_VARIABLE] = str(seed)
    os.environ["GRADMEDIC_RUN_ID"], os.environ["GRADMEDIC_PROJECT"] = str(new_id()), "races"
    os.environ[TRIAL_VARIABLE] = to_json(TrialInstructions(remedies=list(remedies))).decode()
    try:
        with mock.patch("gradmedic.initialize.as_trial", _as_offline_trial):
            recorded = record_case(case, program, "every", seed)
    except TrialEnded as ended:
        result = CauseTrial(
            status="not_applicable", reason=ended.reason, verdict="undetermined", losses=[], skill=-math.inf
        )
    except Exception as error:
        result = CauseTrial(status="failed", reason=repr(error), verdict="undetermined", losses=[], skill=-math.inf)
    else:
        description = recorded.description
        diagnostician = Diagnostician(
            tuple(description.layers), description.training or Training(), framework=description.framework
        )
        diagnostician.update(recorded.block)
        result = CauseTrial(
            status="done",
            reason=None,
            verdict=diagnostician.diagnose().verdict,
            losses=recorded.losses,
            skill=recorded.skill,
        )
    path.write_bytes(msgspec.msgpack.encode(result))


def _as_offline_trial(configuration: Configuration, parameters: Mapping[str, Any]) -> Configuration:
    """Return the configuration of a trial that writes its journal alone. A worker's trial reports to the service."""
    return replace(as_trial(configuration, parameters), mode="offline")


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseRace:
    """What became of the first advices of a run."""

    reading: CauseReading
    verified: tuple[bool, ...]
    """Whether each advice is verified on every seed, in their order, until the first one that is."""
    is_true: bool
    """Whether the one that is verified is true in skill on every seed."""


def list_raceable(reading: CauseReading) -> list[Remedy]:
    """Return the first advices that the SDK can apply in a rerun."""
    remedies = [advice.remedy for advice in reading.advice]
    return [remedy for remedy in remedies if not REMEDIES[remedy.id].needs_script][:RACED]


def is_verified(control: CauseTrial, trial: CauseTrial, seed: int) -> bool:
    """Return whether a trial meets the criterion of the service on its seed."""
    return experiment.is_better(trial.as_state(1, seed), control.as_state(experiment.CONTROL, seed))


def is_true_in_skill(control: CauseTrial, trial: CauseTrial) -> bool:
    """Return whether a trial is beyond a constant predictor and beyond its control, by its skill."""
    return trial.skill >= LEAST_SKILL and trial.skill >= max(control.skill, 0.0) + LEAST_SKILL


def race(case: CauseCase, program: CauseProgram, reading: CauseReading) -> CauseRace:
    """Try the first advices in turn, each on all seeds, until one is verified."""
    verified: list[bool] = []
    is_true = False
    for remedy in list_raceable(reading):
        held, true = True, True
        for seed in SEEDS:
            control, trial = (try_remedies(case, program, remedies, seed) for remedies in ((), (remedy,)))
            held = is_verified(control, trial, seed)
            true = true and is_true_in_skill(control, trial)
            if not held:
                break
        verified.append(held)
        if held:
            is_true = true
            break
    return CauseRace(reading=reading, verified=tuple(verified), is_true=is_true)


def draw_sample(readings: Sequence[CauseReading], count: int) -> list[CauseReading]:
    """Draw runs whose cause a rerun can treat, the same ones each time."""
    treatable = [reading for reading in readings if reading.run.is_failing and reading.run.treatable]
    return random.Random(DRAWN).sample(treatable, min(count, len(treatable)))  # no secret


def race_sample(split: str, readings: Sequence[CauseReading], count: int, jobs: int) -> list[tuple[str, str, bool]]:
    """Race the advices of a sample, print the shares, and return name and value, target, and whether it is met."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    cases = {case.id: (case, program) for program in CAUSES_SPLITS[split] for case in program.cases()}
    sample = draw_sample(readings, count)
    print(f"racing the first {RACED} advices of {len(sample)} runs (finished trials are kept) ...", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        races = list(pool.map(lambda reading: race(*cases[reading.run.id], reading), sample))
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
