"""Synthetic runs with probes, and the same runs cut into blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from gradmedic.protocol.diagnosis import DiagnosisAtStep
from gradmedic.protocol.runs import Layer, Training
from gradmedic_diagnosis import Block, Diagnostician, StepSeries

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


def with_probes(block: Block, probes: Mapping[str, Mapping[int, float]]) -> Block:
    """Return a block with probes: the numbers of each metric by step."""
    for name, numbers in probes.items():
        values = np.zeros(len(block))
        values[list(numbers)] = list(numbers.values())
        block = add_probes(block, {name: values}, list(numbers))
    return block


def diagnose_in_pieces(
    block: Block, layers: Sequence[Layer], training: Training | None = None, *, size: int = 7
) -> DiagnosisAtStep:
    """Return the diagnosis of a run that is cut into blocks and stored as bytes after each of them."""
    diagnostician = Diagnostician(layers, training)
    for first in range(0, len(block), size):
        diagnostician.update(block.cut(first, first + size))
        diagnostician = Diagnostician.from_bytes(diagnostician.to_bytes(), layers, training)
    return diagnostician.diagnose()
