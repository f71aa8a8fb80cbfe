"""The digest of the split that is set aside: it shows that its programs and cases were fixed before causes changed.

`set_aside.json` lists `definitions` (digest, date and reason of each version) and `opened` (commit, date and reason of
each time that results on the split were read). `python -m benchmarks.corpus.causes.set_aside` prints the digest.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.corpus.causes import cases, faults, labels, session
from benchmarks.corpus.causes.cases import CauseProgram
from benchmarks.corpus.foreign import examiner, tasks
from benchmarks.corpus.foreign import session as foreign_session

RECORD: Final = Path(__file__).with_name("set_aside.json")
SURROUNDINGS: Final = (cases, faults, labels, session, examiner, tasks, foreign_session)
"""The modules that decide, with the programs, how a case trains and which label it gets."""


def source_digest(program: CauseProgram) -> str:
    """Return a digest of the source of a program's module and of its surroundings, in sixteen characters."""
    module = sys.modules[program.train.__module__]
    return _digest_of(tuple(str(Path(str(part.__file__))) for part in (*SURROUNDINGS, module)))[:16]


@functools.cache
def _digest_of(paths: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def set_aside_digest(programs: tuple[CauseProgram, ...]) -> str:
    """Return the SHA-256 of a split: of the source of its programs and of every case."""
    digest = hashlib.sha256()
    for program in sorted(programs, key=lambda program: program.name):
        digest.update(f"{program.name} {source_digest(program)}\n".encode())
        for case in program.cases():
            digest.update(f"{case.id} {case.digest}\n".encode())
    return digest.hexdigest()


def read_record() -> dict[str, Any]:
    """Read `set_aside.json`."""
    record: dict[str, Any] = json.loads(RECORD.read_text())
    return record


if __name__ == "__main__":
    from benchmarks.corpus.causes.splits import CAUSES_ASIDE, CAUSES_SPLITS

    print(set_aside_digest(CAUSES_SPLITS[CAUSES_ASIDE]))
