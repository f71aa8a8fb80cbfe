"""The probes of a block, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gradmedic.protocol.probes import PROBES, parse_metric
from gradmedic_diagnosis.block import Block

Probes = Mapping[str, Mapping[str, float]]
"""The numbers of one step by probe and subject; the subject of the whole model is an empty text."""

NO_PROBES: Probes = {}


def read_probes(block: Block) -> Sequence[Probes]:
    """Return the probes of each step. Most steps have none."""
    probes: list[Probes] = [NO_PROBES] * len(block)
    found: dict[int, dict[str, dict[str, float]]] = {}
    for name, series in block.metrics.items():
        parsed = parse_metric(name)
        if parsed is None or parsed[0] not in PROBES:
            continue
        probe, subject = parsed
        for i in np.flatnonzero(series.present).tolist():
            found.setdefault(i, {}).setdefault(probe, {})[subject] = float(series.values[i])
    for i, numbers in found.items():
        probes[i] = numbers
    return probes
