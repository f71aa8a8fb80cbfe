"""Which steps are spikes, which are sent at once."""

from __future__ import annotations

import numpy as np
import pytest

from gradmedic.recording.spike_detector import SpikeDetector
from gradmedic.recording.step import Row, Step


def step(number: int, loss: float, norm: float = 1.0) -> Step:
    """Return a step with one layer."""
    row = Row(("grad_norm",), np.array([0], dtype=np.int32), np.array([[norm]], dtype=np.float32))
    return Step(number=number, time=0.0, loss=loss, row=row)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_growth_is_detected_by_the_third_doubling_at_any_scale(scale: float) -> None:
    """A norm that doubles at each step after 30 noisy steps is a spike by the third doubling."""
    generator = np.random.default_rng(0)
    detector = SpikeDetector()
    for number in range(30):
        assert not detector.update(step(number, 1.0, scale * float(np.exp(generator.normal(0, 0.1)))))
    assert any(detector.update(step(30 + i, 1.0, scale * 2.0 ** (i + 1))) for i in range(3))


def test_usual_noise_is_no_jump() -> None:
    """Of 2000 steps with lognormal gradient norms, fewer than one in fifty is a spike."""
    generator = np.random.default_rng(0)
    detector = SpikeDetector()
    jumps = sum(detector.update(step(i, 1.0, float(np.exp(generator.normal(0, 0.5))))) for i in range(2000))
    assert jumps < 40


@pytest.mark.parametrize("distance", [1, 4, 12])
def test_slow_growth_is_no_jump_however_few_steps_are_sampled(distance: int) -> None:
    """A norm that rises by 2 % a step after constant steps is no spike, however few steps are sampled."""
    detector = SpikeDetector()
    norms = {i: 1.02 ** max(0, i - 120) * (1.05 if i % 8 else 1.0) for i in range(0, 600, distance)}
    assert not any(detector.update(step(i, 1.0, norm)) for i, norm in norms.items())


def test_a_jump_between_two_samples_is_detected() -> None:
    """A norm that is three times that of twelve steps before is a spike."""
    generator = np.random.default_rng(0)
    detector = SpikeDetector()
    for number in range(0, 360, 12):
        assert not detector.update(step(number, 1.0, float(np.exp(generator.normal(0, 0.1)))))
    assert detector.update(step(360, 1.0, 3.0))


def test_a_falling_loss_is_no_jump() -> None:
    """A loss that halves at each step is no spike."""
    detector = SpikeDetector()
    assert not any(detector.update(step(i, 10.0 * 0.5**i)) for i in range(50))


def test_the_first_nonfinite_step_is_a_spike_and_the_next_ones_are_not() -> None:
    """A run that stays NaN does not send a request for each step."""
    detector = SpikeDetector()
    assert detector.update(step(0, float("nan")))
    assert not detector.update(step(1, float("nan")))
    assert not detector.update(step(2, 1.0))
    assert detector.update(step(3, float("inf")))


def test_negative_and_zero_losses_are_no_spikes() -> None:
    """A loss without a logarithm is no spike."""
    detector = SpikeDetector()
    assert not any(detector.update(step(i, loss)) for i, loss in enumerate([-1.0, 0.0, -5.0, 0.0, -1e9]))
