"""The published programs in the form that the laboratory measures: a faulty setting and its twin."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.reruns.published.catalogue import by_id, sources

FOLDER: Final = Path(__file__).resolve().parent
SCRIPT: Final = FOLDER / "train.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSetting:
    """One side of a program: with the fault, or as the twin."""

    program: str
    is_twin: bool

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return by_id(self.program).steps

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files on which the program's training depends."""
        names = ("program.py", "data.py", "train.py", "feedforward.py", f"{by_id(self.program).kind}.py")
        return tuple(FOLDER / name for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedConfiguration:
    """A program and its twin. Its family is its kind."""

    name: str
    family: str
    faulty: PublishedSetting
    twin: PublishedSetting


def _configuration(id: str) -> PublishedConfiguration:
    return PublishedConfiguration(
        name=id,
        family=by_id(id).kind,
        faulty=PublishedSetting(program=id, is_twin=False),
        twin=PublishedSetting(program=id, is_twin=True),
    )


PUBLISHED: Final = {
    id: _configuration(id) for id in sorted(sources(), key=lambda id: hashlib.blake2b(id.encode()).digest())
}
"""The published programs by id, in an order that depends on the ids alone: a part of them is a fair sample."""
