"""The digest of the foreign split that is set aside; `python -m benchmarks.corpus.foreign.set_aside` prints it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from benchmarks.corpus import set_aside
from benchmarks.corpus.foreign import cases, examiner, labels, session, tasks
from benchmarks.corpus.foreign.cases import Program

RECORD: Final = Path(__file__).with_name("set_aside.json")
SURROUNDINGS: Final = (cases, session, tasks, examiner, labels)
"""The modules that decide, with the programs, how a case trains and which label it gets."""


def source_digest(program: Program) -> str:
    """Return a digest of the source of a program's module and of its surroundings, in sixteen characters."""
    return set_aside.digest_sources((*SURROUNDINGS, sys.modules[program.train.__module__]))


def set_aside_digest(programs: tuple[Program, ...]) -> str:
    """Return the SHA-256 of a split: of the source of its programs, of their families and of every case."""
    described = [(program, f"{program.name} {program.family} {source_digest(program)}") for program in programs]
    return set_aside.digest_split(described)


if __name__ == "__main__":
    from benchmarks.corpus.foreign.splits import FOREIGN_ASIDE, FOREIGN_SPLITS

    print(set_aside_digest(FOREIGN_SPLITS[FOREIGN_ASIDE]))
