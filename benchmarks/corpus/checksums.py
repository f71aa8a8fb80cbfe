"""Checksums of the recordings that the published figures were measured on.

The splits are too large to be stored with the code, and a training's last bits depend on the processor. So each machine
makes its own recordings, and compares them with the stored checksums: where they differ, it judges other runs.

    python -m benchmarks.corpus checksums --split NAME --folder DIR

writes the checksums of a split to `checksums.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus.recording import read_arrays

STORED: Final = Path(__file__).with_name("checksums.json")
MOST_NAMES: Final = 5


@dataclass(frozen=True, slots=True)
class Comparison:
    """Recordings beside the stored checksums.

    Attributes:
        count: number of recordings.
        differing: ids of those with another checksum, or on one side only; None if no checksums are stored.
    """

    count: int
    differing: tuple[str, ...] | None

    def describe(self) -> str:
        """Return a sentence about the recordings."""
        if self.differing is None:
            return f"recordings: {self.count}; no checksums are stored, so others may judge other runs"
        if not self.differing:
            return f"recordings: {self.count}, with the stored checksums"
        names = ", ".join(self.differing[:MOST_NAMES]) + (", ..." if len(self.differing) > MOST_NAMES else "")
        return (
            f"recordings: {self.count}, of which {len(self.differing)} differ from the stored checksums ({names}): "
            "this machine judges other runs than the published figures"
        )


def checksum_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return sixteen characters that stand for a recording's arrays: their names, types, shapes and numbers.

    The sign and the payload of a NaN do not count: no detector reads them.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        if array.dtype.kind == "f":
            array = np.where(np.isnan(array), np.array(np.nan, dtype=array.dtype), array)
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def checksums_of(folder: Path) -> dict[str, str]:
    """Return the checksum of each recording that a folder's manifest lists."""
    ids = [entry["id"] for entry in json.loads((folder / "manifest.json").read_text())]
    return {identity: checksum_of(read_arrays(folder / f"{identity}.npz")) for identity in sorted(ids)}


def compare(split: str, folder: Path, stored: Path = STORED) -> Comparison:
    """Compare the recordings of a split with the stored checksums."""
    made = checksums_of(folder)
    expected = _read(stored).get(split)
    if expected is None:
        return Comparison(len(made), None)
    return Comparison(len(made), tuple(sorted({name for name, _ in made.items() ^ expected.items()})))


def store(split: str, folder: Path, stored: Path = STORED) -> int:
    """Store the checksums of a split's recordings; return their number."""
    made = checksums_of(folder)
    stored.write_text(json.dumps(_read(stored) | {split: made}, indent=0, sort_keys=True) + "\n")
    return len(made)


def _read(stored: Path) -> dict[str, dict[str, str]]:
    checksums: dict[str, dict[str, str]] = json.loads(stored.read_text()) if stored.exists() else {}
    return checksums
