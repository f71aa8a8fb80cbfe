"""Counts of repairs in our trials, by remedy and cause, and the chances of repair that follow from them.

The counts are in `repair_counts.json`, by catalogue row and cause: the number of trials that it repaired, and of all
trials. `python -m benchmarks.experiments evidence` writes the file: it tries remedies on training runs that fail. A
trial counts for the most probable cause of its run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

PUBLISHED_WEIGHT = 4
"""Number of trials that a published chance counts as, so that our own trials outweigh it as they come in."""

RepairCounts = Mapping[str, Mapping[str, tuple[int, int]]]
"""By name of the catalogue row (`RemedyRow.name`) and cause: trials that it repaired, and all trials."""

PATH = Path(__file__).with_suffix(".json")
REPAIR_COUNTS: RepairCounts = {
    name: {cause: (repaired, tried) for cause, (repaired, tried) in causes.items()}
    for name, causes in json.loads(PATH.read_bytes()).items()
}


def estimate_repair_chance(published: float, name: str, cause: str, counts: RepairCounts = REPAIR_COUNTS) -> float:
    """Return the chance that a remedy repairs what a cause broke, from the published chance and the trials.

    >>> estimate_repair_chance(0.5, "warm_up", "dead_units", {"warm_up": {"dead_units": (4, 4)}})
    0.75
    """
    repaired, tried = counts.get(name, {}).get(cause, (0, 0))
    return (published * PUBLISHED_WEIGHT + repaired) / (PUBLISHED_WEIGHT + tried)
