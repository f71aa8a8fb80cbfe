"""Advice fits the job: its causes, optimizer, loss, structure, precision, and what the script does already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gradmedic.protocol.diagnosis import Advice, Cause, Finding
from gradmedic.protocol.remedies import REMEDIES
from gradmedic.protocol.runs import Layer, Loss, Optimizer, Training
from gradmedic_diagnosis.advice import advise
from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.layer_averages import LayerAverages
from gradmedic_diagnosis.remedies import CATALOGUE
from gradmedic_diagnosis.run_evidence import RunEvidence
from gradmedic_diagnosis.run_history import RunHistory

ADAMW = Optimizer(name="AdamW", learning_rate=1e-3, beta2=0.999, epsilon=1e-8)
SGD = Optimizer(name="SGD", learning_rate=0.1)
PERCEPTRON = tuple(Layer(name=f"{i}.weight", kind="Linear", shape=[10, 10], role="weight") for i in range(4))
TRANSFORMER = (
    Layer(name="embed.weight", kind="Embedding", shape=[32, 10], role="embedding"),
    Layer(name="0.self_attn.in_proj_weight", kind="MultiheadAttention", shape=[30, 10], role="weight", block="0"),
    Layer(name="0.norm1.weight", kind="LayerNorm", shape=[10], role="gain"),
    *(replace(layer, block="0") for layer in PERCEPTRON),
)
LSTM = (Layer(name="lstm.weight_hh_l0", kind="LSTM", shape=[40, 10], role="recurrent"), *PERCEPTRON[:1])
CROSS_ENTROPY = Loss(kind="cross_entropy", operations=["NllLoss", "LogSoftmax"], classes=10)
JUMP = Finding(
    detector="learning_rate_jump",
    verdict="healthy",
    severity="warning",
    layers=[],
    first_step=80,
    last_step=90,
    resolved_step=None,
    evidence={"learning_rate_before": 0.01, "learning_rate_after": 2.0, "rise": 200.0},
    explanation="-",
)
GRADIENT_CLIPS = {"clip_grad_norm", "clip_grad_value", "clip_grad_norm_per_layer", "adaptive_clip"}


def averages_of(layers: tuple[Layer, ...]) -> LayerAverages:
    """Return averages of which nothing is known yet."""
    averages = LayerAverages()
    averages.make_room(len(layers))
    return averages


def advise_on(
    *causes: str,
    verdict: Any = "exploding",
    layers: tuple[Layer, ...] = PERCEPTRON,
    history: RunHistory | None = None,
    conditions: dict[str, float] | None = None,
    findings: Sequence[Finding] = (),
    **training: Any,
) -> list[Advice]:
    """Return the advice for a run with these causes, as the catalogue ranks it."""
    run = RunEvidence(
        verdict=verdict,
        findings=[*findings, *([JUMP] if "learning_rate_jump" in causes else [])],
        layers=layers,
        architecture=Architecture.from_layers(layers),
        training=Training(**{"optimizers": [ADAMW], **training}),
        framework="torch 2.13.0",
        averages=averages_of(layers),
        history=history or RunHistory(),
        conditions=conditions or {},
    )
    found = [
        Cause(cause=name, score=0.9 - 0.05 * i, evidence={"number": 1.0}, explanation="-")
        for i, name in enumerate(causes)
    ]
    return advise(run, found, {}, {})


def evidence(*causes: str, **given: Any) -> list[str]:
    """Return the ids of the advice for a run with these causes."""
    return [advice.remedy.id for advice in advise_on(*causes, **given)]


@pytest.mark.parametrize(
    ("cause", "first", "given"),
    [
        ("attention_logit_growth", "qk_norm", {"layers": TRANSFORMER}),
        ("optimizer_epsilon", "optimizer_epsilon", {"conditions": {"optimizer_epsilon": 0.9}}),
        ("excessive_weight_decay", "reduce_weight_decay", {}),
        ("low_precision_stall", "float32_master_weights", {"parameter_dtype": "bfloat16", "precision": "bfloat16"}),
        ("loss_scale_exhausted", "use_bfloat16", {"precision": "float16", "parameter_dtype": "float32"}),
        ("disconnected_parameters", "connect_parameters", {}),
        ("accumulating_gradients", "call_zero_grad", {}),
        ("missing_gradients", "call_zero_grad", {}),
        ("no_signal_from_loss", "check_labels", {"loss": CROSS_ENTROPY}),
        ("no_signal_from_loss", "connect_parameters", {"loss": Loss(kind="squared_error")}),
        ("loss_mismatch", "remove_extra_softmax", {"loss": CROSS_ENTROPY}),
        (
            "loss_mismatch",
            "use_log_softmax",
            {"loss": Loss(kind="kl_divergence", operations=["Sum", "Sub", "Mul", "Softmax", "Addmm"])},
        ),
        ("loss_mismatch", "match_target_shape", {"loss": Loss(kind="squared_error", broadcasts=True)}),
        ("nonfinite_input", "filter_nonfinite_batches", {}),
        ("nonfinite_loss", "stable_loss", {"loss": Loss(kind="other", operations=["Mean", "Log"])}),
        ("adversary_dominates", "slow_down_adversary", {}),
        ("router_collapse", "balance_router", {}),
        ("learning_rate_jump", "limit_learning_rate", {}),
        ("forgetting_recurrence", "forget_gate_bias", {"layers": LSTM}),
        ("stale_second_moment", "clip_update", {}),
        ("loss_spike", "clip_grad_norm", {"optimizers": [SGD], "verdict": "healthy"}),
    ],
)
def test_each_condition_has_its_remedy_first(cause: str, first: str, given: dict[str, Any]) -> None:
    """For a run whose only cause is a condition, the first advice is the remedy of that condition."""
    assert evidence(cause, **given)[0] == first


def test_a_rate_that_jumped_goes_back_to_what_it_was() -> None:
    """The limit of the rate is the one before the jump, and the factor is at most what undoes the rise."""
    remedies = {advice.remedy.id: advice.remedy.parameters for advice in advise_on("learning_rate_jump")}
    assert remedies["limit_learning_rate"] == {"max_learning_rate": 0.01}
    assert remedies["scale_learning_rate"] == {"factor": 0.005}
    assert "limit_learning_rate" not in evidence("learning_rate_too_high")


def test_a_forget_gate_opens_for_as_long_as_the_sequence_is() -> None:
    """The bias is the logarithm of the time steps where they are known, else the usual 1."""
    known = replace(
        JUMP,
        detector="forgetting_recurrence",
        evidence={"time_steps": 26.0, "factor_per_time_step": 0.1, "share_at_first_time_step": 1e-25},
    )
    for findings, bias in (([known], 3.2), ([], 1.0)):
        advice = advise_on("forgetting_recurrence", layers=LSTM, findings=findings)
        assert advice[0].remedy.parameters == {"bias": bias}


def test_a_deep_plain_network_gets_normalization_before_new_weights() -> None:
    """New weights are enough for a few layers; a signal through many of them needs to be normalized."""
    causes = ("poor_initialization", "missing_normalization")
    deep = tuple(replace(PERCEPTRON[0], name=f"{i}.weight") for i in range(13))
    assert evidence(*causes, layers=deep, verdict="vanishing", optimizers=[SGD])[0] == "insert_normalization"
    assert evidence(*causes, verdict="vanishing", optimizers=[SGD])[0] == "reinitialize"


def test_a_recurrent_matrix_that_breaks_the_state_needs_new_weights() -> None:
    """A bound of the gradient comes first where the recurrent matrix is about orthogonal, and not where it is large."""
    causes = ("long_recurrence", "missing_clipping", "poor_initialization")
    for norm, first in ((1.0, "clip_grad_norm"), (3.0, "reinitialize")):
        hidden = Layer(
            name="rnn.weight_hh_l0", kind="RNN", shape=[10, 10], numel=100, role="recurrent", spectral_norm=norm
        )
        assert evidence(*causes, layers=(hidden, *PERCEPTRON[:1]), optimizers=[SGD])[0] == first


def test_every_condition_of_the_catalogue_is_known() -> None:
    """A cause without any row would have no advice."""
    conditions = {
        "attention_logit_growth", "optimizer_epsilon", "low_precision_stall", "loss_scale_exhausted",
        "disconnected_parameters", "accumulating_gradients", "no_signal_from_loss", "loss_mismatch", "nonfinite_input",
        "nonfinite_loss", "adversary_dominates", "router_collapse", "learning_rate_jump", "forgetting_recurrence",
        "stale_second_moment", "loss_spike", "excessive_weight_decay", "missing_gradients",
    }  # fmt: skip
    assert conditions <= {cause for row in CATALOGUE for cause in row.chances}


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Adafactor", "Lion"])
def test_where_the_gradients_size_does_not_count_updates_come_first(name: str) -> None:
    """Under a scale-free optimizer no bound of the gradient stands before what changes the update."""
    ids = evidence("learning_rate_too_high", "missing_clipping", optimizers=[replace(ADAMW, name=name)])
    assert ids[0] == "scale_learning_rate"
    bounds = [i for i, id in enumerate(ids) if id in GRADIENT_CLIPS]
    updates = [i for i, id in enumerate(ids) if id in {"scale_learning_rate", "warm_up", "clip_update", "beta2"}]
    assert max(updates) < min(bounds, default=len(ids))


def test_under_plain_gradient_descent_clipping_comes_first() -> None:
    """Of a recurrent network that explodes under SGD, clipping is the first advice."""
    ids = evidence("long_recurrence", "missing_clipping", "learning_rate_too_high", optimizers=[SGD])
    assert ids[0] == "clip_grad_norm"
    assert not {"clip_update", "beta2", "optimizer_epsilon"} & set(ids)


@pytest.mark.parametrize(
    ("causes", "given", "absent"),
    [
        (("missing_clipping", "long_recurrence"), {"clips_gradients": True, "optimizers": [SGD]}, GRADIENT_CLIPS),
        (
            ("learning_rate_too_high",),
            {"history": RunHistory(first_learning_rate=1e-5, largest_learning_rate=1e-3)},
            {"warm_up"},
        ),
        (("missing_normalization",), {"layers": TRANSFORMER}, {"insert_normalization", "add_residual"}),
        (("unscaled_inputs", "unscaled_targets"), {"layers": TRANSFORMER}, {"standardize_inputs"}),
        (("unscaled_targets",), {"loss": CROSS_ENTROPY}, {"standardize_targets"}),
        (("nonfinite_loss", "numerical_instability"), {"loss": CROSS_ENTROPY}, {"stable_loss"}),
        (("forgetting_recurrence", "long_recurrence"), {}, {"forget_gate_bias", "replace_recurrent_cell"}),
        (("attention_logit_growth",), {}, {"qk_norm"}),
        (("loss_spike",), {"loss": Loss(kind="squared_error")}, {"z_loss", "logit_soft_cap"}),
        (("loss_spike",), {}, {"embedding_gradient_shrink", "depth_scaled_initialization"}),
        (
            ("low_precision_stall", "optimizer_epsilon"),
            {"precision": "bfloat16", "parameter_dtype": "float32"},
            {"float32_master_weights", "use_bfloat16"},
        ),
        (("stale_second_moment",), {"optimizers": [replace(ADAMW, beta2=0.9)]}, {"beta2"}),
        (("optimizer_epsilon",), {"optimizers": [replace(ADAMW, epsilon=1e-15)]}, {"optimizer_epsilon"}),
    ],
)
def test_what_has_no_place_is_no_advice(causes: tuple[str, ...], given: dict[str, Any], absent: set[str]) -> None:
    """What the script does already, or what has no place in the model, the loss or the optimizer, is left out."""
    assert not absent & set(evidence(*causes, **given))


@pytest.mark.parametrize(
    ("given", "is_advised"),
    [
        ({"precision": "float16", "parameter_dtype": "float32"}, True),
        ({"precision": "float16", "parameter_dtype": "float16"}, False),
        ({"precision": "bfloat16", "parameter_dtype": "float32"}, False),
        ({"precision": "float32", "parameter_dtype": "float32"}, False),
        ({"precision": "float16", "history": RunHistory(last_loss_scale=1024.0)}, False),
        ({}, True),
    ],
)
def test_a_loss_scaler_is_for_float16_under_autocast(given: dict[str, Any], is_advised: bool) -> None:
    """A loss scaler is advised neither where torch's raises, nor where it does nothing, nor where one is in use."""
    assert ("scale_loss" in evidence("precision_overflow", "precision_underflow", **given)) is is_advised


def test_frozen_weights_are_pretrained() -> None:
    """Where some matrices are frozen, no remedy that draws weights anew is advised."""
    frozen = (replace(PERCEPTRON[0], frozen=True, requires_grad=False), *PERCEPTRON[1:])
    assert "reinitialize" not in evidence("poor_initialization", layers=frozen)
    assert "reinitialize" in evidence("poor_initialization")


def test_normalization_makes_initial_weights_count_less() -> None:
    """In a network with normalization, a lower rate comes before another initialization; without, it is after."""
    causes = ("poor_initialization", "learning_rate_too_high")
    assert evidence(*causes, layers=TRANSFORMER, verdict="vanishing")[0] == "scale_learning_rate"
    assert evidence(*causes, verdict="vanishing")[0] == "reinitialize"


@pytest.mark.parametrize(("dtype", "epsilon"), [("float16", 1e-4), ("float32", 1e-15), (None, 1e-15)])
def test_the_epsilon_fits_the_precision(dtype: str | None, epsilon: float) -> None:
    """A float16 model gets an epsilon that float16 can hold, others one that swallows no update."""
    layers = PERCEPTRON
    run = RunEvidence(
        verdict="healthy",
        findings=(),
        layers=layers,
        architecture=Architecture.from_layers(layers),
        training=Training(optimizers=[ADAMW], parameter_dtype=dtype),
        framework=None,
        averages=averages_of(layers),
        history=RunHistory(),
        conditions={"optimizer_epsilon": 0.9},
    )
    cause = Cause(cause="optimizer_epsilon", score=0.9, evidence={}, explanation="-")
    (remedy,) = [advice.remedy for advice in advise(run, [cause], {}) if advice.remedy.id == "optimizer_epsilon"]
    assert remedy.parameters == {"epsilon": epsilon}


def test_what_only_the_script_can_do_is_marked() -> None:
    """Advice for faults of the script is code to paste: a rerun does not apply it by itself."""
    ids = (
        "call_zero_grad", "remove_extra_softmax", "use_log_softmax", "leave_out_impossible_alignments",
        "match_target_shape", "filter_nonfinite_batches",
        "connect_parameters", "check_labels", "slow_down_adversary", "balance_router", "smooth_schedule",
    )  # fmt: skip
    assert all(REMEDIES[id].needs_script for id in ids)
