"""Trials of the causes corpus: a case is trained with remedies that the SDK applies, and its recording is kept.

A trial starts as a worker starts it: with the same instructions in the environment, the same number of steps, every
step sampled, and a seed of its own. Its steps are read back from its journal.

A recording is kept in `benchmarks/.cache/cause-races` under a digest of what the training depends on: case, seed,
remedies, the SDK, and of the SDK's remedies only those that are tried. The verdict on it is kept beside it under a
digest of the diagnosis, so that a change of the diagnosis needs no new training. What decides only causes and advice is
left out of that digest.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import multiprocessing
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from unittest import mock

import msgspec
import numpy as np

from benchmarks.corpus.causes.cases import CauseCase, CauseProgram
from benchmarks.corpus.causes.generate import SDK, record_case, sdk_digest
from benchmarks.corpus.causes.set_aside import source_digest
from benchmarks.corpus.foreign.generate import save
from benchmarks.corpus.foreign.loading import CACHE, to_block
from benchmarks.reruns.trials import ADVICE_SOURCES, DIAGNOSIS
from gradmedic.configuration import Configuration, as_trial
from gradmedic.exceptions import TrialEnded
from gradmedic.protocol.encoding import from_json, to_json
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.remedies import REMEDIES, Remedy
from gradmedic.protocol.runs import RunCreate, Training
from gradmedic.protocol.verdicts import Learning
from gradmedic.torch.remedies.registry import REMEDY_CLASSES
from gradmedic.trial import SEED_VARIABLE, TRIAL_VARIABLE, TrialInstructions
from gradmedic_diagnosis import Block, Diagnostician
from gradmedic_service.reruns import judging
from gradmedic_service.reruns.measures import summarize_trial

RESULTS: Final = CACHE / "cause-races"
LONGEST_SECONDS: Final = 300.0
"""Seconds of a trial: a remedy may make a training slow, and the machine may be busy."""
REMEDY_SOURCES: Final = SDK / "torch" / "remedies"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTrial:
    """What the training of a trial leaves, besides its recording. It depends on no diagnosis."""

    status: str
    """`done`, `failed` or `not_applicable`."""
    reason: str | None
    losses: list[float]
    skill: float
    """Skill at the end; minus infinity without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseTrial:
    """The result of a trial."""

    trained: TrainedTrial
    verdict: str
    learning: Learning
    recording: Path
    """File of its steps, where it is done."""

    def as_state(self, candidate: int, seed: int) -> judging.TrialState:
        """Return the result in the form that the experiment reads."""
        losses = np.array(self.trained.losses)
        training = read_recording(self.recording)[0].training if self.trained.status == "done" else None
        return judging.TrialState(
            candidate=candidate,
            seed=seed,
            status=self.trained.status,
            verdict=self.verdict,
            curve=summarize_trial(losses, None, losses, training, None, self.learning),
            reason=self.trained.reason,
        )


def try_remedies(case: CauseCase, program: CauseProgram, remedies: Sequence[Remedy], seed: int) -> CauseTrial:
    """Return the result of a trial; train in a process of its own if there is no kept recording."""
    digests = [case.digest, source_digest(program), sdk_digest(), remedies_digest(tuple(r.id for r in remedies))]
    key = hashlib.blake2b(to_json([*digests, list(remedies), seed]), digest_size=16).hexdigest()
    kept = RESULTS / f"{key}.msgpack"
    if not kept.exists():
        _train_apart(case, program, remedies, seed, kept)
    trained = msgspec.msgpack.decode(kept.read_bytes(), type=TrainedTrial)
    verdict, learning = _read_verdict(kept) if trained.status == "done" else ("undetermined", "unknown")
    return CauseTrial(trained=trained, verdict=verdict, learning=learning, recording=kept.with_suffix(".npz"))


@functools.cache
def remedies_digest(ids: tuple[str, ...]) -> str:
    """Return a digest of the source of these remedies, of what they use, and of their targets; empty for none."""
    if not ids:
        return ""
    targets = [sorted(REMEDIES[id].targets) for id in ids]
    digest = hashlib.sha256(to_json(targets))
    for path in sorted(list_remedy_sources(ids)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def list_remedy_sources(ids: Iterable[str]) -> set[Path]:
    """Return the files of these remedies, what all remedies share, and the remedies that they import."""
    own = {id: Path(inspect.getfile(remedy)) for id, remedy in REMEDY_CLASSES.items()}
    used = {*REMEDY_SOURCES.rglob("*.py")} - {*own.values()} | {own[id] for id in ids if id in own}
    while True:
        texts = [path.read_text(encoding="utf-8") for path in used]
        imported = {path for path in own.values() if any(f"{_name_module(path)} import" in text for text in texts)}
        if imported <= used:
            return used
        used |= imported


def _name_module(path: Path) -> str:
    return ".".join(path.relative_to(SDK.parent).with_suffix("").parts)


@functools.cache
def diagnosis_digest() -> str:
    """Return a digest of the source of the diagnosis, without causes and advice."""
    digest = hashlib.sha256()
    for path in sorted({*DIAGNOSIS.rglob("*.py")} - {*ADVICE_SOURCES, DIAGNOSIS / "summary.py"}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def read_recording(path: Path) -> tuple[RunCreate, Block]:
    """Return the description and the steps of a trial."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    description = from_json(arrays["description"].tobytes(), RunCreate)
    return description, to_block(arrays, description.statistics)


def _read_verdict(kept: Path) -> tuple[str, Learning]:
    """Return verdict and learning of a kept recording; diagnose it if this diagnosis has not done so."""
    note = kept.with_suffix(f".{diagnosis_digest()}.verdict.json")
    if note.exists():
        return from_json(note.read_bytes(), tuple[str, Learning])
    description, block = read_recording(kept.with_suffix(".npz"))
    diagnostician = Diagnostician(
        tuple(description.layers), description.training or Training(), framework=description.framework
    )
    diagnostician.update(block)
    diagnosis = diagnostician.diagnose()
    draft = note.with_suffix(f".{os.getpid()}.draft")
    draft.write_bytes(to_json([diagnosis.verdict, diagnosis.learning]))
    draft.replace(note)
    return diagnosis.verdict, diagnosis.learning


def _train_apart(case: CauseCase, program: CauseProgram, remedies: Sequence[Remedy], seed: int, kept: Path) -> None:
    """Train in a process of its own, and keep the recording and the result."""
    draft = kept.with_suffix(f".{os.getpid()}.draft")
    process = multiprocessing.get_context("fork").Process(
        target=_run_trial, args=(case, program, tuple(remedies), seed, draft, kept.with_suffix(".npz")), daemon=True
    )
    process.start()
    process.join(LONGEST_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    if not draft.exists():
        draft.write_bytes(msgspec.msgpack.encode(_without_end("failed", "it ended early")))
    draft.replace(kept)


def _run_trial(
    case: CauseCase, program: CauseProgram, remedies: tuple[Remedy, ...], seed: int, draft: Path, recording: Path
) -> None:
    """Train with the instructions of a trial in the environment; write the recording, and then the result."""
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  # the process ends with this function
    os.environ[SEED_VARIABLE] = str(seed)
    os.environ["GRADMEDIC_RUN_ID"], os.environ["GRADMEDIC_PROJECT"] = str(new_id()), "races"
    os.environ[TRIAL_VARIABLE] = to_json(TrialInstructions(remedies=list(remedies))).decode()
    try:
        with mock.patch("gradmedic.initialize.as_trial", _as_offline_trial):
            recorded = record_case(case, program, "every", seed)
    except TrialEnded as ended:
        trained = _without_end("not_applicable", ended.reason)
    except Exception as error:
        trained = _without_end("failed", repr(error))
    else:
        save(recording, recorded)
        trained = TrainedTrial(status="done", reason=None, losses=recorded.losses, skill=recorded.skill)
    unfinished = draft.with_suffix(".unfinished")
    unfinished.write_bytes(msgspec.msgpack.encode(trained))
    unfinished.replace(draft)


def _without_end(status: str, reason: str) -> TrainedTrial:
    return TrainedTrial(status=status, reason=reason, losses=[], skill=-math.inf)


def _as_offline_trial(configuration: Configuration, parameters: Mapping[str, Any]) -> Configuration:
    """Return the configuration of a trial that writes its journal alone, where the recorder reads it.

    A worker's trial reports to the service, and writes where its worker reads.
    """
    return replace(as_trial(configuration, parameters), mode="offline", dir=configuration.dir)
