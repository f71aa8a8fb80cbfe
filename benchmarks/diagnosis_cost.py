"""Measures the CPU time of the diagnosis of a block beside numpy's own pass over it, in turn.

The block has 50 steps x 100 layers x 8 statistics. numpy's pass takes the logarithm of every value, and its mean over
the steps: about the least that a diagnosis of every value could do.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from benchmarks.comparison import Check, Turns, ratio_of_costs, repeat_until_decided
from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Block, Diagnostician, StepSeries

STEPS, LAYERS = 50, 100
STATISTICS: Final = (
    "grad_norm",
    "grad_abs_max",
    "grad_mean",
    "grad_zero_fraction",
    "nonfinite_count",
    "weight_norm",
    "update_norm",
    "activation_zero_fraction",
)
BLOCKS: Final = 20
"""Blocks of a turn."""
PASSES: Final = 200
"""Passes of numpy in a turn: a pass is so short that a turn of few would measure the clock."""
TARGET: Final = 55.0
"""Largest ratio: 1.5 ms a block on the machine where that target was set."""
SECONDS: Final = 120.0
"""Bound of the time in which the check must be decided."""


class DiagnosedBlocks:
    """Synthetic blocks of a healthy run, one after another, and the diagnostician that reads them."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(7)
        facts = [
            Layer(name=f"layer{i}", kind="Linear", shape=[64, 64] if i % 2 == 0 else [64], depth=i)
            for i in range(LAYERS)
        ]
        self.diagnostician = Diagnostician(facts)
        self._count = 0
        self.measure_diagnosis()  # the first blocks are those of a run without a baseline

    def next_block(self) -> Block:
        """Return the next block."""
        generator, shape = self._generator, (STEPS, LAYERS)
        level = np.exp(generator.normal(0, 0.3, shape))
        columns = (level, level / 10, level / 1000, generator.random(shape) * 0.3, np.zeros(shape),
                   np.full(shape, 8.0), 0.01 * level, np.full(shape, 0.4))  # fmt: skip
        first, self._count = self._count * STEPS, self._count + 1
        everywhere = np.ones(STEPS, dtype=np.bool_)
        loss = 2.3 / (1 + (first + np.arange(STEPS)) / 500) * np.exp(generator.normal(0, 0.05, STEPS))
        return Block(
            steps=np.arange(first, first + STEPS),
            sampled=everywhere,
            skipped=~everywhere,
            statistics=STATISTICS,
            values=np.stack(columns, axis=-1).astype(np.float32),
            present=np.ones(shape, dtype=np.bool_),
            series={
                "loss": StepSeries(loss, everywhere),
                "learning_rate": StepSeries(np.full(STEPS, 0.01), everywhere),
            },
        )

    def measure_diagnosis(self) -> float:
        """Return the CPU seconds of the diagnosis of a block."""
        blocks = [self.next_block() for _ in range(BLOCKS)]
        started = time.process_time()
        for block in blocks:
            self.diagnostician.update(block)
        return (time.process_time() - started) / BLOCKS

    def measure_pass(self) -> float:
        """Return the CPU seconds of numpy's pass over a block."""
        values = self.next_block().values
        started = time.process_time()
        with np.errstate(divide="ignore"):
            for _ in range(PASSES):
                np.log(np.abs(values)).mean(axis=0)
        return (time.process_time() - started) / PASSES


def measure_cost() -> tuple[Check, float, int]:
    """Measure until the ratio is decided; return its check, the milliseconds a block, and the bytes of state."""
    blocks = DiagnosedBlocks()
    turns = Turns({"diagnosis": blocks.measure_diagnosis, "pass": blocks.measure_pass})
    check = Check(
        name="diagnosis of a block / numpy's own pass",
        estimate=lambda: ratio_of_costs(turns.results["diagnosis"], turns.results["pass"]),
        limit=TARGET,
        style="{:.1f}x",
    )
    repeat_until_decided(turns.take, [check], SECONDS)
    milliseconds = 1e3 * float(np.median(turns.results["diagnosis"]))
    return check, milliseconds, len(blocks.diagnostician.to_bytes())
