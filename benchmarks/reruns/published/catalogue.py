"""All published programs, and the rows of `SOURCES.md` that describe them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.reruns.published.program import PROGRAMS, Program

KINDS: Final = (
    "feedforward",
    "faults",
    "convolutional",
    "recurrent",
    "transformers",
    "generative",
    "reinforcement",
    "precision",
    "applied",
)
"""Modules with programs."""
SOURCES: Final = Path(__file__).with_name("SOURCES.md")

for kind in KINDS:
    importlib.import_module(f"benchmarks.reruns.published.{kind}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A row of `SOURCES.md`."""

    id: str
    after: str
    network: str
    fault: str
    expected: str
    """`vanishing` or `exploding`."""
    repair: str


def sources() -> dict[str, Source]:
    """Return the rows of `SOURCES.md`, by id, in their order."""
    rows = {}
    for line in SOURCES.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "id" and not cells[0].startswith("---"):
            id, after, network, fault, expected, repair = cells
            rows[id] = Source(id=id, after=after, network=network, fault=fault, expected=expected, repair=repair)
    return rows


def by_id(id: str) -> Program:
    """Return a program.

    Raises:
        ValueError: there is none of this id.
    """
    if id not in PROGRAMS:
        raise ValueError(f"there is no published program {id!r}")
    return PROGRAMS[id]
