"""The scale of the initial weights and the gaps over depth follow the main path of a network, past its branches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.diagnosis.synthetic_run import noisy, run

from gradmedic.protocol.runs import Layer, Training
from gradmedic_diagnosis import Diagnostician
from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.layer_averages import LayerAverages
from gradmedic_diagnosis.run_evidence import RunEvidence
from gradmedic_diagnosis.run_history import RunHistory

WIDTH = 64
DEFAULT_RMS = math.sqrt(1 / (3 * WIDTH))
"""Root mean square of `nn.Linear`'s own initialization: uniform up to 1 / sqrt(fan_in)."""


def matrix(name: str, *, rms: float = DEFAULT_RMS, activation: str | None = None, **facts: Any) -> Layer:
    """Return a square weight matrix."""
    shape = [WIDTH, WIDTH]
    return Layer(name=name, role="weight", shape=shape, fan_in=WIDTH, initial_rms=rms, activation=activation, **facts)


def norm(name: str, *, branch: bool | None = None) -> Layer:
    """Return the gain of a normalization layer."""
    return Layer(name=name, kind="LayerNorm", role="gain", shape=[WIDTH], branch=branch)


def transformer(*, is_executed: bool) -> list[Layer]:
    """Return the layers of a pre-norm encoder, as its execution shows them or in the order of registration alone."""
    layers = [matrix("stem")]
    for block in range(4):
        facts: dict[str, Any] = {"branch": True, "block": f"layers.{block}"} if is_executed else {}
        first = {**facts, "input_normalized": True} if is_executed else {}
        layers += [norm(f"layers.{block}.norm1", branch=is_executed or None)]
        layers += [matrix(f"layers.{block}.in_proj", **first), matrix(f"layers.{block}.out_proj", **facts)]
        layers += [norm(f"layers.{block}.norm2", branch=is_executed or None)]
        layers += [
            matrix(f"layers.{block}.linear1", activation="relu", **first),
            matrix(f"layers.{block}.linear2", **facts),
        ]
    return [*layers, norm("norm", branch=False if is_executed else None), matrix("head")]


def signal_decades(layers: Sequence[Layer]) -> float:
    """Return the decades by which the initial weights amplify a signal."""
    evidence = RunEvidence(
        verdict="vanishing",
        findings=[],
        layers=layers,
        architecture=Architecture.from_layers(layers),
        training=Training(),
        framework=None,
        averages=LayerAverages(),
        history=RunHistory(),
    )
    return evidence.initial_signal_decades


def test_a_stock_transformer_does_not_shrink_a_signal() -> None:
    """Its 17 matrices lie on branches behind norms; only the head changes the size of the normalized signal."""
    assert signal_decades(transformer(is_executed=True)) == pytest.approx(math.log10(math.sqrt(1 / 3)))


def test_norms_between_matrices_count_where_branches_are_unknown() -> None:
    """In the order of registration, too, each norm takes the signal back to its size."""
    assert signal_decades(transformer(is_executed=False)) == pytest.approx(math.log10(math.sqrt(1 / 3)))


def test_a_plain_network_shrinks_a_signal_with_each_matrix() -> None:
    """Ten matrices of torch's own initialization behind rectifiers lose sqrt(1/6) each, the head sqrt(1/3)."""
    layers = [matrix(f"{i}", activation="relu") for i in range(10)]
    assert signal_decades([*layers, matrix("head")]) == pytest.approx(math.log10(math.sqrt(1 / 6**10 / 3)))


def test_a_normalization_does_not_lift_every_signal() -> None:
    """Behind weights that are far too small its epsilon decides: it lifts a signal by 2.5 decades at most."""
    tiny = [matrix(f"{i}", rms=DEFAULT_RMS * math.sqrt(3) * 1e-2, activation="linear") for i in range(3)]
    head = matrix("head", rms=1 / math.sqrt(WIDTH))
    assert signal_decades([*tiny, head]) == pytest.approx(-6)
    assert signal_decades([*tiny, norm("norm"), head]) == pytest.approx(-3.5)
    assert signal_decades([*tiny[:1], norm("norm"), head]) == pytest.approx(0)


def test_growth_counts_only_behind_the_last_normalization() -> None:
    """A norm takes a signal that grew back to its size; a norm on a branch does not change the identity path."""
    large = matrix("large", rms=10 / math.sqrt(WIDTH), activation="linear")
    plain = matrix("plain", rms=1 / math.sqrt(WIDTH), activation="linear")
    branch = matrix("branch", branch=True, input_normalized=True)
    assert signal_decades([large, norm("norm"), plain]) == pytest.approx(0)
    assert signal_decades([plain, norm("norm"), large]) == pytest.approx(1)
    assert signal_decades([large, norm("norm", branch=True), branch, plain]) == pytest.approx(1)


@pytest.mark.parametrize(("scale", "verdict"), [(1e-6, "healthy"), (0.0, "healthy"), (1.0, "vanishing")])
def test_branches_that_start_near_zero_are_no_gap_over_depth(scale: float, verdict: str) -> None:
    """Where a gain closes the branches at the start, small gradients in them are meant; the main path is compared."""
    facts: list[dict[str, Any]] = [{"branch": True, "block": f"blocks.{i}"} for i in range(4)]
    layers = [
        matrix("stem"),
        *(matrix(f"blocks.{i}.inner", **facts[i]) for i in range(4)),
        *(Layer(name=f"blocks.{i}.gamma", role="gain", shape=[WIDTH], initial_rms=scale, **facts[i]) for i in range(4)),
        matrix("head"),
    ]
    gradient = np.array([1.0, *[1e-5] * 8, 1.0])
    diagnosis = Diagnostician(layers).update(run(noisy(2.3, 300), gradient=gradient, count=10))
    assert diagnosis.verdict == verdict


@pytest.mark.parametrize(("block", "verdict"), [("blocks", "healthy"), (None, "vanishing")])
def test_a_weak_matrix_on_a_branch_is_no_gap_over_depth(block: str | None, verdict: str) -> None:
    """A block is one place on the main path, with its strongest gradient: others in it may be as small as they like."""
    layers = [
        matrix(f"blocks.{i}.{name}", branch=block and True, block=block and f"blocks.{i}")
        for i in range(3)
        for name in ("query", "value", "out")
    ]
    gradient = np.tile([1e-5, 1e-5, 1.0], 3)
    diagnosis = Diagnostician(layers).update(run(noisy(2.3, 300), gradient=gradient, count=9))
    assert diagnosis.verdict == verdict
