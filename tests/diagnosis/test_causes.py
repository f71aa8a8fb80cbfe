"""A cause is named only with evidence: a number, and what it should be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import ArrayLike
from tests.diagnosis.condition_runs import with_probe, with_rate
from tests.diagnosis.probed_run import add_probes
from tests.diagnosis.synthetic_run import falling, layers, noisy, run

from gradmedic.protocol.diagnosis import Cause
from gradmedic.protocol.origins import Origin
from gradmedic.protocol.probes import name_metric
from gradmedic.protocol.runs import Layer, Loss, Optimizer, Training
from gradmedic_diagnosis import Block, Diagnostician, StepSeries

DYING = np.concatenate([falling(80), np.full(20, np.nan)])


def find_causes(block: Block, training: Training | None = None, kind: str = "Linear") -> dict[str, Cause]:
    """Return the causes of a whole run, by name."""
    named = [Layer(name=layer.name, numel=100, role="weight", kind=kind) for layer in layers(block.present.shape[1])]
    return {cause.cause: cause for cause in Diagnostician(named, training).update(block).causes}


def dying(**columns: ArrayLike) -> Block:
    """Return a run whose loss turns NaN at step 80, after ordinary gradients."""
    return run(DYING, **columns)  # type: ignore[arg-type]  # learning_rate is not among the columns


def bursting() -> Block:
    """Return the same run, with a gradient norm of fifty times the typical one on a step before."""
    return dying(gradient=np.where(np.arange(100) == 70, 25.0, 0.5)[:, None])


def test_a_healthy_update_is_no_high_learning_rate() -> None:
    """Updates of a thousandth of the weights are healthy, so the learning rate is not blamed for a NaN."""
    assert "learning_rate_too_high" not in find_causes(dying(update=0.01))
    causes = find_causes(dying(update=2.0))
    assert causes["learning_rate_too_high"].evidence["update_to_weight"] == pytest.approx(0.2)


def test_weights_that_start_at_zero_do_not_hide_a_numerical_cause() -> None:
    """Against weights of zero any update is infinite: that is no evidence, and the numerical cause comes first."""
    weight = np.linspace(0.0, 1.0, 100)[:, None]
    causes = find_causes(dying(weight=weight, update=0.01))
    assert next(iter(causes)) == "nonfinite_loss"
    assert "learning_rate_too_high" not in causes
    assert not any("inf times" in cause.explanation for cause in causes.values())


def test_the_place_of_a_numerical_cause_is_named() -> None:
    """A non-finite loss points to the forward pass, a finite one with non-finite gradients to the backward pass."""
    causes = find_causes(dying())
    assert "forward pass" in causes["nonfinite_loss"].explanation
    assert "numerical_instability" not in causes
    block = run(falling(100))
    values = block.values.copy()
    values[60:, :, block.statistics.index("nonfinite_count")] = 5
    values[60:, :, block.statistics.index("weight_norm")] = np.nan
    values[60:, :, block.statistics.index("grad_norm")] = np.nan
    broken = Block(**{**{name: getattr(block, name) for name in Block.__dataclass_fields__}, "values": values})
    causes = find_causes(broken)
    assert "backward pass" in causes["numerical_instability"].explanation
    assert "nonfinite_loss" not in causes
    origin = Origin(operation="sqrt", kind="numeric", text="NaN is born in `sqrt` (model.py:57).")
    located = find_causes(broken, Training(origin=origin))["numerical_instability"]
    assert located.explanation.startswith("NaN is born in `sqrt` (model.py:57). A gradient became non-finite")
    assert located.score > causes["numerical_instability"].score
    not_found = Training(origin=Origin(reason="a scripted module cannot be repeated", text="Not found."))
    assert find_causes(broken, not_found)["numerical_instability"] == causes["numerical_instability"]


def test_an_origin_comes_before_all_other_causes_of_a_loss_that_is_not_finite() -> None:
    """The operation is known, so that it is the first cause; the steps before were ordinary."""
    origin = Origin(operation="softmax", kind="numeric", step=80)
    first = next(iter(find_causes(dying(), Training(origin=origin)).values()))
    assert first.cause == "numerical_instability"
    assert first.explanation == "NaN is born at step 80 in `softmax`."
    grown = find_causes(dying(update=2.0), Training(origin=origin))
    assert "numerical_instability" not in grown, "the updates destroyed the weights, and the operation only shows it"
    assert "numerical_instability" not in find_causes(dying(), Training(origin=Origin(operation="linear", kind="data")))


def test_a_learning_rate_that_rose_is_blamed() -> None:
    """A rate that rose tenfold before the NaN is named with the rise; a jump is a condition of its own.

    A warm-up whose updates were ordinary has done no harm.
    """
    steps = np.arange(100)
    assert "learning_rate_too_high" not in find_causes(with_rate(dying(update=0.01), 0.01 * (1 + steps / 11)))
    block = dying(update=0.06)
    causes = find_causes(with_rate(block, 0.01 * (1 + steps / 11)))
    assert causes["learning_rate_too_high"].evidence["learning_rate_rise"] == pytest.approx(10)
    causes = find_causes(with_rate(block, np.where(steps < 60, 0.01, 0.1)))
    assert causes["learning_rate_jump"].evidence["rise"] == pytest.approx(10)
    assert "learning_rate_too_high" not in causes


@pytest.mark.parametrize(
    ("kind", "value", "is_first"), [("ctc", np.inf, True), ("ctc", np.nan, False), ("cross_entropy", np.inf, False)]
)
def test_an_infinite_ctc_loss_has_no_possible_alignment(kind: str, value: float, is_first: bool) -> None:
    """An input that is too short for its labels makes a CTC loss infinite, and nothing else does what it needs."""
    block = dying(weight=4.0, update=0.004)
    loss = np.where(np.isnan(DYING), value, DYING)
    block = dataclasses.replace(block, series={**block.series, "loss": StepSeries(loss, block.series["loss"].present)})
    block.values[80:, :, 0] = np.nan
    block.values[80:, :, 1] = 1.0
    named = [Layer(name=layer.name, numel=100, role="weight") for layer in layers(block.present.shape[1])]
    advice = Diagnostician(named, Training(loss=Loss(kind=kind))).update(block).advice
    assert (advice[0].remedy.id == "leave_out_impossible_alignments") is is_first


def test_a_gated_cell_alone_is_no_long_recurrence() -> None:
    """An LSTM whose factor per time step is unknown is not blamed for a NaN."""
    assert "long_recurrence" not in find_causes(dying(), kind="LSTM")


def test_clipping_is_missed_less_under_adam() -> None:
    """An optimizer that divides by the gradient's size hardly notices clipping."""
    sgd = find_causes(bursting(), Training(optimizers=[Optimizer(name="SGD")]))["missing_clipping"]
    adam = find_causes(bursting(), Training(optimizers=[Optimizer(name="AdamW")]))["missing_clipping"]
    assert adam.score < sgd.score
    assert "matters less" in adam.explanation
    assert "missing_clipping" not in find_causes(bursting(), Training(clips_gradients=True))


def test_clipping_is_missed_only_where_it_would_have_acted() -> None:
    """A rare norm of fifty times the typical one is evidence; equal norms are none, nor is one that is often large."""
    assert find_causes(bursting())["missing_clipping"].evidence["largest_gradient_norm"] == 50
    assert "missing_clipping" not in find_causes(dying())
    often = np.where(np.arange(100) % 5 == 4, 50.0, 1.0)[:, None]
    assert "missing_clipping" not in find_causes(dying(gradient=often))


def test_a_recurrence_that_was_spoiled_is_no_first_cause() -> None:
    """A recurrence that shrinks gradients from the start is the cause; a burst that spoiled one is, too."""
    named = [*layers(3), Layer(name="rnn.weight_hh", shape=[10, 10], role="recurrent", spectral_norm=1.0)]
    steps = np.arange(300)
    block = run(noisy(2.3, 300), gradient=np.where(steps == 60, 50.0, 1.0)[:, None])
    for before, first in ((0.3, "long_recurrence"), (0.95, "missing_clipping")):
        factors = {name_metric("time_gradient_factor", "rnn"): np.where(steps < 60, before, 0.3)}
        causes = Diagnostician(named).update(add_probes(block, factors)).causes
        assert causes[0].cause == first


def test_targets_of_a_classification_have_no_scale() -> None:
    """A first loss of 100 may come from unscaled targets, but not under a cross-entropy."""
    block = run(np.concatenate([100 * falling(80), np.full(20, np.nan)]), update=2.0, weight=1.0)
    assert "unscaled_targets" in find_causes(block)
    assert "unscaled_targets" not in find_causes(block, Training(loss=Loss(kind="cross_entropy", classes=10)))


def test_a_recurrent_matrix_that_expands_is_blamed_by_its_number() -> None:
    """A factor of 1.3 per time step is evidence for an explosion through time; one of 0.5 is none."""
    for factor, is_blamed in ((1.3, True), (0.5, False)):
        named = [*layers(3), Layer(name="rnn.weight_hh", shape=[10, 10], role="recurrent", spectral_norm=factor)]
        causes = Diagnostician(named).update(dying()).causes
        assert ("long_recurrence" in {cause.cause for cause in causes}) == is_blamed


def test_causes_with_the_same_evidence_are_told_apart_by_a_rerun() -> None:
    """A first loss of 10^5 fits unscaled inputs and unscaled targets; the texts name what a rerun can test."""
    block = run(np.concatenate([1e5 * falling(80), np.full(20, np.nan)]), update=2.0, weight=1.0)
    causes = find_causes(block)
    assert causes["unscaled_inputs"].evidence == causes["unscaled_targets"].evidence
    for name in ("unscaled_inputs", "unscaled_targets"):
        assert causes[name].explanation.endswith("a rerun can test this one.")
    assert "a rerun can test" not in causes["learning_rate_too_high"].explanation


def test_every_cause_has_a_number() -> None:
    """No cause comes without evidence, except a precision or activation that is known by name."""
    for block in (dying(), dying(update=5.0), run(noisy(2.3, 300), gradient=[[1e-9, 1e-6, 1e-3, 1.0]])):
        for cause in find_causes(block, kind="LSTM").values():
            assert cause.evidence, cause


def advised(training: Training, block: Block | None = None) -> list[str]:
    """Return the ids of the remedies that are advised for a run that turns NaN."""
    return [advice.remedy.id for advice in Diagnostician(layers(), training).update(block or dying(update=2.0)).advice]


def test_a_script_that_clips_is_not_told_to_clip() -> None:
    """Clipping is no advice for a script that clips its gradients."""
    assert "clip_grad_norm" in advised(Training())
    assert not [id for id in advised(Training(clips_gradients=True)) if id.startswith("clip_grad")]


def test_the_rate_comes_before_clipping_under_adam() -> None:
    """Under AdamW with updates of a fifth of the weights, the learning rate is lowered before anything is clipped."""
    ids = advised(Training(optimizers=[Optimizer(name="AdamW")]), dying(update=0.4, weight=2.0))
    assert ids[0] == "scale_learning_rate"
    assert "clip_grad_norm" not in ids[:2]


def test_a_stable_loss_is_not_advised_twice() -> None:
    """A script that gives logits to a cross-entropy is not told to do so; one with a loss of its own is."""
    block = dying()
    own = Training(loss=Loss(kind="other", operations=["Mean", "Neg", "Log", "Softmax"]))
    stable = Training(loss=Loss(kind="cross_entropy", operations=["NllLoss", "LogSoftmax", "Addmm"]))
    assert "stable_loss" in advised(own, block)
    assert "stable_loss" not in advised(stable, block)


def test_targets_of_a_classification_are_not_standardized() -> None:
    """`standardize_targets` is advised for an unscaled regression, and never for a cross-entropy."""
    block = run(np.concatenate([1000 * falling(80), np.full(20, np.nan)]), update=2.0, weight=1.0)
    assert "standardize_targets" in advised(Training(target_rms=300.0, loss=Loss(kind="squared_error")), block)
    classes = Training(target_rms=300.0, loss=Loss(kind="cross_entropy"))
    assert "standardize_targets" not in advised(classes, block)


def test_a_silent_loss_in_half_precision_is_an_underflow_first() -> None:
    """Where the gradient at the output is zero, the precision is the first cause in float16, and the loss elsewhere."""
    silent = dataclasses.replace(run(noisy(2.3, 150)), series={
        **run(noisy(2.3, 150)).series, "output_gradient_norm": StepSeries(np.zeros(150), np.ones(150, dtype=np.bool_)),
    })  # fmt: skip
    for precision, first in (("float16", "precision_underflow"), ("float32", "no_signal_from_loss")):
        diagnosis = Diagnostician(layers(), Training(precision=precision)).update(silent)
        assert diagnosis.causes[0].cause == first


def test_a_nan_of_the_loss_alone_is_an_overflow_of_the_forward_pass() -> None:
    """Where a loss scaler runs, it is none: a scale acts on the way back alone, and such steps are skipped."""
    half, block = Training(precision="float16"), dying()
    assert find_causes(block, half)["precision_overflow"].explanation.startswith("The forward pass overflowed")
    scales = StepSeries(np.full(len(block), 1024.0), np.ones(len(block), dtype=np.bool_))
    scaled = dataclasses.replace(block, series={**block.series, "loss_scale": scales})
    causes = find_causes(scaled, half)
    assert "precision_overflow" not in causes
    assert "nonfinite_loss" in causes


def test_a_run_that_does_not_learn_has_measured_causes() -> None:
    """Sound gradients and a flat loss: scales and a decay that were measured are causes, a large first loss is none."""
    flat = run(noisy(500.0, 300))
    causes = find_causes(flat, Training(input_rms=200.0, target_rms=300.0))
    assert causes["unscaled_inputs"].evidence == {"input_rms": 200.0}
    assert causes["unscaled_targets"].evidence == {"target_rms": 300.0}
    assert find_causes(flat) == {}
    shrinking = run(noisy(2.3, 300), weight=np.geomspace(10, 0.5, 300)[:, None], update=0.05)
    decay = Training(optimizers=[Optimizer(name="SGD", weight_decay=1.0)])
    assert "excessive_weight_decay" in find_causes(shrinking, decay)
    assert find_causes(run(falling(300)), Training(input_rms=200.0)) == {}


def test_whole_features_that_are_not_finite_may_be_computed() -> None:
    """As many bad elements as examples: a standardization may divide by zero. Three bad elements are bad data."""
    block = with_probe(dying(), "input_nonfinite_count", {80: 64.0})
    causes = find_causes(block, Training(batch_size=32))
    assert causes["nonfinite_input"].score > causes["numerical_instability"].score
    assert "numerical_instability" not in find_causes(
        with_probe(dying(), "input_nonfinite_count", {80: 3.0}), Training(batch_size=32)
    )


def test_a_stack_of_unbounded_activations_explains_large_updates() -> None:
    """Updates of twice the weights come behind four cubes in a row, which make them so large."""
    rows = [Layer(name=layer.name, numel=100, role="weight", activation="cube") for layer in layers()]
    causes = [cause.cause for cause in Diagnostician(rows).update(dying(update=20.0)).causes]
    assert causes[0] == "unbounded_activation"
    assert "learning_rate_too_high" in causes


@pytest.mark.parametrize(
    ("training", "is_named"),
    [
        (Training(loss=Loss(kind="cross_entropy", constant_level=2.3), input_rms=1.0), True),
        (Training(loss=Loss(kind="cross_entropy", constant_level=2.3), input_rms=900.0), False),
        (Training(loss=Loss(kind="cross_entropy", constant_level=2.3)), False),
        (Training(loss=Loss(kind="cross_entropy", constant_level=5e3), input_rms=1.0), False),
        (Training(loss=Loss(kind="squared_error", constant_level=0.1), input_rms=1.0, target_rms=3.0), True),
        (Training(loss=Loss(kind="squared_error", constant_level=0.1), input_rms=1.0, target_rms=100.0), False),
        (Training(loss=Loss(kind="squared_error", constant_level=1e3), input_rms=1.0, target_rms=3.0), False),
        (Training(loss=Loss(kind="other"), input_rms=1.0), False),
        (None, False),
    ],
    ids=[
        "classes",
        "raw inputs",
        "unknown inputs",
        "usual loss",
        "regression",
        "raw targets",
        "a sum of squares",
        "other loss",
        "nothing",
    ],
)
def test_outputs_that_start_far_too_large_are_blamed_on_the_weights(training: Training | None, is_named: bool) -> None:
    """A first loss far above that of outputs of zero, at inputs of ordinary size, is due to weights or depth."""
    loss = np.concatenate([np.full(60, 8e3), np.geomspace(8e3, 1e12, 40)])
    causes = find_causes(run(loss, weight=4.0), training)
    cause = causes.get("poor_initialization")
    assert (cause is not None and "The loss starts at" in cause.explanation) is is_named


def test_raw_inputs_are_a_cause_of_vanishing_gradients_too() -> None:
    """Inputs in thousands saturate the units behind them: their measured scale is a cause of a vanishing run."""
    fading = run(np.full(150, 2.3), gradient=np.geomspace(1e-9, 1e-1, 4))
    assert Diagnostician(layers(4)).update(fading).verdict == "vanishing"
    assert "unscaled_inputs" in find_causes(fading, Training(input_rms=3000.0))
    assert "unscaled_inputs" not in find_causes(fading, Training(input_rms=1.0))


def test_a_run_that_gets_worse_has_updates_that_are_too_large() -> None:
    """A loss that rises under updates of a tenth of the weights has a cause, and a momentum of 0.999 is named."""
    rising = run(np.linspace(0.5, 2.5, 300) + 0.01 * noisy(0.0, 300), update=1.0)
    causes = find_causes(rising, Training(optimizers=[Optimizer(name="SGD", momentum=0.999)]))
    assert "A momentum of 0.999 adds each gradient to 1000 updates" in causes["learning_rate_too_high"].explanation
    assert "momentum" not in find_causes(rising)["learning_rate_too_high"].explanation
    assert "learning_rate_too_high" not in find_causes(run(rising.series["loss"].values, update=0.01))


def test_units_that_large_updates_killed_are_a_consequence() -> None:
    """Units that die after the first steps, under updates as large as the weights, follow from these updates."""
    alive = np.where(np.arange(300)[:, None] < 10, 0.5, 0.0)
    killed = find_causes(run(noisy(2.3, 300), gradient=alive, update=np.where(alive > 0, 20.0, 0.0)))
    assert list(killed)[:2] == ["learning_rate_too_high", "dead_units"]
    assert "died at step" in killed["learning_rate_too_high"].explanation
    from_the_start = find_causes(run(noisy(2.3, 300), gradient=0.0, update=0.0))
    assert next(iter(from_the_start)) == "dead_units"


def test_a_recurrent_matrix_that_starts_too_large_is_the_cause_of_a_loss_that_is_stuck() -> None:
    """The state saturates, and gradients vanish or stay sound: the matrix of the start is the reason."""
    block = run(noisy(2.3, 300))
    for norm, first in ((3.0, ["poor_initialization"]), (1.0, [])):
        named = [*layers(3), Layer(name="rnn.weight_hh", shape=[10, 10], role="recurrent", spectral_norm=norm)]
        assert [cause.cause for cause in Diagnostician(named).update(block).causes] == first


def test_labels_that_are_all_ignored_are_checked_first() -> None:
    """No guarded operation helps against a mean over no labels."""
    block = with_probe(with_probe(dying(), "ignored_label_share", {80: 1.0}), "input_nonfinite_count", {80: 0.0})
    training = Training(loss=Loss(kind="cross_entropy", operations=["NllLoss", "LogSoftmax", "Addmm"]))
    advice = [each.remedy.id for each in Diagnostician(layers(), training).update(block).advice]
    assert advice[0] == "check_labels"
    assert "guard_operations" not in advice
