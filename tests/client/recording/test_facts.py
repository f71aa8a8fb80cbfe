"""Facts about a run that the service would refuse."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import gradmedic
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.numbers import MAX_EXACT_INTEGER
from gradmedic.protocol.origins import BatchTensor, Origin, OriginInput, SourceLine
from gradmedic.protocol.runs import Layer, Loss, Optimizer, RunCreate, Training
from gradmedic.protocol.service import Limits
from gradmedic.recording.facts import check_layer, check_training
from gradmedic.recording.layers import LayerRegistry

WRONG: list[Any] = [
    "text", "", "nul\x00", "x" * 600, object(), -1, -1.5, MAX_EXACT_INTEGER + 1, 10**400, [1, -1], [1.5], [1] * 40,
    True, float("nan"), np.float32(-2), np.int64(-3), {"a": 1},
]  # fmt: skip
"""Values of which no field accepts all."""
LAYER_FIELDS = ("kind", "shape", "numel", "depth", "role", "fan_in", "fan_out", "activation", "normalized", "branch",
                "initial_rms", "spectral_norm", "input_normalized", "block", "calls", "requires_grad")  # fmt: skip
LOSS_FIELDS = ("kind", "operations", "classes", "constant_level", "broadcasts", "surrogate")
ORIGIN_FIELDS = ("operation", "direction", "module", "step", "value", "kind", "reproduced", "is_loss_finite",
                 "is_eager", "operations", "reason", "text")  # fmt: skip
ORIGIN_INPUT_FIELDS = ("shape", "dtype", "special", "count", "total", "unit", "value", "text")
BATCH_FIELDS = ("shape", "dtype", "digest", "nonfinite_count", "min", "max", "examples")
SOURCE_FIELDS = ("file", "line", "text")
TRAINING_FIELDS = ("precision", "parameter_dtype",
                   "input_rms", "input_abs_max", "target_rms", "batch_size", "clips_gradients",
                   "carries_gradients", "layer_order")  # fmt: skip


class Warned(list[str]):
    """Collects warnings."""

    def __call__(self, _kind: str, message: str) -> None:
        """Collect a message."""
        self.append(message)


def test_facts_of_a_foreign_type_are_converted() -> None:
    """Numbers of numpy become plain ones, without a warning."""
    warned = Warned()
    layer = check_layer(Layer(name="w", shape=(np.int64(2), 3), numel=np.int32(6), initial_rms=np.float32(0.5)), warned)  # type: ignore[arg-type]
    assert layer == Layer(name="w", shape=[2, 3], numel=6, initial_rms=0.5)
    assert [type(size) for size in layer.shape or ()] == [int, int]
    training = check_training(Training(batch_size=np.int64(8), clips_gradients=np.bool_(True)), warned)  # type: ignore[arg-type]
    assert (training.batch_size, training.clips_gradients) == (8, True)
    assert type(training.clips_gradients) is bool
    assert not warned


def test_a_number_of_elements_that_contradicts_the_shape_is_left_out() -> None:
    """The shape stays, the number goes, and a warning has the reason."""
    warned = Warned()
    assert check_layer(Layer(name="w", shape=[2, 3], numel=7), warned) == Layer(name="w", shape=[2, 3])
    assert "contradicts" in warned[0]


def test_the_service_takes_every_run_whose_facts_were_checked(service_url: str, client: gradmedic.Client) -> None:
    """Whatever value a fact has, the run is registered; its layers keep their number and order."""
    limits: Limits = client.limits()
    registry = LayerRegistry()
    for field in LAYER_FIELDS:
        for value in WRONG:
            registry.add(Layer(**{"name": f"{field} of {str(value)[:20]}", field: value}))
    for name in ("", " ", "nul\x00", "lone\ud800", "x" * 600, "x" * 600, "line\nbreak"):
        registry.add(Layer(name=name))
    layers = registry.snapshot()
    assert len(layers) <= limits.max_layers
    trainings = [Training(**{field: value}) for field in TRAINING_FIELDS for value in WRONG] + [
        Training(optimizers=[Optimizer(name=value, learning_rate=value, momentum=value, beta2=value, epsilon=value)])
        for value in WRONG
    ]
    trainings += [Training(loss=Loss(**{field: value})) for field in LOSS_FIELDS for value in WRONG]
    origins = [Origin(**{field: value}) for field in ORIGIN_FIELDS for value in WRONG]
    origins += [Origin(input=OriginInput(**{field: value})) for field in ORIGIN_INPUT_FIELDS for value in WRONG]
    origins += [Origin(batch_tensors=[BatchTensor(**{field: value})]) for field in BATCH_FIELDS for value in WRONG]
    line: dict[str, Any] = {"file": "train.py", "line": 7}
    origins += [Origin(source=SourceLine(**{**line, field: value})) for field in SOURCE_FIELDS for value in WRONG]
    trainings += [Training(origin=origin) for origin in origins]
    with gradmedic.init("facts", base_url=service_url) as run:
        assert run.flush()
        transport = run._uploader._service
        assert transport is not None
        for training in trainings:
            checked = check_training(training, Warned())
            body = to_json(RunCreate(project="facts", layers=layers[:1], training=checked))
            transport.request("POST", "/runs", body=body)
        body = to_json(RunCreate(project="facts", layers=layers))
        transport.request("POST", "/runs", body=body)


@pytest.mark.parametrize("value", WRONG)
def test_a_wrong_fact_costs_that_fact_with_a_warning(value: Any) -> None:
    """A batch size that is no count is left out, and a warning names it."""
    warned = Warned()
    checked = check_training(Training(batch_size=value, input_rms=2.0), warned)
    assert checked.input_rms == 2.0
    if checked.batch_size is None:
        assert "batch_size of the training is left out" in warned[0]
    else:
        assert value is True


def test_facts_of_the_loss_are_checked_one_by_one() -> None:
    """A wrong fact of the loss is left out with a warning, and the others stay; the service takes what is left."""
    warned = Warned()
    wrong: Any = {"kind": "guess", "operations": ["NllLoss"] * 65, "classes": -1, "constant_level": "2"}
    wrong.update(broadcasts="no", surrogate=1)
    good = Loss(kind="ctc", operations=["CtcLoss"], classes=3, constant_level=1.5, broadcasts=False, surrogate=False)
    assert check_training(Training(loss=good), warned).loss == good
    assert not warned
    for field, value in wrong.items():
        checked = check_training(Training(loss=dataclasses.replace(good, **{field: value})), warned).loss
        left_out: Any = {field: [] if field == "operations" else None}
        assert checked == dataclasses.replace(good, **left_out)
        assert f"{field} of the loss is left out" in warned[-1]
