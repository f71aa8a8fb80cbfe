"""How much a remedy is believed to help against a cause: what is published, corrected by what trials have shown.

One idea: a published belief counts as much as a few trials, so that measured ones outweigh it as they come in. The
counts stand in `evidence.json`, by remedy and cause: how often it repaired, of how many trials. They come from
`python -m benchmarks.experiments evidence`, which tries remedies on training runs that fail; a trial counts for the
most probable cause.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

BELIEF = 4
"""Trials that a published belief counts as."""

Evidence = Mapping[str, Mapping[str, tuple[int, int]]]
"""By kind of remedy (`RemedySpec.kind`) and cause: trials that it repaired, and all."""

PATH = Path(__file__).with_name("evidence.json")
EVIDENCE: Evidence = {
    kind: {cause: (repaired, tried) for cause, (repaired, tried) in causes.items()}
    for kind, causes in json.loads(PATH.read_bytes()).items()
}


def weigh(belief: float, kind: str, cause: str, evidence: Evidence = EVIDENCE) -> float:
    """Return the chance that a remedy repairs what a cause has broken, from the published one and from the trials.

    >>> weigh(0.5, "warm_up", "dead_units", {"warm_up": {"dead_units": (4, 4)}})
    0.75
    """
    repaired, tried = evidence.get(kind, {}).get(cause, (0, 0))
    return (belief * BELIEF + repaired) / (BELIEF + tried)
