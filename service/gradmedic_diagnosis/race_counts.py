"""What became of remedies in races of runs with a known fault, and how this corrects the order of advice.

The counts are in `race_counts.json`, by catalogue row, most probable cause of the run, and kind of optimizer: the
number of runs on which the remedy was verified, and of all runs on which it was tried.
`python -m benchmarks.cause_learning` writes the file from the open split of the causes corpus.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

PRIOR_RUNS: Final = 8.0
"""Number of runs that the merit of a remedy counts as before any race, so that a few races do not overrule it."""
OTHER_OPTIMIZER: Final = 0.25
"""Number of runs that a race counts as where it was run with the other kind of optimizer. A judgement."""
SCALE_FREE: Final = "scale_free"
"""Kind of optimizers that divide the gradient by its own size."""
SCALED: Final = "scaled"
"""Kind of all other optimizers."""

RaceCounts = Mapping[str, Mapping[str, Mapping[str, tuple[int, int]]]]
"""By name of the catalogue row (`RemedyRow.name`), cause and kind of optimizer: runs on which it was verified, and all
runs."""

PATH: Final = Path(__file__).with_suffix(".json")


def read_race_counts(text: bytes) -> RaceCounts:
    """Return the counts of a file's text."""
    return {
        name: {
            cause: {kind: (verified, tried) for kind, (verified, tried) in kinds.items()}
            for cause, kinds in causes.items()
        }
        for name, causes in json.loads(text).items()
    }


RACE_COUNTS: Final = read_race_counts(PATH.read_bytes())


def correct_merit(merit: float, name: str, cause: str, is_scale_free: bool, counts: RaceCounts = RACE_COUNTS) -> float:
    """Return the merit of a remedy after its races: the mean of a beta distribution with the merit as prior mean.

    >>> races = {"warm_up": {"learning_rate_too_high": {"scale_free": (0, 4), "scaled": (4, 4)}}}
    >>> correct_merit(0.5, "warm_up", "learning_rate_too_high", is_scale_free=True, counts=races)
    0.38461538461538464
    >>> correct_merit(0.5, "warm_up", "dead_units", is_scale_free=True, counts=races)
    0.5
    """
    own = SCALE_FREE if is_scale_free else SCALED
    verified, tried = PRIOR_RUNS * merit, PRIOR_RUNS
    for kind, (kind_verified, kind_tried) in counts.get(name, {}).get(cause, {}).items():
        weight = 1.0 if kind == own else OTHER_OPTIMIZER
        verified += weight * kind_verified
        tried += weight * kind_tried
    return verified / tried
