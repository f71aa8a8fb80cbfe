"""Replays a recording: diagnoses its steps anew, without a service.

`gradmedic diagnose FILE` finds this function through the entry-point group `gradmedic.replay`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradmedic.protocol.diagnosis import VerdictChange
from gradmedic.protocol.packed_blocks import BlockArrays
from gradmedic.protocol.recordings import RecordingReader, Replay
from gradmedic_diagnosis.block import Block, StepSeries
from gradmedic_diagnosis.diagnostician import Diagnostician


def replay(path: Path, at_step: int | None = None) -> Replay:
    """Return the diagnosis of a recording, at the end or as of a step. Only one block is in memory at a time.

    Raises RecordingError for a file that is no recording or is damaged.
    """
    changes: list[VerdictChange] = []
    with RecordingReader(path) as reader:
        header = reader.header
        diagnostician = Diagnostician(
            header.layers, header.training, framework=header.framework, muted=frozenset(header.muted_detectors)
        )
        for arrays in reader.read_blocks():
            block = _to_block(arrays)
            if at_step is not None:
                block = block.cut(0, int(np.searchsorted(block.steps, at_step, side="right")))
            if len(block):
                changes += diagnostician.advance(block)
    return Replay(header=header, diagnosis=diagnostician.diagnose(), history=changes)


def _to_block(arrays: BlockArrays) -> Block:
    statistics = tuple(arrays.statistics)
    shape = (*arrays.present.shape, len(statistics))
    values = np.empty(shape, dtype=np.float32)
    for index, name in enumerate(statistics):
        values[:, :, index] = arrays.statistics[name]
    return Block(
        steps=arrays.steps,
        sampled=arrays.sampled,
        skipped=arrays.skipped,
        statistics=statistics,
        values=values,
        present=arrays.present,
        series={name: StepSeries(part.values, part.present) for name, part in arrays.series.items()},
        metrics={name: StepSeries(part.values, part.present) for name, part in arrays.metrics.items()},
    )
