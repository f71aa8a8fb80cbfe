"""Runs whose layers are known and whose gradients were not sent."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.diagnosis.synthetic_run import falling, layers, run
from tests.diagnosis.whole_run import keep_verdicts

from gradmedic_diagnosis import Block, Diagnostician
from gradmedic_diagnosis.diagnostician import MIN_STEPS

LAYERS = layers()


def without_statistics(block: Block) -> Block:
    """Return the block with its losses alone."""
    return dataclasses.replace(
        block, sampled=np.zeros_like(block.sampled), values=block.values[:0], present=block.present[:0]
    )


def without_layers(block: Block, first: int, last: int) -> Block:
    """Return the block with no layer present in the steps from `first` to before `last`."""
    present, values = block.present.copy(), block.values.copy()
    present[first:last], values[first:last] = False, 0.0
    return dataclasses.replace(block, present=present, values=values)


def test_losses_alone_are_healthy_only_without_layers() -> None:
    """A run with layers and no statistics is undetermined for that reason; one without layers is healthy."""
    block = without_statistics(run(falling(60)))
    diagnosis = Diagnostician(LAYERS).update(block)
    assert (diagnosis.verdict, diagnosis.score, keep_verdicts(diagnosis.changes)) == ("undetermined", 0.0, [])
    assert diagnosis.summary.startswith("No gradients were sent:")
    empty = dataclasses.replace(block, values=block.values[:, :0], present=block.present[:, :0])
    diagnosis = Diagnostician(()).update(empty)
    assert diagnosis.verdict == "healthy"
    assert diagnosis.summary == "Healthy as far as the loss shows; no gradients were sent."


def test_a_few_losses_are_too_little_data() -> None:
    """Before as many steps as a healthy verdict needs, nothing is said of missing gradients."""
    block = without_statistics(run(falling(MIN_STEPS - 1)))
    assert Diagnostician(LAYERS).update(block).summary == "Too little data to say anything yet."


def test_an_infinite_loss_is_exploding_without_gradients() -> None:
    """What the loss shows is a verdict, whether or not there are gradients."""
    loss = falling(60)
    loss[40:] = np.inf
    assert Diagnostician(LAYERS).update(without_statistics(run(loss))).verdict == "exploding"


def test_a_run_whose_layers_are_touched_no_more_is_undetermined_until_they_are() -> None:
    """Sampled steps without any layer end a healthy verdict after 20 steps; the next gradients bring it back."""
    diagnosis = Diagnostician(LAYERS).update(without_layers(run(falling(200)), 100, 150))
    assert [(change.step, change.verdict) for change in diagnosis.changes] == [
        (MIN_STEPS - 1, "healthy"),
        (100 + MIN_STEPS - 1, "undetermined"),
        (150, "healthy"),
    ]
    ended = Diagnostician(LAYERS).update(without_layers(run(falling(200)), 100, 200))
    assert (ended.verdict, ended.since_step) == ("undetermined", None)
    assert ended.summary.startswith("No gradients were sent:")


def test_steps_that_are_not_sampled_do_not_end_a_verdict() -> None:
    """A long gap between two samples is no sign of missing gradients."""
    block = run(falling(200))
    sampled = np.arange(200) < 30
    block = dataclasses.replace(block, sampled=sampled, values=block.values[:30], present=block.present[:30])
    assert Diagnostician(LAYERS).update(block).verdict == "healthy"


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(1, 199), max_size=6), first=st.integers(0, 120), length=st.integers(1, 80))
def test_the_verdicts_do_not_depend_on_the_cuts(cuts: list[int], first: int, length: int) -> None:
    """Blocks of any length, and states that were stored between them, give the same changes."""
    block = without_layers(run(falling(200)), first, first + length)
    expected = Diagnostician(LAYERS).update(block)
    changes = []
    diagnostician = Diagnostician(LAYERS)
    edges = [0, *sorted(set(cuts)), 200]
    for start, stop in itertools.pairwise(edges):
        diagnosis = diagnostician.update(block.cut(start, stop))
        changes += diagnosis.changes
        diagnostician = Diagnostician.from_bytes(diagnostician.to_bytes(), LAYERS)
    assert [(c.step, c.verdict) for c in changes] == [(c.step, c.verdict) for c in expected.changes]
    assert diagnosis.summary == expected.summary
