"""Rules without tolerance: non-finite values, skipped steps, absent layers, and too little data."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.diagnosis.whole_run import keep_verdicts

from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Block, Diagnostician, StepSeries
from gradmedic_diagnosis.state import StateError, pack_state, unpack_state

LAYERS = tuple(Layer(name=f"{i}.weight", numel=100) for i in range(3))
STATISTICS = ("grad_norm", "nonfinite_count", "weight_norm", "update_norm")


def calm_block(steps: int, first: int = 0) -> Block:
    """A run whose loss falls and whose gradients are ordinary."""
    rng = np.random.default_rng(first)
    values = np.empty((steps, len(LAYERS), len(STATISTICS)), dtype=np.float32)
    values[:, :, 0] = rng.uniform(0.5, 1.5, (steps, len(LAYERS)))
    values[:, :, 1] = 0
    values[:, :, 2] = 10
    values[:, :, 3] = 0.01
    every = np.ones(steps, dtype=np.bool_)
    loss = 2 * np.exp(-np.arange(first, first + steps) / 100)
    return Block(
        steps=np.arange(first, first + steps),
        sampled=every,
        skipped=~every,
        statistics=STATISTICS,
        values=values,
        present=np.ones((steps, len(LAYERS)), dtype=np.bool_),
        series={"loss": StepSeries(loss, every)},
    )


def with_nonfinite_gradient(block: Block, step: int, layer: int, *, reaches_weights: bool) -> Block:
    """Give one layer NaN gradient elements in one step, with or without a NaN update."""
    values = block.values.copy()
    values[step, layer, :2] = np.nan, 7
    if reaches_weights:
        values[step, layer, 3] = np.nan
    return _replace(block, values=values)


def _replace(block: Block, **arrays: NDArray[np.generic]) -> Block:
    fields = {name: getattr(block, name) for name in Block.__dataclass_fields__}
    return Block(**{**fields, **arrays})


def test_one_nan_element_that_reaches_the_weights_is_final() -> None:
    """A single layer's NaN update makes the run exploding at that very step, and it stays so."""
    diagnostician = Diagnostician(LAYERS)
    block = with_nonfinite_gradient(calm_block(60), 33, 1, reaches_weights=True)
    changes = keep_verdicts(diagnostician.update(block).changes)
    assert [(change.step, change.verdict) for change in changes] == [(19, "healthy"), (33, "exploding")]
    diagnosis = diagnostician.update(calm_block(60, first=60))
    assert diagnosis.verdict == "exploding"
    finding = next(f for f in diagnosis.findings if f.detector == "nonfinite")
    assert finding.layers[0] == "1.weight"
    assert finding.evidence["nonfinite_count"] == 7
    assert finding.resolved_step is None


def test_nan_that_the_script_removed_is_a_finding() -> None:
    """A NaN gradient that left the weights finite is recorded and resolved, and is no verdict."""
    diagnosis = Diagnostician(LAYERS).update(with_nonfinite_gradient(calm_block(60), 33, 1, reaches_weights=False))
    assert diagnosis.verdict == "healthy"
    finding = next(f for f in diagnosis.findings if f.detector == "nonfinite")
    assert (finding.first_step, finding.resolved_step) == (33, 34)


def test_skipped_steps_do_not_count() -> None:
    """Non-finite gradients on steps that a loss scaler skipped leave no finding at all."""
    block = with_nonfinite_gradient(calm_block(60), 33, 1, reaches_weights=True)
    skipped = np.zeros(60, dtype=np.bool_)
    skipped[33] = True
    diagnosis = Diagnostician(LAYERS).update(_replace(block, skipped=skipped))
    assert diagnosis.verdict == "healthy"
    assert not [f for f in diagnosis.findings if f.detector == "nonfinite"]


@pytest.mark.parametrize("has_statistics", [True, False], ids=["sampled", "not sampled"])
@pytest.mark.parametrize(
    "acted", [slice(20, None, 50), slice(20, None, 8), slice(100, 110)], ids=["1/50", "1/8", "ten"]
)
@pytest.mark.parametrize(("loss_factor", "gradient_factor"), [(1.0, 1e4), (20.0, 30.0), (1e4, 1e4)])
def test_steps_that_a_guard_skipped_are_not_judged_as_taken(
    acted: slice, loss_factor: float, gradient_factor: float, has_statistics: bool
) -> None:
    """Losses and gradients of odd batches whose steps were left out change neither verdict, nor level, nor learning."""
    block = calm_block(400)
    skipped = np.zeros(400, dtype=np.bool_)
    skipped[acted] = True
    values, loss = block.values.copy(), block.series["loss"].values.copy()
    values[skipped, :, 0] *= gradient_factor
    loss[skipped] *= loss_factor
    odd = _replace(block, skipped=skipped, values=values)
    if not has_statistics:
        odd = _replace(odd, sampled=~skipped, values=values[~skipped], present=block.present[~skipped])
    fields = {name: getattr(odd, name) for name in Block.__dataclass_fields__}
    odd = Block(**{**fields, "series": {"loss": StepSeries(loss, np.ones(400, dtype=np.bool_))}})
    plain, guarded = Diagnostician(LAYERS).update(block), Diagnostician(LAYERS).update(odd)
    assert not guarded.findings
    assert {(change.verdict, change.level) for change in guarded.changes} <= {
        (change.verdict, change.level) for change in plain.changes
    }
    assert (guarded.verdict, guarded.level, guarded.learning) == (plain.verdict, plain.level, plain.learning)


def test_absent_layers_do_not_count() -> None:
    """The `values` of an absent layer are never read."""
    block = calm_block(40)
    values, present = block.values.copy(), block.present.copy()
    values[:, 2], present[:, 2] = np.nan, False
    diagnosis = Diagnostician(LAYERS).update(_replace(block, values=values, present=present))
    assert diagnosis.verdict == "healthy"
    assert not diagnosis.findings


def test_overflowed_norm_is_no_nonfinite_element() -> None:
    """An infinite gradient norm with a count of zero does not count as NaN or Inf elements."""
    block = calm_block(60)
    values = block.values.copy()
    values[33, 1, 0] = np.inf
    diagnosis = Diagnostician(LAYERS).update(_replace(block, values=values))
    assert not [f for f in diagnosis.findings if f.detector == "nonfinite"]


@pytest.mark.parametrize(("steps", "verdict"), [(0, "undetermined"), (19, "undetermined"), (20, "healthy")])
def test_little_data_is_undetermined(steps: int, verdict: str) -> None:
    """A run is undetermined until it has twenty steps, and so is its summary."""
    diagnostician = Diagnostician(LAYERS)
    diagnosis = diagnostician.update(calm_block(steps)) if steps else diagnostician.diagnose()
    assert diagnosis.verdict == verdict
    assert ("Too little data" in diagnosis.summary) == (verdict == "undetermined")


def test_a_run_of_losses_alone_can_be_diagnosed() -> None:
    """Without any statistics a loss that stays NaN is an explosion, until it is finite and falls; one NaN is not."""
    steps = 80
    every = np.ones(steps, dtype=np.bool_)

    def losses(*bad: int) -> Block:
        loss = np.linspace(2, 1, steps)
        loss[list(bad)] = np.nan
        empty = np.zeros((0, 0, 1), dtype=np.float32)
        present = np.zeros((0, 0), dtype=np.bool_)
        series = {"loss": StepSeries(loss, every)}
        return Block(np.arange(steps), ~every, ~every, ("grad_norm",), empty, present, series)

    assert Diagnostician(()).update(losses(20)).verdict == "healthy"
    assert Diagnostician(()).update(losses(steps - 2, steps - 1)).verdict == "exploding"
    recovered = Diagnostician(()).update(losses(20, 21))
    assert [(change.step, change.verdict) for change in keep_verdicts(recovered.changes)[1:]] == [
        (21, "exploding"),
        (60, "healthy"),
    ]


def test_layers_may_be_appended() -> None:
    """A restored state takes layers that the run gained since."""
    diagnostician = Diagnostician(LAYERS[:2])
    block = calm_block(30)
    diagnostician.update(_replace(block, values=block.values[:, :2], present=block.present[:, :2]))
    restored = Diagnostician.from_bytes(diagnostician.to_bytes(), LAYERS)
    assert restored.update(calm_block(30, first=30)).verdict == "healthy"


def test_state_of_another_version_is_refused() -> None:
    """Bytes that are no state of a known version raise StateError."""
    for data in (b"", b"abc", b"gmd9" + pack_state({})[4:]):
        with pytest.raises(StateError):
            unpack_state(data)
