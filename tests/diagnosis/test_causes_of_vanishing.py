"""Causes of gradients that fade with depth: what is blamed, and what is not, because networks train with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import ArrayLike
from tests.diagnosis.synthetic_run import noisy, run

from gradmedic.protocol.diagnosis import Cause
from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Diagnostician

STEPS = 300
WIDTH = 64
DEFAULT_RMS = math.sqrt(1 / (3 * WIDTH))
"""Root mean square of `nn.Linear`'s own initialization."""
FADING = 10.0 ** np.array([-5, -4, -1, 0])
"""Gradients of four matrices in a row."""


def find_causes(
    *,
    gradient: ArrayLike = FADING,
    update: ArrayLike = 0.01,
    rms: float = DEFAULT_RMS,
    activation: str | None = "relu",
    beside: str | None = None,
    count: int = 4,
) -> dict[str, Cause]:
    """Return the causes of a run whose loss is stuck, by name; `beside` is the activation of a layer off the path."""
    layers = [
        Layer(
            name=f"{i}.weight", role="weight", shape=[WIDTH, WIDTH], fan_in=WIDTH, initial_rms=rms,
            activation=activation if i < count - 1 else None,
        )
        for i in range(count)
    ]  # fmt: skip
    layers.append(Layer(name="beside.bias", role="bias", shape=[WIDTH], activation=beside))
    columns = np.broadcast_to(np.asarray(gradient), (STEPS, count))
    block = run(noisy(2.3, STEPS), gradient=np.hstack([columns, columns[:, -1:]]), update=update, count=count + 1)
    diagnosis = Diagnostician(layers).update(block)
    assert diagnosis.verdict == "vanishing"
    return {cause.cause: cause for cause in diagnosis.causes}


def fading(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return gradients that fade over this many matrices."""
    return np.geomspace(1e-6, 1.0, count)


@pytest.mark.parametrize("count", [4, 6, 7])
def test_the_usual_start_of_a_network_that_is_not_deep_is_no_cause(count: int) -> None:
    """Torch's own initialization shrinks a signal by two decades over six matrices, and such networks train."""
    assert "poor_initialization" not in find_causes(count=count, gradient=fading(count))


@pytest.mark.parametrize(("count", "rms"), [(12, DEFAULT_RMS), (6, DEFAULT_RMS / 3), (4, DEFAULT_RMS / 10)])
def test_a_start_that_loses_the_signal_is_a_cause(count: int, rms: float) -> None:
    """Many matrices, or smaller weights than torch's own, lose a signal."""
    assert "poor_initialization" in find_causes(count=count, gradient=fading(count), rms=rms)


def test_activations_that_are_known_not_to_saturate_are_no_cause() -> None:
    """Saturating activations are only possible where nothing is known of the activations."""
    he = DEFAULT_RMS * math.sqrt(6)  # the initial weights are no reason
    assert "saturating_activation" in find_causes(activation=None, rms=he)
    assert "saturating_activation" not in find_causes(activation="gelu", rms=he)
    assert "saturating_activation" not in find_causes(activation=None, beside="gelu", rms=he)


@pytest.mark.parametrize(("dies_at", "is_asked"), [(0, True), (150, False)])
def test_zero_gradients_from_the_start_may_have_another_reason(dies_at: int, is_asked: bool) -> None:
    """Rounding before the head gives the rest no gradient from the first step on; units die later."""
    is_dead = (np.arange(STEPS)[:, None] >= dies_at) & (np.arange(4) < 3)
    found = find_causes(gradient=np.where(is_dead, 0.0, 1.0))["dead_units"]
    assert ("an operation without a gradient" in found.explanation) is is_asked


def test_updates_that_spoil_a_sound_start_are_a_cause() -> None:
    """Gradients that reach all layers at first, and fade after large updates, blame the learning rate."""
    late = np.where(np.arange(STEPS)[:, None] < 5, 1.0, FADING)
    found = find_causes(gradient=late, update=0.08)["learning_rate_too_high"]
    assert found.evidence["update_to_weight"] == pytest.approx(0.008)
    assert "A warm-up makes the first updates small" in found.explanation
    assert "learning_rate_too_high" not in find_causes(gradient=late, update=0.02)
    assert "learning_rate_too_high" not in find_causes(gradient=FADING, update=0.08)
