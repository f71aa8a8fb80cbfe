"""Arguments of `log()` that cannot be recorded."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from tests.client.runs import (
    losses,
    start,
)

import gradmedic


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
    """A list in place of a mapping is left out with one warning."""
    arguments: dict[str, Any] = {name: [np.ones(2)]}
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
