"""Runs with a rate, a probe or turns of their own, and their conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tests.diagnosis.synthetic_run import layers

from gradmedic.protocol.diagnosis import Finding
from gradmedic.protocol.probes import name_metric
from gradmedic.protocol.runs import Training
from gradmedic_diagnosis import Block, Diagnostician, StepSeries, UpdatedDiagnosis
from gradmedic_diagnosis.detectors import DETECTORS

PIECES = (13, 128)
"""Numbers of steps that a run is cut into."""


def change(block: Block, **fields: Any) -> Block:
    """Return the block with other fields."""
    return Block(**{**{name: getattr(block, name) for name in Block.__dataclass_fields__}, **fields})


def with_rate(block: Block, rates: ArrayLike) -> Block:
    """Return the block with a learning rate per step."""
    series = StepSeries(np.broadcast_to(np.asarray(rates, dtype=np.float64), len(block)), ~block.skipped)
    return change(block, series={**block.series, "learning_rate": series})


def with_probe(block: Block, probe: str, numbers: Mapping[int, float]) -> Block:
    """Return the block with a probe of the whole model on some steps."""
    values, present = np.zeros(len(block)), np.zeros(len(block), dtype=np.bool_)
    for step, number in numbers.items():
        values[step], present[step] = number, True
    return change(block, metrics={**block.metrics, name_metric(probe): StepSeries(values, present)})


def with_turns(block: Block) -> Block:
    """Return the block of two optimizers that take turns: the first half of the layers, and the other half."""
    count = block.present.shape[1]
    is_first = np.arange(count) < count // 2
    return change(block, present=np.where((np.arange(len(block)) % 2 == 0)[:, None], is_first, ~is_first))


def diagnose_in_pieces(block: Block, training: Training | None = None) -> UpdatedDiagnosis:
    """Diagnose a run, and check that it ends with the same findings and changes however it is cut."""
    named = layers(block.present.shape[1])
    whole = Diagnostician(named, training).update(block)
    for size in PIECES:
        diagnostician, changes = Diagnostician(named, training), []
        for start in range(0, len(block), size):
            diagnosis = diagnostician.update(block.cut(start, start + size))
            changes += diagnosis.changes
            diagnostician = Diagnostician.from_bytes(diagnostician.to_bytes(), named, training)
        assert repr(diagnosis.findings) == repr(whole.findings)
        assert repr(diagnosis.causes) == repr(whole.causes)
        assert [(c.step, c.verdict, c.level) for c in changes] == [(c.step, c.verdict, c.level) for c in whole.changes]
    return whole


def find_condition(block: Block, detector: str, training: Training | None = None) -> Finding | None:
    """Return a detector's finding of a run, which is the same however the run is cut; None if it has none."""
    assert detector in DETECTORS
    found = diagnose_in_pieces(block, training).findings
    return next((finding for finding in found if finding.detector == detector), None)


def list_causes(block: Block, training: Training | None = None) -> list[str]:
    """Return the causes of a run, the first first."""
    return [cause.cause for cause in Diagnostician(layers(block.present.shape[1]), training).update(block).causes]
