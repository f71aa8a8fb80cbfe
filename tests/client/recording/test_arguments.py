"""Arguments of `log()` that cannot be recorded."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, NamedTuple

import numpy as np
import pytest
from tests.client.runs import (
    losses,
    start,
)

import gradmedic
from gradmedic.recording import recorder


def test_bad_input_is_left_out_and_logged_once_and_never_raised(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """log() raises nothing for wrong arguments, and the correct ones of the step are stored."""
    bad: list[dict[str, Any]] = [
        {"loss": "high"},
        {"loss": np.ones(3)},
        {"loss": 0.5, "accuracy": object()},
        {"loss": 0.5, "gradients": {"w": "steep"}},
        {"loss": 0.5, "gradients": 3},
        {"loss": 0.5, "statistics": {"w": {"steepness": 1.0}}},
        {"loss": 0.5, "statistics": {"w": {"grad_norm": "x"}}},
        {"loss": 0.5, "statistics": {}, "gradients": {}},
        {"loss": 0.5, "step": "three"},
        {"loss": 0.5, "step": -1},
    ]
    with caplog.at_level(logging.WARNING, "gradmedic"), start(service_url) as run:
        for _ in range(3):
            for arguments in bad:
                run.log(**arguments)
        run.log(7.0, step=1000)
        run.log(8.0, step=1000)
        run.log(8.5, step=999)
        run.log(9.0, step=1001)
        run.log(9.5, step=2**60)
    stored = losses(client, run)
    assert stored[1000] == 7.0
    assert stored[1001] == 9.0
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(set(messages))
    for word in (
        "loss is left out",
        "accuracy is left out",
        "steepness",
        "step must be an integer",
        "does not follow",
        "a second loss of step 1000",
        "steps end",
    ):
        assert any(word in message for message in messages), word


def test_a_name_that_the_service_refuses_costs_that_number_and_not_the_run(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Metrics and layers with invalid names are left out with a warning; the rest of the step is stored."""
    names = ["grad_norm", "time", "", "a" * 600, "nul\x00", "lone\ud800"]
    with start(service_url) as run:
        for name in names:
            layers = {name: np.ones(2), "w": np.ones(2)}
            run.log(1.0, metrics={name: 3.0, "accuracy": 0.5}, gradients=layers)
            assert f"the metric {name[:50]!r} is left out" in caplog.text
    assert losses(client, run) == dict.fromkeys(range(len(names)), 1.0)
    assert {layer.name for layer in client.runs.get(run.id).layers} == {"w", "grad_norm", "time"}
    (accuracy,) = client.runs.steps(run.id, "accuracy").series
    assert accuracy.mean == [0.5] * len(names)


def test_more_metrics_than_the_service_takes_are_left_out(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The first metrics are stored, and a warning has the number of the others."""
    most = client.limits().max_metrics
    with start(service_url) as run:
        run.log(1.0, metrics={f"m{i}": float(i) for i in range(most + 5)})
    assert client.runs.steps(run.id, f"m{most - 1}").series[0].mean == [most - 1.0]
    with pytest.raises(gradmedic.InvalidRequestError):
        client.runs.steps(run.id, f"m{most}")
    assert "5 metrics are left out" in caplog.text


def test_layers_and_metrics_may_be_numbered(service_url: str, client: gradmedic.Client) -> None:
    """A key that is no string is converted to one, and names the same layer at every step."""
    with start(service_url) as run:
        for _ in range(3):
            run.log(1.0, gradients={0: np.ones(2), 1: np.ones(2)}, metrics={5: 0.5})  # type: ignore[dict-item]
    assert [layer.name for layer in client.runs.get(run.id).layers] == ["0", "1"]
    assert client.runs.steps(run.id, "5").series[0].mean == [0.5] * 3


@pytest.mark.parametrize("name", ["gradients", "statistics", "metrics"])
def test_an_argument_that_is_no_mapping_is_left_out_and_the_loss_is_stored(
    name: str, service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A number in place of a mapping is left out with one warning."""
    arguments: dict[str, Any] = {name: 3.0}
    with start(service_url) as run:
        run.log(1.0, **arguments)
        run.log(0.5, **arguments)
    assert losses(client, run) == {0: 1.0, 1: 0.5}
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"gradmedic: {name} ")
    assert "map" in message


def test_statistics_of_a_layer_are_a_mapping(service_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A number in place of a layer's statistics causes a warning with an example."""
    with start(service_url) as run:
        run.log(1.0, statistics={"w": 3.0})  # type: ignore[dict-item]
    assert 'statistics must map like {"layer": {"grad_norm": 0.3}}' in caplog.text


def test_a_mapping_in_place_of_a_loss_is_the_loss_and_metrics(service_url: str, client: gradmedic.Client) -> None:
    """`log({"loss": ..., "acc": ...})`, as with other trackers, is the same as naming the arguments."""
    with start(service_url) as run:
        run.log({"loss": 1.0, "acc": 0.25, "val": {"acc": 0.5}}, step=3)
        run.log({"acc": 0.75}, more=2.0)
    assert losses(client, run) == {3: 1.0, 4: None}
    read = {name: client.runs.steps(run.id, name).series[0].mean for name in ("acc", "val.acc", "more")}
    assert read == {"acc": [0.25, 0.75], "val.acc": [0.5, None], "more": [None, 2.0]}


@dataclasses.dataclass
class Block:
    """A node of a nested gradient, as Flax and Equinox have."""

    kernel: Any
    bias: Any


class Pair(NamedTuple):
    """Another node."""

    mean: Any
    scale: Any


def test_nested_gradients_are_layers_with_dotted_paths(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Mappings, lists, tuples and dataclasses of arrays are flattened; a list of numbers is an array."""
    gradients = {
        "params": {"Dense_0": {"kernel": np.full((2, 3), 2.0), "bias": np.ones(3)}},
        "blocks": [Block(np.ones((2, 2)), None), (np.ones(4), Pair(np.ones(1), np.full(1, 3.0)))],
        "plain": [3.0, -4.0],
        "empty": {},
    }
    with start(service_url) as run:
        run.log(1.0, gradients=gradients)
        run.log(0.5, gradients=[np.ones(4), {"deep": np.ones(1)}])
    names = [layer.name for layer in client.runs.get(run.id).layers]
    assert names == [
        "params.Dense_0.kernel", "params.Dense_0.bias", "blocks.0.kernel", "blocks.1.0", "blocks.1.1.mean",
        "blocks.1.1.scale", "plain", "0", "1.deep",
    ]  # fmt: skip
    (series,) = client.runs.steps(run.id, "grad_norm", layer="plain").series
    assert series.mean[0] == 5.0
    assert not caplog.records


def test_a_gradient_that_contains_itself_costs_the_gradients_and_not_the_step(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """An endless tree is left out with a warning, and the loss is stored."""
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with start(service_url) as run:
        run.log(1.0, gradients=endless)
    assert losses(client, run) == {0: 1.0}
    assert "gradients are left out" in caplog.text


def test_statistics_out_of_range_cost_their_layer_and_not_the_block(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A negative norm and a share above one are left out with a warning that has the range."""
    with start(service_url) as run:
        run.log(1.0, statistics={"a": {"grad_norm": -1.0}, "b": {"grad_norm": 2.0}})
        run.log(0.5, statistics={"b": {"grad_norm": 2.0, "grad_zero_fraction": 1.5}})
    assert losses(client, run) == {0: 1.0, 1: 0.5}
    assert [layer.name for layer in client.runs.get(run.id).layers] == ["b"]
    assert "grad_norm must be from 0 to inf, not -1" in caplog.text
    assert "grad_zero_fraction must be from 0 to 1, not 1.5" in caplog.text


# --- two calls for one step ---------------------------------------------------------------------------------------


def test_a_second_log_of_a_step_joins_it(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics and gradients that are logged for the last step are stored with it, also at the end of the run."""
    monkeypatch.setattr(recorder, "_HOLD", 600.0)
    with start(service_url, log_freq=1) as run:
        for step in range(30):
            run.log(1.0, step=step)
            run.log(val=float(step), step=step)
            run.log(gradients={"w": np.array([3.0, 4.0])}, step=step)
    assert losses(client, run) == dict.fromkeys(range(30), 1.0)
    (series,) = client.runs.steps(run.id, "val", max_points=100).series
    assert series.mean == [float(step) for step in range(30)]
    (series,) = client.runs.steps(run.id, "grad_norm", layer="w", max_points=100).series
    assert series.mean == [5.0] * 30
    assert not caplog.records


def test_metrics_that_come_when_their_step_has_left_go_with_the_next(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Late metrics are stored with the next step; without a next step, a warning names them. Both are said once."""
    with start(service_url) as run:
        for step in range(3):
            run.log(1.0, step=step)
            assert run.flush()
            run.log(val=float(step), step=step)
    assert losses(client, run) == dict.fromkeys(range(3), 1.0)
    (series,) = client.runs.steps(run.id, "val", max_points=100).series
    assert series.mean == [None, 0.0, 1.0]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "are recorded with the next step" in messages[0]
    assert "no step followed that could take val" in messages[1]


def test_after_a_rewind_nothing_joins_the_checkpoint(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The step that a run goes back to was logged before: it cannot be logged again."""
    with start(service_url) as run:
        run.log(1.0, step=5)
        run.rewind(5)
        run.log(val=2.0, step=5)
        run.log(0.5)
    assert losses(client, run) == {5: 1.0, 6: 0.5}
    assert "does not follow step 5" in caplog.text


def test_a_second_log_of_a_step_is_no_step_of_the_sampling() -> None:
    """With two calls a step, each eighth step is sampled, and not each fourth."""
    run = gradmedic.init(mode="offline", log_freq=8)
    sampled = []
    for step in range(40):
        sampled.append(run._sampler.is_sampling)
        run.log(1.0, step=step)
        run.log(val=1.0, step=step)
    run.finish()
    assert [step for step, is_sampled in enumerate(sampled) if is_sampled] == [*range(20), 24, 32]
