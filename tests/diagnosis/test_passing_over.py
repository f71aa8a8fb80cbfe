"""Detectors that read the calm steps of a block at once become exactly what a walk over every step makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.corpus.recording import load
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradmedic.protocol.probes import name_metric
from gradmedic.protocol.runs import Layer, Loss, Optimizer, Training
from gradmedic_diagnosis import Block, Diagnostician, StepSeries, detector_panel
from gradmedic_diagnosis.detectors import DETECTOR_TYPES

RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"
NAMES = sorted(path.stem for path in RECORDINGS.glob("*.npz"))
STATISTICS = ("grad_norm", "nonfinite_count", "weight_norm", "update_norm", "activation_saturation")
LAYERS = tuple(
    Layer(name=name, numel=100, role="weight", frozen=name == "0.weight")
    for name in ("0.weight", "1.weight", "2.weight", "rnn.weight_hh_l0", "4.weight")
)
TRAININGS = (
    Training(),
    Training(optimizers=[Optimizer(name="AdamW", beta2=0.999)], precision="float16", loss=Loss()),
    Training(optimizers=[Optimizer(name="AdamW", weight_decay=0.8)]),
    Training(optimizers=[Optimizer(name="SGD"), Optimizer(name="SGD")], carries_gradients=True),
)
SERIES = {
    "learning_rate": (0.01, 0.1),
    "clip_coefficient": (1.0, 1e-4),
    "output_gradient_norm": (1.0, 0.0),
    "loss_scale": (1024.0, 0.5),
}
"""Usual and odd value of each series."""
PROBES = {
    "unchanged_share": (0.9, ""),
    "epsilon_share": (0.95, "1.weight"),
    "unused_gradient_share": (0.3, ""),
    "steps_without_gradients": (4.0, ""),
    "unregistered_gradient_share": (0.4, ""),
    "input_nonfinite_count": (2.0, ""),
    "second_moment_ratio": (30.0, "1.weight"),
    "time_gradient_factor": (0.2, "rnn"),
}
"""Odd value and subject of each probe."""


@contextmanager
def walking_every_step() -> Iterator[None]:
    """Let no detector read steps at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector_panel, "FEWEST_STEPS_AT_ONCE", 10**9)
        yield


def follow(layers: tuple[Layer, ...], training: Training, block: Block, cuts: list[int], muted: set[str]) -> list[Any]:
    """Return diagnosis, changes and state after each part of a run. Texts hold every digit of every number."""
    diagnostician = Diagnostician(layers, training, muted=muted)
    found: list[Any] = []
    for start, stop in pairwise([0, *sorted(set(cuts) - {0, len(block)}), len(block)]):
        found.append(repr(diagnostician.update(block.cut(start, stop))))
        found.append(diagnostician.to_bytes())
    return found


def assert_equal_walks(
    layers: tuple[Layer, ...], training: Training, block: Block, cuts: list[int], muted: set[str] | None = None
) -> None:
    """Check that both ways give the same diagnoses, changes and states."""
    found = follow(layers, training, block, cuts, muted or set())
    with walking_every_step():
        expected = follow(layers, training, block, cuts, muted or set())
    assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_recordings_are_followed_as_by_a_walk(name: str) -> None:
    """On recorded runs every diagnosis and every stored state is the same to the last bit."""
    layers, training, block = load(RECORDINGS / f"{name}.npz")
    training = training if isinstance(training, Training) else Training()
    assert_equal_walks(layers, training, block, list(range(0, len(block), 53)))


def stretches(length: int) -> st.SearchStrategy[NDArray[np.bool_]]:
    """Generate masks of a few stretches of steps."""
    stretch = st.tuples(st.integers(0, length - 1), st.integers(1, 40))

    def draw_mask(parts: list[tuple[int, int]]) -> NDArray[np.bool_]:
        mask = np.zeros(length, dtype=np.bool_)
        for start, count in parts:
            mask[start : start + count] = True
        return mask

    return st.lists(stretch, max_size=3).map(draw_mask)


@st.composite
def adversarial_runs(draw: st.DrawFn) -> Block:
    """Generate runs whose losses, gradients, updates and masks go wrong in any stretches, and come back."""
    length = draw(st.integers(1, 260))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    layers = len(LAYERS)

    def spoil(column: NDArray[np.float64], values: list[float]) -> None:
        """Multiply `[step]` or `[step, layer]` by some of the values, in any stretches and at any layers."""
        for value in draw(st.lists(st.sampled_from(values), max_size=2)):
            mask = draw(stretches(length))
            if column.ndim == 2:
                mask = mask[:, None] & (rng.random(layers) < draw(st.sampled_from([0.3, 1.0])))
            with np.errstate(invalid="ignore"):
                column[mask] *= value

    gradient, weight, update = (np.exp(rng.normal(0, 0.1, (length, layers))) * level for level in (1.0, 10.0, 0.01))
    for column, values in (
        (gradient, [0.0, 1e-9, 30.0, 1e6, np.nan, np.inf]),
        (weight, [0.0, 5.0, np.inf]),
        (update, [0.0, 1e-6, 50.0, 2e3, np.nan]),
    ):
        spoil(column, values)
    nonfinite = np.where(np.isnan(gradient), 3.0, 0.0)
    saturation = rng.uniform(0, 0.2, (length, layers))
    spoil(saturation, [0.0, 4.9])
    loss = 2 * np.exp(-np.arange(length) / draw(st.sampled_from([20.0, 100.0, 1e9]))) + rng.normal(0, 0.02, length)
    spoil(loss, [8.0, 1e3, -1.0, np.nan, np.inf])
    present = np.ones((length, layers), dtype=np.bool_)
    if draw(st.booleans()):
        present[np.ix_(draw(stretches(length)), rng.random(layers) < 0.5)] = False
    if draw(st.booleans()):
        present[draw(stretches(length))] = False
    sampled = ~draw(stretches(length)) if draw(st.booleans()) else np.arange(length) % draw(st.integers(1, 4)) == 0
    series = {"loss": StepSeries(loss, ~draw(stretches(length)))}
    for name in draw(st.sets(st.sampled_from(sorted(SERIES)))):
        usual, odd = SERIES[name]
        numbers = np.where(draw(stretches(length)), odd, usual)
        series[name] = StepSeries(numbers, ~draw(stretches(length)))
    metrics = {}
    for name in draw(st.sets(st.sampled_from(sorted(PROBES)), max_size=3)):
        odd, subject = PROBES[name]
        numbers = np.where(draw(stretches(length)), odd, 0.0)
        metrics[name_metric(name, subject)] = StepSeries(numbers, np.arange(length) % draw(st.integers(5, 30)) == 0)
    statistics = np.stack([gradient, nonfinite, weight, update, saturation], axis=-1)
    count = draw(st.sampled_from([2, 4, 5]))
    statistics = np.where(present[:, :, None], statistics, 0.0).astype(np.float32)
    return Block(
        steps=np.cumsum(rng.integers(1, 3, length)),
        sampled=sampled,
        skipped=draw(stretches(length)),
        statistics=STATISTICS[:count],
        values=statistics[sampled][:, :, :count],
        present=present[sampled],
        series=series,
        metrics=metrics,
    )


@settings(max_examples=60)
@given(
    block=adversarial_runs(),
    training=st.sampled_from(TRAININGS),
    cuts=st.lists(st.integers(1, 259), max_size=4),
    muted=st.sets(st.sampled_from([detector.id for detector in DETECTOR_TYPES]), max_size=2),
)
def test_adversarial_runs_are_followed_as_by_a_walk(
    block: Block, training: Training, cuts: list[int], muted: set[str]
) -> None:
    """Whatever goes wrong, every diagnosis and every stored state is the same to the last bit."""
    assert_equal_walks(LAYERS, training, block, [cut for cut in cuts if cut < len(block)], muted)


def test_calm_steps_are_not_observed() -> None:
    """On a calm run, most detectors observe no step: without this, the tests above would compare a walk with itself."""
    layers, _, block = load(RECORDINGS / "H-finetune-hook.npz")
    diagnostician = Diagnostician(layers)
    diagnostician.update(block.cut(0, 200))
    observed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for detector in DETECTOR_TYPES:
            observe = detector.observe

            def counted(self: Any, view: Any, observe: Any = observe) -> None:
                observed.append(self.id)
                observe(self, view)

            patch.setattr(detector, "observe", counted)
        diagnostician.update(block.cut(200, 250))
    assert len(observed) < 50 * len(DETECTOR_TYPES) / 3
