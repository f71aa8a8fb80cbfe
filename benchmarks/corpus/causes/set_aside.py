"""The digest of the split of causes that is set aside; `python -m benchmarks.corpus.causes.set_aside` prints it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from benchmarks.corpus import set_aside
from benchmarks.corpus.causes import cases, faults, labels, session
from benchmarks.corpus.causes.cases import CauseProgram
from benchmarks.corpus.foreign import examiner, tasks
from benchmarks.corpus.foreign import session as foreign_session

RECORD: Final = Path(__file__).with_name("set_aside.json")
SURROUNDINGS: Final = (cases, faults, labels, session, examiner, tasks, foreign_session)
"""The modules that decide, with the programs, how a case trains and which label it gets."""


def source_digest(program: CauseProgram) -> str:
    """Return a digest of the source of a program's module and of its surroundings, in sixteen characters."""
    return set_aside.digest_sources((*SURROUNDINGS, sys.modules[program.train.__module__]))


def set_aside_digest(programs: tuple[CauseProgram, ...]) -> str:
    """Return the SHA-256 of a split: of the source of its programs and of every case."""
    return set_aside.digest_split([(program, f"{program.name} {source_digest(program)}") for program in programs])


if __name__ == "__main__":
    from benchmarks.corpus.causes.splits import CAUSES_ASIDE, CAUSES_SPLITS

    print(set_aside_digest(CAUSES_SPLITS[CAUSES_ASIDE]))
