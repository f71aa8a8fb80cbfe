"""Records a case through the SDK, as a user's run that is offline, and reads its journal back into a block.

The steps go the way that they go to a service: from the journal into the body of a request, and through the service's
decoder into a block. So a recording holds what a service would have diagnosed.
"""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

import gradmedic
from benchmarks.corpus.foreign.cases import Case, Program, Settings
from benchmarks.corpus.foreign.examiner import Examiner, TrainingEndedError
from benchmarks.corpus.foreign.session import Session
from gradmedic.protocol.runs import RunCreate
from gradmedic.protocol.service import MSGPACK_MEDIA_TYPE
from gradmedic.recording.step import Columns, Step, encode_block
from gradmedic.upload.journal import Journal, list_sessions
from gradmedic_diagnosis import Block
from gradmedic_service.settings import Settings as ServiceSettings
from gradmedic_service.telemetry.decoding import decode_block

LOG_FREQUENCIES: Final[dict[str, int | str]] = {"auto": "auto", "every": 1, "sparse": 20}
"""`log_freq` by sampling. `auto` is the SDK's default, which samples trainings that are this short almost throughout;
`every` samples each step; `sparse` is about what `auto` does in a long training."""
SAMPLINGS: Final = tuple(LOG_FREQUENCIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A run as the service would have it, and what the examiner saw."""

    description: RunCreate
    block: Block
    losses: list[float]
    skill: float
    best_skill: float
    died: bool
    first_nonfinite: int | None
    nonfinite_gradients: list[str] = field(default_factory=list)
    finite_gradients: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0


def record(case: Case, program: Program, sampling: str = "auto") -> Recorded:
    """Train a case and record it.

    Raises:
        ValueError: there is no such sampling.
    """
    return record_training(
        case.id,
        case.settings,
        lambda run, examiner: program.train(Session(case.settings, run, examiner, case.seed)),
        sampling,
    )


def record_training(
    name: str, settings: Settings, train: Callable[[gradmedic.Run, Examiner], None], sampling: str = "auto"
) -> Recorded:
    """Train and record.

    Args:
        name: name of the run.
        settings: `steps`, and `objective` where the run has one.
        train: the training. It is given the run and the examiner.
        sampling: `auto`, `every` or `sparse`.

    Raises:
        ValueError: there is no such sampling.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling must be one of {', '.join(SAMPLINGS)}; got {sampling!r}")
    started = time.process_time()
    torch.set_num_threads(1)
    examiner = Examiner(int(settings["steps"]))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = gradmedic.init(
            mode="offline", dir=folder, silent=True, name=name, project="foreign",
            log_freq=LOG_FREQUENCIES[sampling], objective=settings.get("objective"),
        )  # fmt: skip
        train_examined(run, examiner, train)
        description, block = read_journal(Path(folder), run.id)
    skill = -math.inf if examiner.died else examiner.skill()
    return Recorded(
        description=description,
        block=block,
        losses=examiner.losses,
        skill=skill,
        best_skill=max((skill for _, skill in examiner.skills), default=-math.inf),
        died=examiner.died,
        first_nonfinite=examiner.first_nonfinite,
        nonfinite_gradients=examiner.nonfinite_gradients,
        finite_gradients=examiner.finite_gradients,
        cpu_seconds=time.process_time() - started,
    )


def train_examined(run: gradmedic.Run, examiner: Examiner, train: Callable[[gradmedic.Run, Examiner], None]) -> None:
    """Train until the training or the examiner ends it, and finish the run.

    Raises:
        ValueError, RuntimeError: the training failed although everything was finite.
    """
    try:
        train(run, examiner)
    except TrainingEndedError:
        pass
    except (ValueError, RuntimeError):
        if examiner.first_nonfinite is None:  # else torch refused what a destroyed model computes
            raise
    finally:
        run.finish(timeout=30)
        examiner.close()


def read_journal(directory: Path, run_id: Any) -> tuple[RunCreate, Block]:
    """Read the description and the steps of an offline run.

    Raises:
        ValueError: the folder holds no complete run of that id.
    """
    sessions = list_sessions(directory / str(run_id))
    if len(sessions) != 1:
        raise ValueError(f"{directory} must hold one session of run {run_id}; it has {len(sessions)}")
    journal = Journal.open(sessions[0], 2**62)
    if journal is None:
        raise ValueError(f"the session {sessions[0]} is still being written")
    try:
        description = journal.description()
        entries = journal.read(journal.position.acknowledged, 2**31)
    finally:
        journal.close()
    if description is None or journal.damage:
        raise ValueError(f"the session {sessions[0]} is damaged")
    steps = [entry for _, entry in entries if isinstance(entry, Step)]
    width = len(description.layers)
    columns = Columns(tuple(description.statistics), np.arange(width, dtype=np.intp), width)
    limits = ServiceSettings().limits()
    body = encode_block(steps, columns, max_metrics=limits.max_metrics)
    return description, decode_block(body, MSGPACK_MEDIA_TYPE, limits).fit(description.statistics, [width])
