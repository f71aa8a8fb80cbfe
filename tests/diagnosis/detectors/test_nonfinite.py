"""A loss scaler that skips every step has stopped the training, although no non-finite value reached a weight."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from tests.diagnosis.condition_runs import with_probe
from tests.diagnosis.synthetic_run import falling, run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding, list_alarms

from gradmedic_diagnosis import Block


def skipping(loss: NDArray[np.float64], skipped: NDArray[np.bool_]) -> Block:
    """Return a run whose gradients are infinite on the steps that its loss scaler skips."""
    block = run(loss)
    values = block.values.copy()
    values[skipped, :, block.statistics.index("grad_norm")] = np.inf
    values[skipped, :, block.statistics.index("nonfinite_count")] = 7
    return dataclasses.replace(block, values=values, skipped=skipped)


def breaking(loss: float, inputs: float | None = None) -> str:
    """Return the explanation of a run whose gradients are NaN from step 60 on, with this loss at that step."""
    losses = falling(100)
    losses[60] = loss
    block = run(losses)
    values = block.values.copy()
    values[60:, :, block.statistics.index("nonfinite_count")] = 5
    broken = dataclasses.replace(block, values=values)
    if inputs is not None:
        broken = with_probe(broken, "input_nonfinite_count", {60: inputs})
    finding = find_finding(diagnose(broken), "nonfinite")
    assert finding is not None
    return finding.explanation


def test_the_sentence_names_the_pass_that_failed_first() -> None:
    """A finite loss shows that the forward pass was finite; the input is named where it is known."""
    assert "The loss of that step was finite: the backward pass failed." in breaking(0.5)
    assert "The loss of that step was finite, and so was its input: the backward pass" in breaking(0.5, inputs=0)
    assert "was not finite either: the forward pass failed first." in breaking(np.nan)
    assert "was not finite either; its input was finite: the forward pass" in breaking(np.nan, inputs=0)
    text = breaking(np.nan, inputs=7)
    assert "The input of that step already had 7 NaN or infinite elements." in text
    assert "pass failed" not in text


def test_a_loss_that_is_never_finite_is_no_overflow_of_the_scale() -> None:
    """A run whose loss is NaN from the first step on is exploding after ten skipped steps; the finding begins at 0."""
    diagnosis = diagnose(skipping(np.full(60, np.nan), np.ones(60, dtype=np.bool_)))
    assert list_alarms(diagnosis) == [(9, "exploding")]
    assert (finding := find_finding(diagnosis, "nonfinite")) is not None
    assert finding.first_step == 0
    assert "skipped 60 steps in a row from step 0 on, because the loss itself is not finite" in finding.explanation


def test_a_scale_that_is_used_up_is_found() -> None:
    """With a finite loss, forty skipped steps in a row are too many for any scale."""
    skipped = np.arange(STEPS) >= 100
    diagnosis = diagnose(skipping(falling(STEPS), skipped))
    assert list_alarms(diagnosis) == [(139, "exploding")]
    assert (finding := find_finding(diagnosis, "nonfinite")) is not None
    assert "because the gradients are not finite" in finding.explanation


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
