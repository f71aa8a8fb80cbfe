"""Layers whose gradient is exactly zero."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.diagnosis.synthetic_run import falling, noisy, run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding, list_alarms

from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Diagnostician


def test_a_dead_network_is_vanishing_soon() -> None:
    """Gradients that are all exactly zero, with a loss that has not fallen, are vanishing within fifty steps."""
    gradient = np.ones((STEPS, 4))
    gradient[100:] = 0
    loss = np.concatenate([falling(100, half_life=300), noisy(2.3, STEPS - 100)])
    diagnosis = diagnose(run(loss, gradient=gradient))
    assert diagnosis.verdict == "vanishing"
    assert 119 <= list_alarms(diagnosis)[0][0] <= 150
    assert diagnosis.causes[0].cause == "dead_units"


def test_one_batch_with_gradients_revives_no_network() -> None:
    """A single step with gradients does not resolve a dead network; lasting gradients with which it learns do."""
    gradient = np.ones((STEPS + 200, 4))
    gradient[100:] = 0
    gradient[250] = 1e-7
    loss = np.concatenate([noisy(2.3, 250), falling(STEPS - 50)])
    assert diagnose(run(noisy(2.3, STEPS + 200), gradient=gradient)).verdict == "vanishing"
    gradient[250:] = 1
    diagnosis = diagnose(run(loss, gradient=gradient))
    finding = find_finding(diagnosis, "zero_gradient")
    assert diagnosis.verdict == "healthy"
    assert finding is not None
    assert finding.resolved_step is not None


def recurrent_layers() -> tuple[Layer, ...]:
    """A small plain recurrent network, from its input to its head."""
    names = ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "hidden.weight", "head.weight")
    return tuple(Layer(name=name, numel=100, shape=[10, 10]) for name in names)


def test_a_dead_hidden_state_is_vanishing() -> None:
    """A recurrent matrix whose gradient becomes exactly zero, while the loss is stuck, has a dead hidden state."""
    gradient = np.ones((STEPS, 4))
    gradient[30:, 1] = 0
    diagnosis = Diagnostician(recurrent_layers()).update(run(noisy(2.3, STEPS), gradient=gradient))
    assert diagnosis.verdict == "vanishing"
    finding = find_finding(diagnosis, "zero_gradient")
    assert finding is not None
    assert finding.layers == ["rnn.weight_hh_l0"]
    assert "dead after its first time step" in finding.explanation
    assert "replace_recurrent_cell" in {advice.remedy.id for advice in diagnosis.advice}


@pytest.mark.parametrize(
    ("loss", "dead_from"),
    [(noisy(2.3, STEPS), 0), (falling(STEPS), 30)],
    ids=["sequences of one step", "the loss falls"],
)
def test_a_recurrent_matrix_may_be_unused(loss: NDArray[np.float64], dead_from: int) -> None:
    """A matrix that never had a gradient, or without which the loss falls, is no dead hidden state."""
    gradient = np.ones((STEPS, 4))
    gradient[dead_from:, 1] = 0
    diagnosis = Diagnostician(recurrent_layers()).update(run(loss, gradient=gradient))
    assert "zero_gradient" not in {change.finding for change in diagnosis.changes}


def test_converged_to_zero_gradient_is_healthy() -> None:
    """Zero gradients after the loss has fallen are no failure: nothing is left to learn."""
    gradient = np.ones((STEPS, 4))
    gradient[250:] = 0
    assert not list_alarms(diagnose(run(falling(STEPS, half_life=20), gradient=gradient)))
