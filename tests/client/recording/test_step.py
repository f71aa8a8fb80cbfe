"""Encoded blocks of steps."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest

from gradmedic.recording.action_draft import ActionDraft
from gradmedic.recording.step import Columns, Row, Step, encode_block, pack_step, unpack_step

COLUMNS = Columns(("grad_norm", "nonfinite_count"), np.array([2, 0, 1]), 4)


SKIP = ActionDraft(
    action="skip", reason="gradient_spike", numbers={"grad_norm": 90.0, "limit": 4.0}, explanation="Far above."
)


def row(layers: list[int], values: list[list[float]], names: tuple[str, ...] = ("grad_norm", "nonfinite_count")) -> Row:
    """Return a row of float32 values."""
    return Row(names, np.array(layers, dtype=np.int32), np.array(values, dtype=np.float32))


def test_a_block_is_encoded_as_the_binary_body() -> None:
    """Statistics are `[sampled step, layer]` in the service's order of layers, with a mask of the present layers."""
    steps = [
        Step(number=3, time=1.0, loss=2.0, row=row([0, 1], [[5.0, 0.0], [float("nan"), 7.0]])),
        Step(number=5, time=2.0, output_gradient_norm=0.0, metrics={"accuracy": 0.5}),
        Step(number=9, time=3.0, loss=float("inf"), skipped=True, row=row([2], [[1.0, 0.0]])),
    ]
    body = msgspec.msgpack.decode(encode_block(steps, COLUMNS))
    assert body["output_gradient_norm"] == [None, 0.0, None]
    norms = np.frombuffer(body["statistics"]["grad_norm"], "<f4").reshape(2, 4)
    np.testing.assert_array_equal(norms, np.array([[np.nan, 0, 5, 0], [0, 1, 0, 0]], dtype=np.float32))
    present = np.unpackbits(np.frombuffer(body["present"], np.uint8), bitorder="little")[:8].reshape(2, 4)
    np.testing.assert_array_equal(present, [[1, 0, 1, 0], [0, 1, 0, 0]])
    assert body["steps"] == [3, 5, 9]
    assert body["sampled"] == [True, False, True]
    assert body["skipped"] == [False, False, True]
    assert body["loss"] == [2.0, None, float("inf")]
    assert body["metrics"] == {"accuracy": [None, 0.5, None]}
    assert "learning_rate" not in body


def test_guard_actions_are_encoded_with_their_steps_as_many_as_the_service_takes() -> None:
    """An action has the number of its step. A service that takes none gets a block without the field."""
    steps = [Step(number=number, time=0.0, skipped=True, guard_actions=(SKIP.at(number),)) for number in (3, 5)]
    body = msgspec.msgpack.decode(encode_block(steps, COLUMNS))
    first = {
        "step": 3,
        "action": "skip",
        "reason": "gradient_spike",
        "numbers": {"grad_norm": 90.0, "limit": 4.0},
        "explanation": "Far above.",
    }
    assert body["guard_actions"] == [first, {**first, "step": 5}]
    assert msgspec.msgpack.decode(encode_block(steps, COLUMNS, max_guard_actions=1))["guard_actions"] == [first]
    assert "guard_actions" not in msgspec.msgpack.decode(encode_block(steps, COLUMNS, max_guard_actions=0))


def test_statistics_are_put_in_the_order_of_the_run() -> None:
    """A row may have its statistics in another order, and more of them than the run."""
    step = Step(number=0, time=0.0, row=row([0], [[1.0, 2.0, 3.0]], ("weight_norm", "nonfinite_count", "grad_norm")))
    body = msgspec.msgpack.decode(encode_block([step], COLUMNS))
    assert np.frombuffer(body["statistics"]["grad_norm"], "<f4")[2] == 3.0
    assert np.frombuffer(body["statistics"]["nonfinite_count"], "<f4")[2] == 2.0


def test_a_row_that_lacks_a_statistic_is_not_sampled() -> None:
    """A step whose row lacks a statistic of the run is sent without statistics."""
    body = msgspec.msgpack.decode(
        encode_block([Step(number=0, time=0.0, row=row([0], [[1.0]], ("grad_norm",)))], COLUMNS)
    )
    assert body["sampled"] == [False]
    assert "statistics" not in body


@pytest.mark.parametrize(
    ("step", "is_finite"),
    [
        (Step(number=0, time=0.0), True),
        (Step(number=0, time=0.0, loss=float("nan")), False),
        (Step(number=0, time=0.0, row=row([0], [[1.0, 0.0]])), True),
        (Step(number=0, time=0.0, row=row([0], [[1.0, 3.0]])), False),
        (Step(number=0, time=0.0, row=row([0], [[float("inf"), 0.0]])), False),
    ],
)
def test_a_step_is_finite_if_all_of_its_numbers_are(step: Step, is_finite: bool) -> None:
    """A non-finite loss, statistic or gradient element makes a step non-finite."""
    assert step.is_finite is is_finite


def test_a_step_of_a_journal_is_the_step_that_was_packed() -> None:
    """Every number of a step is read back; a step that an older version packed lacks the newer numbers."""
    step = Step(
        number=3, time=1.0, loss=2.0, learning_rate=0.1, loss_scale=8.0, clip_coefficient=0.5, skipped=True,
        output_gradient_norm=0.25, metrics={"accuracy": 0.5}, row=row([0, 1], [[5.0, 0.0], [2.0, 7.0]]),
        guard_actions=(SKIP.at(3),),
    )  # fmt: skip
    unpacked = unpack_step(pack_step(step))
    assert unpacked.row is not None
    np.testing.assert_array_equal(unpacked.row.values, [[5.0, 0.0], [2.0, 7.0]])
    assert _fields(unpacked) == _fields(step)
    older = msgspec.msgpack.encode(msgspec.msgpack.decode(pack_step(step))[:9])
    assert _fields(unpack_step(older)) == {**_fields(step), "output_gradient_norm": None, "guard_actions": ()}


def _fields(step: Step) -> dict[str, object]:
    return {field.name: getattr(step, field.name) for field in dataclasses.fields(step) if field.name != "row"}


def test_a_step_without_any_gradient_is_known() -> None:
    """A sampled step whose norms are all zero lacks gradients; one that is not sampled shows nothing."""
    statistics = ("grad_norm", "weight_norm")

    def step(*norms: float) -> Step:
        values = np.array([[norm, 1.0] for norm in norms], dtype=np.float32)
        return Step(number=0, time=0.0, row=Row(statistics, np.arange(len(norms), dtype=np.int32), values))

    assert step(0.0, 0.0).lacks_gradients
    assert not step(0.0, 1e-30).lacks_gradients
    assert not Step(number=0, time=0.0).lacks_gradients
