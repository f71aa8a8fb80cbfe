"""The corpus: its recordings, their labels, and that they can be made again."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.corpus.families import SPLITS, Case
from benchmarks.corpus.generate import make_case, perform
from benchmarks.corpus.ledger import Ledger
from benchmarks.corpus.outcome import Outcome, build_up_steps, label_of
from benchmarks.corpus.program import Program
from benchmarks.corpus.recorder import Recorder
from benchmarks.corpus.recording import STATISTICS, load, read_arrays, to_block
from benchmarks.corpus.recording_file import save
from benchmarks.corpus.training import Recipe, Run, schedule_factor, train
from torch import nn

from gradmedic.protocol.numbers import LARGEST_FLOAT32


def case(program: str, **config: Any) -> Case:
    """Describe a small run."""
    return Case(
        id="tiny.run",
        family="tiny",
        program=program,
        intended="healthy",
        causes=(),
        config=config,
        fault=None,
        twin=None,
        min_skill=-1e9,
        seed_name="tiny",
    )


TINY = (
    case("linear_chain", layers=3, width=4, optimizer="sgd", lr=0.02, steps=30, batch=16),
    case("linear_chain", layers=3, width=4, scale=2.0, optimizer="sgd", lr=5.0, steps=60, batch=16, clip_norm=1e9),
    case("adversarial", modes=4, hidden=8, steps=12, batch=8, lr=1e-3),
)


@pytest.mark.parametrize("tiny", TINY, ids=["learns", "explodes", "alternates"])
def test_the_same_case_is_the_same_run(tiny: Case) -> None:
    """A run follows from its case alone, whatever was drawn from the random generators before."""
    first, _ = perform(tiny)
    torch.rand(17)
    second, _ = perform(tiny)
    np.testing.assert_array_equal(first.loss, second.loss)
    for name in STATISTICS:
        np.testing.assert_array_equal(first.statistics[name], second.statistics[name])


def test_a_run_ends_twenty_steps_after_it_turned_nonfinite() -> None:
    """An exploded run is recorded for twenty more steps, and no longer."""
    run, _ = perform(TINY[1])
    assert run.died
    died_at = int(np.argmax(~np.isfinite(run.loss)))
    assert run.first_nonfinite is not None
    assert run.first_nonfinite <= died_at <= run.first_nonfinite + 1
    assert len(run.loss) in (died_at + 20, died_at + 21)


def test_a_recording_is_kept_until_its_case_changes(tmp_path: Path) -> None:
    """A recording is not made twice, and is made again when its configuration is another."""
    (tmp_path / "entries").mkdir()
    entry = make_case(TINY[0], "fit", tmp_path, None)
    path = tmp_path / "tiny.run.npz"
    stamp = path.stat().st_mtime_ns
    assert make_case(TINY[0], "fit", tmp_path, None) == entry
    assert path.stat().st_mtime_ns == stamp
    longer = case("linear_chain", **{**TINY[0].config, "steps": 35})
    assert make_case(longer, "fit", tmp_path, None)["steps"] == 35


def test_no_family_is_in_two_splits() -> None:
    """No split shares a family, an id or a configuration with another split."""
    names = [family.name for families in SPLITS.values() for family in families]
    assert len(names) == len(set(names))
    ids = [c.id for families in SPLITS.values() for family in families for c in family.cases()]
    assert len(ids) == len(set(ids))
    configurations = [
        {json.dumps([c.program, c.config], sort_keys=True) for family in families for c in family.cases()}
        for families in SPLITS.values()
    ]
    assert not any(a & b for a, b in itertools.combinations(configurations, 2))


# --- statistics -------------------------------------------------------------------------------------------------------


def test_statistics_follow_their_definitions() -> None:
    """The recorded statistics of a step equal their definitions for its gradient, weights and update."""
    weight = nn.Parameter(torch.tensor([[3.0, -4.0], [0.0, 0.0]]))
    ledger = Ledger()
    ledger.add_parameter(weight, "w", kind="Linear", role="weight")
    recorder = Recorder(ledger.entries)
    weight.grad = torch.tensor([[0.0, 2.0], [-6.0, math.inf]])
    assert not recorder.before_update(None)
    with torch.no_grad():
        weight.sub_(torch.tensor([[0.0, 0.0], [5.0, 12.0]]))
    assert recorder.after_update()
    found = {name: float(values[0, 0]) for name, values in recorder.arrays().items()}
    assert found["nonfinite_count"] == 1
    assert found["grad_zero_fraction"] == 0.25
    assert found["weight_norm"] == 5
    assert found["update_norm"] == 13
    assert found["grad_norm"] == found["grad_abs_max"] == found["grad_mean"] == math.inf


def test_a_finite_norm_beyond_float32_stays_finite() -> None:
    """A norm that float64 holds and float32 does not is recorded as the largest float32."""
    weight = nn.Parameter(torch.full((4,), 3e38))
    ledger = Ledger()
    ledger.add_parameter(weight, "w", kind="Linear", role="bias")
    recorder = Recorder(ledger.entries)
    weight.grad = torch.zeros(4)
    recorder.before_update(None)
    recorder.after_update()
    assert recorder.arrays()["weight_norm"][0, 0] == np.float32(LARGEST_FLOAT32)


def test_gradients_are_recorded_before_clipping() -> None:
    """Clipping changes the update and is reported as a coefficient; the recorded gradient is the one before it."""
    weight = nn.Parameter(torch.zeros(1, 4))

    def build() -> tuple[Program, Ledger]:
        ledger = Ledger()
        with torch.no_grad():
            weight.zero_()
        ledger.add_parameter(weight, "w", kind="Linear", role="weight")
        return Program(loss=lambda step: 10.0 * weight.sum(), skill=lambda: 1.0), ledger  # noqa: ARG005

    run = train(*build(), Recipe(steps=1, optimizer="sgd", lr=1.0, clip_norm=2.0))
    assert run.statistics["grad_norm"][0, 0] == pytest.approx(20)
    assert run.statistics["update_norm"][0, 0] == pytest.approx(2)
    assert run.clip_coefficient == pytest.approx(np.array([0.1]), rel=1e-5)


def test_an_overflowed_step_of_a_dynamic_loss_scale_is_skipped() -> None:
    """Half-precision overflow shows in the scaled gradient, leaves the weights alone and halves the scale."""
    weight = nn.Parameter(torch.ones(1, 2))
    ledger = Ledger()
    ledger.add_parameter(weight, "w", kind="Linear", role="weight")
    program = Program(loss=lambda step: weight.sum(), skill=lambda: 1.0)  # noqa: ARG005
    run = train(program, ledger, Recipe(steps=3, optimizer="sgd", lr=0.1, loss_scale=2.0**17, dynamic_scale=True))
    assert run.skipped.tolist() == [True, True, False]
    assert run.loss_scale is not None
    assert run.loss_scale.tolist() == [2.0**17, 2.0**16, 2.0**15]
    assert run.statistics["nonfinite_count"][:, 0].tolist() == [2, 2, 0]
    assert run.statistics["update_norm"][:2, 0].tolist() == [0, 0]
    assert run.first_nonfinite is None
    assert not run.died


# --- labels -----------------------------------------------------------------------------------------------------------


def outcome(loss: list[float], skill: float, *, died: bool = False) -> Outcome:
    """Return the outcome of a run that should reach a skill of 0.5."""
    return Outcome(loss=np.array(loss, dtype=np.float32), died=died, skill=skill, min_skill=0.5)


FLAT = [1.0] * 40


@pytest.mark.parametrize(
    ("of", "intended", "twin_skill", "label"),
    [
        (outcome(FLAT, -math.inf, died=True), "healthy", None, "exploding"),
        (outcome([*FLAT, *[11.0] * 10], 0.0), "exploding", 0.9, "exploding"),
        (outcome([1.0, 11.0, *FLAT], 0.0), "exploding", 0.9, "exploding"),
        (outcome([1.0, 11.0, *FLAT], 0.9), "exploding", 0.9, "healthy"),
        (outcome([1.0, 9.0, *FLAT], 0.0), "exploding", 0.9, None),
        (outcome(FLAT, 0.22), "vanishing", 0.9, "vanishing"),
        (outcome(FLAT, 0.3), "vanishing", 0.9, None),
        (outcome(FLAT, 0.6), "vanishing", 0.9, "healthy"),
        (outcome(FLAT, 0.0), "other", None, "other"),
        (outcome(FLAT, 0.6), "other", None, None),
        (outcome(FLAT, 0.2), "healthy", None, None),
        (outcome(np.linspace(1.0, 0.2, 40).tolist(), 0.1), "vanishing", 0.9, None),
    ],
)
def test_labels_follow_the_outcome(of: Outcome, intended: str, twin_skill: float | None, label: str | None) -> None:
    """Loss, weights and skill decide; a run is dropped that neither learned, nor blew up, nor was meant to vanish."""
    assert label_of(of, intended, twin_skill)[0] == label


def test_build_up_counts_the_steps_of_lasting_growth() -> None:
    """An explosion begins where the loss leaves twice its median for good; one that is instant has no build-up."""
    growing = np.array([1.0] * 20 + [2.0**k for k in range(2, 12)] + [np.inf], dtype=np.float32)
    assert build_up_steps(growing, 30) == 10
    recovered = np.array([1.0] * 10 + [50.0] + [1.0] * 9 + [np.nan], dtype=np.float32)
    assert build_up_steps(recovered, 20) == 0
    assert build_up_steps(growing, None) is None


# --- from disk to the diagnostician -----------------------------------------------------------------------------------


def test_absence_and_computed_nan_stay_apart() -> None:
    """A tensor is absent where `nonfinite_count` is NaN; every other NaN or infinity reaches the block as it was."""
    shape = (3, 2)
    arrays: dict[str, Any] = {name: np.arange(6, dtype=np.float64).reshape(shape) for name in STATISTICS}
    arrays["nonfinite_count"] = np.array([[0.0, np.nan], [4.0, 0.0], [0.0, 0.0]])
    arrays["grad_norm"] = np.array([[1.0, np.nan], [np.nan, 1e300], [np.inf, -1e300]])
    arrays["loss"] = np.array([1.0, np.nan, np.inf])
    arrays["learning_rate"] = np.full(3, 0.1)
    arrays["skipped"] = np.array([False, True, False])
    block = to_block(arrays)
    assert block.present.tolist() == [[True, False], [True, True], [True, True]]
    assert block.skipped.tolist() == [False, True, False]
    norms = block.values[:, :, STATISTICS.index("grad_norm")]
    np.testing.assert_array_equal(
        norms, np.array([[1, 0], [np.nan, LARGEST_FLOAT32], [np.inf, -LARGEST_FLOAT32]], dtype=np.float32)
    )
    assert (block.values[0, 1] == 0).all()
    np.testing.assert_array_equal(block.series["loss"].values, arrays["loss"])
    assert "clip_coefficient" not in block.series


def test_a_saved_run_is_read_as_it_was(tmp_path: Path) -> None:
    """Every number and fact of a run survives the file; turns of two optimizers show as absent layers."""
    run, ledger = perform(TINY[2])
    save(tmp_path / "run.npz", run, ledger.entries)
    layers, training, block = load(tmp_path / "run.npz")
    assert [layer.name for layer in layers] == [entry.record.name for entry in ledger.entries]
    assert layers[0].shape == [8, 4]
    assert (layers[0].fan_in, layers[0].fan_out, layers[0].activation) == (4, 8, "relu")
    assert training.optimizers[0].name == "Adam"
    assert training.batch_size == 8
    for index, name in enumerate(STATISTICS):
        column = np.where(block.present, block.values[:, :, index], np.nan)
        np.testing.assert_array_equal(column, run.statistics[name])
    generator = np.array([layer.name.startswith("generator") for layer in layers])
    assert (block.present[0] == ~generator).all()
    assert (block.present[1] == generator).all()


def test_a_bare_recording_names_sizes_alone(tmp_path: Path) -> None:
    """Without facts a layer has its name, its size and, where it is a vector, its shape."""
    run, ledger = perform(TINY[2])
    save(tmp_path / "run.npz", run, ledger.entries)
    layers, training, _ = load(tmp_path / "run.npz", bare=True)
    assert (layers[0].shape, layers[0].numel, layers[0].kind) == (None, 32, None)
    assert layers[1].shape == [8]
    assert training.optimizers == []
    assert read_arrays(tmp_path / "run.npz")["ndim"][:2].tolist() == [2, 1]


def test_frozen_layers_are_absent_throughout() -> None:
    """A frozen tensor is listed, and no optimizer touches it in any step."""
    run, ledger = perform(case("fine_tune", method="lora", hidden=8, rank=2, steps=2, batch=8))
    frozen = np.array([entry.record.frozen for entry in ledger.entries])
    assert frozen.any()
    assert np.isnan(run.statistics["nonfinite_count"][:, frozen]).all()
    assert not np.isnan(run.statistics["nonfinite_count"][:, ~frozen]).any()
    assert isinstance(run, Run)


# --- scripts around a program -----------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"data": "gaussians:3", "hidden": [6], "steps": 3, "batch": 8, "optimizer": "sgd", "lr": 0.1}


@pytest.mark.parametrize("by", ["flag", "hook", "group"])
def test_frozen_tensors_stay_where_they_are(by: str) -> None:
    """However a tensor is frozen it does not move: absent, without a gradient, or with a rate of zero."""
    run, _ = perform(case("mlp", **SMALL, freeze_first=2, freeze_by=by, group_rates=(1.0, 0.0)))
    gradient, update = run.statistics["grad_norm"], run.statistics["update_norm"]
    assert (update[:, 2:] > 0).all()
    if by == "flag":
        assert np.isnan(gradient[:, :2]).all()
        return
    assert (update[:, :2] == 0).all()
    assert ((gradient[:, :2] == 0) == (by == "hook")).all()


def test_the_unit_of_the_loss_scales_its_gradients() -> None:
    """A loss in other units is the same run under an optimizer without a scale; an offset changes no gradient."""
    plain, _ = perform(case("mlp", **SMALL))
    other, _ = perform(case("mlp", **SMALL, loss_factor=4.0, loss_offset=-10.0))
    assert other.loss[0] == pytest.approx(4 * plain.loss[0] - 10, rel=1e-5)
    np.testing.assert_allclose(other.statistics["grad_norm"][0], 4 * plain.statistics["grad_norm"][0], rtol=1e-5)


def test_accumulated_gradients_may_be_summed() -> None:
    """A script that forgets to average takes larger gradients and reports the same loss."""
    averaged, _ = perform(case("mlp", **SMALL, accumulate=4))
    summed, _ = perform(case("mlp", **SMALL, accumulate=4, average=False))
    assert summed.loss[0] == averaged.loss[0]
    np.testing.assert_allclose(summed.statistics["grad_norm"][0], 4 * averaged.statistics["grad_norm"][0], rtol=1e-5)


def test_weights_are_rounded_to_a_grid() -> None:
    """After each update every weight is a multiple of the grid's step."""
    _, ledger = perform(case("mlp", **SMALL, weight_grid=0.125))
    for parameter in ledger.parameters():
        np.testing.assert_array_equal((parameter.detach() * 8) % 1, 0)


def test_a_switch_changes_the_data_from_its_step_on() -> None:
    """Before the switch the losses are equal; at the switch the loss differs."""
    plain, _ = perform(case("mlp", **SMALL))
    other, _ = perform(case("mlp", **SMALL, switch=(2, "mirror")))
    np.testing.assert_array_equal(plain.loss[:2], other.loss[:2])
    assert plain.loss[2] != other.loss[2]


def test_lion_moves_every_weight_by_its_rate() -> None:
    """The steps of Lion have one size, whatever the size of the gradient is."""
    run, ledger = perform(case("mlp", **{**SMALL, "optimizer": "lion", "lr": 1e-3}))
    sizes = np.sqrt([entry.record.numel for entry in ledger.entries]) * 1e-3
    np.testing.assert_allclose(run.statistics["update_norm"][:, -1], sizes[-1], rtol=1e-3)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("doubling:2", [1, 1, 2, 2, 4]),
        ("triangle:4:3", [1, 2, 3, 2, 1]),
        ("rising-restarts:2:10", [1, 0.5, 10, 5, 100]),
    ],
)
def test_schedules_multiply_the_rate(schedule: str, factors: list[float]) -> None:
    """Each schedule has the factors that are documented for it."""
    assert [schedule_factor(schedule, step, 5) for step in range(5)] == pytest.approx(factors)


@pytest.mark.parametrize(
    ("program", "config"),
    [
        ("gated_stack", {"layers": 2, "norm": "layer"}),
        ("pre_activation", {"blocks": 2, "layer_scale": 0.1, "branch_dropout": 0.3}),
        ("sign_network", {"hidden": [8]}),
        ("drifting_values", {"hidden": [4]}),
        ("bilinear_game", {"damping": 0.5}),
        ("principal_component", {}),
        ("actor_critic", {"hidden": 4}),
        ("meta_learning", {"hidden": 4}),
        ("heteroscedastic", {"hidden": [4]}),
        ("mean_teacher", {"hidden": 4}),
        ("pooled_set", {"size": 3, "width": 4}),
        ("word_vectors", {"words": 10}),
        ("click_rates", {"hidden": [4], "categories": 5}),
        ("fixed_point", {"width": 4, "iterations": 3}),
        ("forecasting", {"layers": 2, "width": 4, "norm": "batch"}),
        ("hypernetwork", {"hidden": [4], "inner": 4}),
        ("quantized_codes", {"hidden": 4, "codes": 3}),
        ("ranking", {"hidden": [4], "hinge": True}),
        ("segmentation", {"width": 4, "depth": 1, "overlap": True}),
        ("survival", {"hidden": [4], "partial": True}),
        ("transcription", {"said": 2, "frames": 6, "width": 4}),
        ("transfer", {"method": "adapter", "pretraining": 2, "hidden": 4}),
        ("transfer", {"method": "prompt", "pretraining": 2, "hidden": 4}),
    ],
)
def test_programs_run_and_list_what_they_train(program: str, config: dict[str, Any]) -> None:
    """A program's tensors are all in its ledger: each that is not frozen has a gradient."""
    run, ledger = perform(case(program, steps=4, batch=8, **config))
    assert np.isfinite(run.loss).all()
    trained = np.array([not entry.record.frozen for entry in ledger.entries])
    assert (~np.isnan(run.statistics["nonfinite_count"])).any(axis=0).tolist() == trained.tolist()
