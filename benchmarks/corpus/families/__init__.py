"""Families of runs, by split. Each family is in one split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from benchmarks.corpus.families import fit, heldout, review, tune
from benchmarks.corpus.families.family import Case, Family

HELDOUT: Final = "heldout"
"""The split that is measured only when a diagnostician is finished."""
SPLITS: Final[dict[str, tuple[Family, ...]]] = {
    "fit": fit.FAMILIES,
    "tune": tune.FAMILIES,
    "review": review.FAMILIES,
    HELDOUT: heldout.FAMILIES,
}


def is_made(split: str, out: Path) -> bool:
    """Whether `out` holds all recordings of the split, as its families describe them now."""
    made = out / "made.json"
    if not made.exists():
        return False
    wanted = {case.id: case.digest for family in SPLITS[split] for case in family.cases()}
    return bool(json.loads(made.read_text()) == wanted)


__all__ = ["HELDOUT", "SPLITS", "Case", "Family", "is_made"]
