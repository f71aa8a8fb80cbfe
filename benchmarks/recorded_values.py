"""Recorded statistics in the shape of the work unit: 100 layers x 8 statistics, in blocks of 50 steps.

The values come from real training runs (tests/data/recordings), because compression depends on them. Layers of several
healthy or slow runs form one block. A layer is used again only at other steps, so that no chunk holds it twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus.recording import STATISTICS, load
from gradmedic.protocol.service import MSGPACK_MEDIA_TYPE
from gradmedic.recording.step import Columns, Row, Step, encode_block

RECORDINGS: Final = Path(__file__).resolve().parent.parent / "tests" / "data" / "recordings"
USED: Final = ("H-finetune-hook", "H-lr-to-zero", "O-low-lr", "V-rnn-recall-sigmoid")
LOSS_OF: Final = "H-lr-to-zero"
LAYERS: Final = 100
BLOCK_STEPS: Final = 50
RECORDED_STEPS: Final = 400
SHIFT: Final = 77
"""Steps by which a layer that is used again is moved on: more than a block."""
EIGHTH: Final = "activation_zero_fraction"
"""Not recorded; the mantissas of `grad_norm` in reverse order stand for it, which are as hard to compress."""
GRADIENTS: Final = ("grad_norm", "grad_mean", "grad_abs_max")
NAMES: Final = (*STATISTICS, EIGHTH)
PLACES: Final = np.arange(LAYERS, dtype=np.int32)
START_TIME: Final = 1_760_000_000.0
"""Time of step 0, in seconds since the Unix epoch."""
STEP_SECONDS: Final = 0.1
VALUES_PER_STEP: Final = LAYERS * len(NAMES)
VALUES_PER_BLOCK: Final = BLOCK_STEPS * VALUES_PER_STEP


def recorded() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return `[step, layer, statistic]` and the loss, of `RECORDED_STEPS` steps."""
    blocks = {name: load(RECORDINGS / f"{name}.npz")[2] for name in USED}
    side_by_side = np.concatenate([_alike(block.values[:RECORDED_STEPS]) for block in blocks.values()], axis=1)
    copies = -(-LAYERS // side_by_side.shape[1])
    values = np.concatenate([np.roll(side_by_side, SHIFT * copy, axis=0) for copy in range(copies)], axis=1)
    values = values[:, :LAYERS]
    eighth = np.frexp(values[::-1, :, NAMES.index("grad_norm")])[0]
    loss = blocks[LOSS_OF].series["loss"].values[:RECORDED_STEPS]
    return np.concatenate([values, eighth[:, :, None]], axis=2), loss


def _alike(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale the gradients of each layer to about 1, by a power of two.

    Layers of different runs would otherwise look like one network with gaps. No mantissa changes.
    """
    scaled = values.copy()
    norms = values[:, :, NAMES.index("grad_norm")]
    typical = np.median(np.where(norms > 0, norms, 1), axis=0)
    exponents = -np.frexp(typical)[1]
    for name in GRADIENTS:
        column = NAMES.index(name)
        scaled[:, :, column] = np.ldexp(values[:, :, column], exponents)
    return scaled


class Blocks:
    """Bodies of `POST /runs/{id}/steps`, one after another without end."""

    def __init__(self) -> None:
        self.values, self.loss = recorded()

    def part(self, index: int, length: int = BLOCK_STEPS) -> tuple[list[int], NDArray[np.float32], NDArray[np.float64]]:
        """Return the steps, values and losses of the block of an index, each of a length."""
        first = index * length
        rows = slice(first % RECORDED_STEPS, first % RECORDED_STEPS + length)
        return list(range(first, first + length)), self.values[rows], self.loss[rows]

    def body(self, index: int, media_type: str, length: int = BLOCK_STEPS) -> bytes:
        """Return the block of an index as a request body; in msgpack, exactly as the SDK sends it."""
        numbers, values, losses = self.part(index, length)
        if media_type == MSGPACK_MEDIA_TYPE:
            steps = [
                Step(
                    number=number,
                    time=START_TIME + number * STEP_SECONDS,
                    loss=float(loss),
                    row=Row(NAMES, PLACES, row),
                )
                for number, loss, row in zip(numbers, losses, values, strict=True)
            ]
            return encode_block(steps, Columns(NAMES, PLACES.astype(np.intp), LAYERS))
        statistics = {name: values[:, :, at].tolist() for at, name in enumerate(NAMES)}
        return msgspec.json.encode({"steps": numbers, "loss": losses.tolist(), "statistics": statistics})

    def run(self) -> bytes:
        """Return the body of `POST /runs`."""
        layers = [{"name": f"layer{index}.weight", "shape": [64, 64]} for index in range(LAYERS)]
        return msgspec.json.encode({"project": "bench", "layers": layers, "statistics": list(NAMES)})
