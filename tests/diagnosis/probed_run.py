"""Synthetic runs with probes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from gradmedic_diagnosis import Block, StepSeries

PROBED_EVERY = 5
"""Steps from one probe to the next."""


def add_probes(block: Block, probes: Mapping[str, ArrayLike], steps: Sequence[int] | None = None) -> Block:
    """Return a block with metrics on every fifth step, or on the given steps. Each broadcasts to `[step]`."""
    present = np.zeros(len(block), dtype=np.bool_)
    present[slice(None, None, PROBED_EVERY) if steps is None else list(steps)] = True
    metrics = {
        name: StepSeries(np.broadcast_to(np.asarray(values, dtype=np.float64), len(block)), present)
        for name, values in probes.items()
    }
    return dataclasses.replace(block, metrics={**block.metrics, **metrics})
