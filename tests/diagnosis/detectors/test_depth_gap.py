"""Gradients that fade on their way to the input."""

from __future__ import annotations

import numpy as np
import pytest
from tests.diagnosis.synthetic_run import falling, noisy, run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding, keep_verdicts, list_alarms


def test_a_gap_over_depth_needs_a_stuck_loss() -> None:
    """Early gradients four decades below the last are a verdict while the loss is flat, and none while it falls."""
    gradient = 10.0 ** np.array([-4, -3, -1, 0])
    stuck = diagnose(run(noisy(2.3, STEPS), gradient=gradient))
    assert stuck.verdict == "vanishing"
    finding = find_finding(stuck, "depth_gap")
    assert finding is not None
    assert finding.layers[0] == "0.weight"
    assert finding.evidence["gap_decades"] == pytest.approx(3.5)
    assert not list_alarms(diagnose(run(falling(STEPS), gradient=gradient)))


def test_noise_does_not_withdraw_a_verdict() -> None:
    """A noisy stuck loss rarely seems to move; a loss that falls by half always does."""
    gradient = 10.0 ** np.array([-4, -3, -1, 0])
    withdrawn = 0
    for seed in range(20):
        noise = 1 + 0.3 * np.random.default_rng(seed).normal(size=2 * STEPS)
        verdicts = [c.verdict for c in keep_verdicts(diagnose(run(np.abs(2.3 * noise), gradient=gradient)).changes)]
        assert "vanishing" in verdicts
        withdrawn += verdicts.count("healthy") > 1
        moving = np.where(np.arange(2 * STEPS) < STEPS, 1.0, 0.5) * np.abs(2.3 * noise)
        changes = keep_verdicts(diagnose(run(moving, gradient=gradient)).changes)
        assert any(change.verdict == "healthy" and change.step > STEPS for change in changes)
    assert withdrawn <= 1


def test_a_loss_that_only_the_output_brings_down_is_vanishing() -> None:
    """The loss falls all the time, but the input-side matrices, five decades behind, never move: vanishing."""
    gradient, update = [[1e-6, 1e-4, 1e-1, 1.0]], [[1e-9, 1e-9, 0.05, 0.1]]
    diagnosis = diagnose(run(falling(STEPS), gradient=gradient, update=update))
    assert list_alarms(diagnosis) == [(119, "vanishing")]
    moving = diagnose(run(falling(STEPS), gradient=gradient, update=[[0.01, 0.01, 0.05, 0.1]]))
    assert not list_alarms(moving)


def test_a_frozen_backbone_is_not_vanishing() -> None:
    """Input-side layers whose gradient a script sets to exactly zero do not move either, which is no fault."""
    gradient, update = [[0.0, 0.0, 0.1, 1.0]], [[0.0, 0.0, 0.05, 0.1]]
    assert not list_alarms(diagnose(run(falling(STEPS), gradient=gradient, update=update)))


def test_a_small_gap_needs_an_input_side_that_cannot_move_the_loss() -> None:
    """A gap of less than two decades is evidence only if the loss is insensitive to the input side."""
    loss = noisy(2.3, STEPS)
    gap = 10.0 ** np.array([-1.8, -1.8, -1, 0])
    assert not list_alarms(diagnose(run(loss, gradient=gap)))
    assert list_alarms(diagnose(run(loss, gradient=gap * 1e-2)))
