"""A loss scaler that skips every step has stopped the training, although no non-finite value reached a weight."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.diagnosis.condition_runs import with_probe
from tests.diagnosis.synthetic_run import falling, run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding, list_alarms

from gradmedic_diagnosis import Block, StepSeries


def skipping(loss: NDArray[np.float64], skipped: NDArray[np.bool_]) -> Block:
    """Return a run whose gradients are infinite on the steps that its loss scaler skips."""
    block = run(loss)
    values = block.values.copy()
    values[skipped, :, block.statistics.index("grad_norm")] = np.inf
    values[skipped, :, block.statistics.index("nonfinite_count")] = 7
    return dataclasses.replace(block, values=values, skipped=skipped)


def breaking(loss: float, inputs: float | None = None, *, weights: float | None = None, count: int = 5) -> str:
    """Return the explanation of a run whose gradients are NaN from step 60 on, with this loss at that step.

    `weights` is the norm of the first layer's weights before that step; without it, no weights are measured.
    """
    losses = falling(100)
    losses[60] = loss
    block = run(losses)
    values = block.values.copy()
    values[60:, :, block.statistics.index("nonfinite_count")] = count
    if weights is not None:
        values[60:, 0, block.statistics.index("weight_norm")] = weights
    kept = [name for name in block.statistics if weights is not None or name not in ("weight_norm", "update_norm")]
    values = values[:, :, [block.statistics.index(name) for name in kept]]
    broken = dataclasses.replace(block, values=values, statistics=tuple(kept))
    if inputs is not None:
        broken = with_probe(broken, "input_nonfinite_count", {60: inputs})
    finding = find_finding(diagnose(broken), "nonfinite")
    assert finding is not None
    return finding.explanation


@pytest.mark.parametrize(
    ("loss", "inputs", "weights", "text"),
    [
        (0.5, None, None, "The loss of that step was finite: the backward pass failed."),
        (0.5, 0, None, "The loss of that step was finite, and so was its input: the backward pass failed."),
        (0.5, 0, 9, "was finite, and so were its input and the weights: the backward pass failed."),
        (0.5, None, 9, "The loss of that step was finite, and so were the weights: the backward pass failed."),
        (np.nan, None, None, "The loss of that step was not finite either: the forward pass failed first."),
        (np.nan, 0, None, "was not finite either; its input was finite: the forward pass failed first."),
        (np.nan, 0, 9, "was not finite either; its input and the weights were finite: the forward pass failed first."),
        (np.nan, 7, None, "The input of that step already had 7 NaN or infinite elements."),
        (np.nan, 7, 9, "already had 7 NaN or infinite elements; the weights were finite."),
        (np.nan, 0, np.nan, "The weights of 1 layer were not finite before that step: an earlier step broke them."),
    ],
)
def test_the_sentence_has_what_was_finite(loss: float, inputs: float | None, weights: float | None, text: str) -> None:
    """Loss, input and weights of the step that broke are named as far as they are known, with the pass that failed."""
    explanation = breaking(loss, inputs, weights=weights)
    assert text in explanation
    assert ("pass failed" in explanation) == ("pass failed" in text)


def test_the_sentence_about_a_loss_alone_has_what_was_finite() -> None:
    """Where the gradients are finite, the loss is what is not."""
    text = breaking(np.nan, 0, weights=9, count=0)
    assert "The loss is NaN or infinite, from step 60 on. Its input and the weights were finite: the forward" in text
    assert "pass failed" not in breaking(np.nan, count=0)


def test_a_loss_that_is_never_finite_is_no_overflow_of_the_scale() -> None:
    """A run whose loss is NaN from the first step on is exploding after ten skipped steps; the finding begins at 0."""
    diagnosis = diagnose(skipping(np.full(60, np.nan), np.ones(60, dtype=np.bool_)))
    assert list_alarms(diagnosis) == [(9, "exploding")]
    assert (finding := find_finding(diagnosis, "nonfinite")) is not None
    assert finding.first_step == 0
    assert "skipped 60 steps in a row from step 0 on, because the loss itself is not finite" in finding.explanation


def test_a_scale_that_is_used_up_is_found() -> None:
    """With a finite loss, forty skipped steps in a row are too many for any scale, and for a guard."""
    skipped = np.arange(STEPS) >= 100
    block = skipping(falling(STEPS), skipped)
    scale = StepSeries(np.full(STEPS, 1.0), np.ones(STEPS, dtype=np.bool_))
    scaled = dataclasses.replace(block, series={**block.series, "loss_scale": scale})
    for each, who, end in ((scaled, "The loss scaler", "; a smaller scale did"), (block, "A guard or a", ". Nothing")):
        diagnosis = diagnose(each)
        assert list_alarms(diagnosis) == [(139, "exploding")]
        assert (finding := find_finding(diagnosis, "nonfinite")) is not None
        assert finding.explanation.startswith(who)
        assert f"because the gradients are not finite, while the weights are{end}" in finding.explanation


def test_a_scale_that_settles_is_no_finding() -> None:
    """Skipped steps until the scale fits, one now and then, and one with a NaN loss are usual."""
    skipped = (np.arange(STEPS) < 16) | (np.arange(STEPS) % 50 == 0)
    loss = falling(STEPS)
    loss[150] = np.nan
    diagnosis = diagnose(skipping(loss, skipped))
    assert not list_alarms(diagnosis)
    assert find_finding(diagnosis, "nonfinite") is None


def test_a_run_that_trains_again_recovers() -> None:
    """A run that learns on after a long row of skipped steps recovers: its weights were safe."""
    skipped = (np.arange(STEPS) >= 100) & (np.arange(STEPS) < 160)
    diagnosis = diagnose(skipping(falling(STEPS), skipped))
    assert diagnosis.verdict == "healthy"
    assert (finding := find_finding(diagnosis, "nonfinite")) is not None
    assert finding.resolved_step is not None
