"""Digests of a split that is set aside: they show that its programs and cases were fixed before the diagnosis changed.

A file `set_aside.json` beside each corpus lists `definitions` (digest, date and reason of each version) and `opened`
(commit, date and reason of each time that results on the split were read).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol


class SetAsideCase(Protocol):
    """A case of a split."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def digest(self) -> str:
        """Digest of its values."""


class SetAsideProgram(Protocol):
    """A program of a split."""

    @property
    def name(self) -> str:
        """Its name."""

    def cases(self) -> Iterable[SetAsideCase]:
        """Return its cases."""


def digest_sources(modules: Iterable[ModuleType]) -> str:
    """Return a digest of the sources of some modules, in sixteen characters."""
    return _digest_files(tuple(str(module.__file__) for module in modules))[:16]


@functools.cache
def _digest_files(paths: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def digest_split(programs: Sequence[tuple[SetAsideProgram, str]]) -> str:
    """Return the SHA-256 of a split, given each program with the line that describes it: of the lines and all cases."""
    digest = hashlib.sha256()
    for program, line in sorted(programs, key=lambda pair: pair[0].name):
        digest.update(f"{line}\n".encode())
        for case in program.cases():
            digest.update(f"{case.id} {case.digest}\n".encode())
    return digest.hexdigest()


def read_record(path: Path) -> dict[str, Any]:
    """Read a file `set_aside.json`."""
    record: dict[str, Any] = json.loads(path.read_text())
    return record
