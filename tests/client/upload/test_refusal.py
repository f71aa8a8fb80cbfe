"""What the service refuses of a run costs the refused part, and nothing else."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pytest
from tests.client.runs import block_requests, losses, start
from tests.support.faulty_proxy import Fault, FaultyProxy

import gradmedic
from gradmedic.cli import main
from gradmedic.configuration import resolve_connection
from gradmedic.protocol.encoding import to_plain
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.runs import Layer, Optimizer, RunCreate, Training
from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE, FieldError, Problem
from gradmedic.recording.description import RunDescription
from gradmedic.recording.step import Row, Step
from gradmedic.transport.http import Service
from gradmedic.upload.delivery import Delivery, SendResult
from gradmedic.upload.outbox import Outbox
from gradmedic.upload.refusal import remove_fields, to_smallest
from gradmedic_service.telemetry.appending import MAX_METRICS_OF_A_RUN


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The folder in which the runs of a test keep what they did not send."""
    return tmp_path / "unsent"


def refusal(*errors: tuple[str, str], path: str = "/steps") -> Fault:
    """Return the answer to a request with these bad fields."""
    problem = Problem(
        type="t", title="t", status=422, detail="d", error_code="invalid_request", request_id="r",
        errors=[FieldError(path=path, message=message) for path, message in errors],
    )  # fmt: skip
    return Fault(path, status=422, headers={"content-type": PROBLEM_MEDIA_TYPE}, body=msgspec.json.encode(problem))


# --- descriptions -------------------------------------------------------------------------------------------------


def test_a_run_is_stored_without_what_the_service_refuses_of_init(
    proxy: FaultyProxy, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused arguments of init() cost a warning that names them, each once; the rest of the run is stored."""
    proxy.fail(refusal(("notes", "are bad"), ("config", "is bad"), path="/runs"))
    with start(proxy.url, notes="x", config={"lr": 0.1, "note": "y"}, name="good") as run:
        run.log(1.0)
    stored = client.runs.get(run.id)
    assert (stored.name, stored.notes) == ("good", None)
    assert stored.config == {"lr": 0.1}
    assert losses(client, run) == {0: 1.0}
    for name in ("notes", "config"):
        assert caplog.text.count(f"{name} of the run is left out") == 1


def deliver(url: str, content: RunCreate, *blocks: list[Step]) -> list[SendResult]:
    """Send a run and its blocks."""
    assert content.id is not None
    service = Service(resolve_connection(url))
    delivery = Delivery(service, content.id, Outbox(0))
    delivery.prepare(RunDescription(1, content))
    results = [delivery.send(list(enumerate(block, start=1))) for block in blocks]
    service.close()
    return results


def step(number: int, values: list[list[float]] | None = None, **fields: Any) -> Step:
    """Return a step with values `[layer, statistic]` of the statistic `grad_norm`."""
    row = None
    if values is not None:
        row = Row(("grad_norm",), np.arange(len(values), dtype=np.int32), np.array(values, dtype=np.float32))
    return Step(number=number, time=1.7e9, row=row, **{"loss": float(number), **fields})


def test_bad_facts_of_layers_and_training_are_left_out(service_url: str, client: gradmedic.Client) -> None:
    """A run with bad optional facts is stored with the good ones; a refused name of a layer is replaced."""
    bad: Any = "many"
    content = RunCreate(
        id=new_id(),
        project="refusal",
        framework="torch" * 200,
        layers=[
            Layer(name="a", shape=[2, -1], kind="Linear"),
            Layer(name="b" * 600, numel=4),
            Layer(name="c", numel=bad, role="weight"),
        ],
        statistics=["grad_norm", "grad_flavour"],
        training=Training(batch_size=bad, input_rms=-1.0, optimizers=[Optimizer(name="SGD"), Optimizer(name="")]),
    )
    assert content.id is not None
    (result,) = deliver(service_url, content, [step(0, [[1.0], [2.0], [3.0]])])
    assert result.refused_steps == 0
    stored = client.runs.get(content.id)
    assert [(layer.name, layer.shape, layer.numel, layer.role) for layer in stored.layers] == [
        ("a", None, None, None), ("layer 1", None, 4, None), ("c", None, None, "weight")
    ]  # fmt: skip
    assert stored.layers[0].kind == "Linear"
    assert stored.statistics == ["grad_norm"]
    assert stored.training is not None
    assert (stored.training.batch_size, stored.training.input_rms) == (None, None)
    assert [optimizer.name for optimizer in stored.training.optimizers] == ["SGD"]
    series = client.runs.steps(content.id, "grad_norm", layer="layer 1").series
    assert series[0].mean == [2.0]


def test_bad_facts_that_come_later_are_left_out(service_url: str, client: gradmedic.Client) -> None:
    """Layers and training that are sent after the first step lose only their bad facts."""
    content = RunCreate(id=new_id(), project="refusal", layers=[Layer(name="a")])
    assert content.id is not None
    service = Service(resolve_connection(service_url))
    delivery = Delivery(service, content.id, Outbox(0))
    delivery.prepare(RunDescription(1, content))
    later = dataclasses.replace(
        content,
        layers=[*content.layers, Layer(name=" "), Layer(name="c", fan_in=-1, fan_out=3)],
        training=Training(batch_size=-1, precision="float32"),
    )
    for version in (2, 3):
        delivery.prepare(RunDescription(version, later))
    delivery.send([(1, step(0, [[1.0], [2.0], [3.0]]))])
    service.close()
    stored = client.runs.get(content.id)
    assert [(layer.name, layer.fan_out) for layer in stored.layers] == [("a", None), ("layer 0", None), ("c", 3)]
    assert stored.training is not None
    assert (stored.training.batch_size, stored.training.precision) == (None, "float32")
    assert client.runs.steps(content.id, "grad_norm", layer="c").series[0].mean == [3.0]


def test_a_field_that_an_older_service_does_not_have_is_left_out(
    proxy: FaultyProxy, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The run is registered without it, or with only what is needed if no path names anything."""
    proxy.fail(
        refusal(("muted_detectors", "there is no such field"), path="/runs"), refusal(("body", "is bad"), path="/runs")
    )
    with start(proxy.url, config={"lr": 0.1}) as run:
        run.log(1.0, gradients={"w": [1.0]})
    assert losses(client, run) == {0: 1.0}
    assert client.runs.get(run.id).config == {}
    assert "muted_detectors of the run is left out" in caplog.text
    assert "without its optional fields" in caplog.text


def test_an_older_service_stores_a_run_without_the_loss_and_the_objective(
    proxy: FaultyProxy, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The fields that it does not know cost themselves: the run, its other facts and its steps are stored."""
    unknown = "there is no such field"
    proxy.fail(refusal(("training.objective", unknown), ("training.loss", unknown), path="/runs"))
    with start(proxy.url, objective="maximize reward") as run:
        run.log(1.0, reward=2.0)
    stored = client.runs.get(run.id)
    assert stored.training is not None
    assert (stored.training.objective, stored.training.loss) == (None, None)
    assert losses(client, run) == {0: 1.0}
    assert caplog.text.count("training.objective of the run is left out") == 1


def test_a_description_that_is_refused_as_a_whole_keeps_the_steps(
    proxy: FaultyProxy, service_url: str, client: gradmedic.Client, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If nothing is left to leave out, the error is logged once and the steps are kept for `gradmedic sync`."""
    proxy.permanent = refusal(("project", "is bad"), path="/runs")
    run = start(proxy.url)
    run.log(1.0)
    assert not run.flush()
    assert not run.finish(timeout=30.0)
    assert caplog.text.count("keeps the steps") == 1
    proxy.permanent = None
    assert main(["sync", str(directory), "--base-url", service_url]) == 0
    assert losses(client, run) == {0: 1.0}


def test_more_layers_than_the_service_takes(service_url: str, client: gradmedic.Client) -> None:
    """The first layers are stored with their statistics; the others are left out."""
    limit = client.limits().max_layers
    content = RunCreate(id=new_id(), project="refusal", layers=[Layer(name=f"l{i}") for i in range(limit + 5)])
    assert content.id is not None
    row = Row(("grad_norm",), np.array([0, limit + 4], dtype=np.int32), np.ones((2, 1), dtype=np.float32))
    (result,) = deliver(service_url, content, [Step(number=0, time=1.0, loss=1.0, row=row)])
    assert result.refused_steps == 0
    assert len(client.runs.get(content.id).layers) == limit
    assert client.runs.steps(content.id, "grad_norm", layer="l0").series[0].mean == [1.0]


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("config.optimizer.lr", {"config": {"optimizer": {"b.c": [1, 2]}}}),
        ("config.optimizer.b.c[1]", {"config": {"optimizer": {"lr": 0.1}}}),
        ("tags[1]", {"tags": ["a"]}),
        ("layers[0].shape[0]", {"layers": [{"name": "w"}]}),
        ("layers[0].name", {"layers": [{"name": "layer 0", "shape": [2]}]}),
        ("training.optimizers[0].name", {"training": {"optimizers": [{"name": "Adam"}], "loss": {"classes": 3}}}),
        ("training.loss", {"training": {"optimizers": [{"name": "SGD"}, {"name": "Adam"}]}}),
        ("training.loss.classes", {"training": {"optimizers": [{"name": "SGD"}, {"name": "Adam"}], "loss": {}}}),
        ("name", {"name": None}),
    ],
)
def test_the_smallest_part_that_a_path_names_is_removed(path: str, left: dict[str, Any]) -> None:
    """An item of a list of names goes alone, an element of a shape with the shape; a layer stays."""
    body = {
        "project": "p",
        "name": "n",
        "config": {"optimizer": {"lr": 0.1, "b.c": [1, 2]}},
        "tags": ["a", "b"],
        "layers": [{"name": "w", "shape": [2]}],
        "training": {"optimizers": [{"name": "SGD"}, {"name": "Adam"}], "loss": {"classes": 3}},
    }
    error = FieldError(path=path, message="is bad")
    expected = {name: value for name, value in {**body, **left}.items() if value is not None}
    assert remove_fields(body, [error]) == [error]
    assert body == expected


@pytest.mark.parametrize("path", ["project", "layers", "layers[0]", "layers[7].shape", "body", "", "nothing[0].here"])
def test_what_a_run_needs_is_not_removed(path: str) -> None:
    """Paths of needed parts and of nothing at all change nothing."""
    content = RunCreate(id=UUID(int=7), project="p", layers=[Layer(name="w")])
    body = to_plain(content)
    assert remove_fields(body, [FieldError(path=path, message="is bad")]) == []
    assert body == to_plain(content)
    assert to_smallest(body) == {
        "id": str(UUID(int=7)), "project": "p", "layers": [{"name": "w"}], "statistics": ["grad_norm"]
    }  # fmt: skip


# --- blocks -------------------------------------------------------------------------------------------------------


def test_a_block_is_stored_without_its_bad_numbers(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A negative norm costs the statistics of its step, a bad metric itself, a bad number itself."""
    content = RunCreate(id=new_id(), project="refusal", layers=[Layer(name="w")])
    assert content.id is not None
    block = [step(i, [[-1.0 if i == 3 else float(i)]], metrics={"ok": 0.5, "lo\0ss": 1.0}) for i in range(6)]
    block[4] = dataclasses.replace(block[4], loss_scale=math.inf)
    first, second = deliver(service_url, content, block, [step(6, [[6.0]], metrics={"ok": 0.5, "lo\0ss": 1.0})])
    assert (first.refused_steps, second.refused_steps) == (0, 0)
    result = client.runs.steps(content.id, ["loss", "grad_norm", "ok"])
    by_name = {series.statistic: series for series in result.series}
    assert by_name["loss"].mean == [float(i) for i in range(7)]
    assert by_name["ok"].mean == [0.5] * 7
    assert by_name["grad_norm"].mean == [0.0, 1.0, 2.0, None, 4.0, 5.0, 6.0]
    assert caplog.text.count("metrics.lo") == 1


def test_many_bad_steps_cost_their_series(service_url: str, client: gradmedic.Client) -> None:
    """Fifty negative norms, of which the service names one at a time, take a few requests and no loss."""
    content = RunCreate(id=new_id(), project="refusal", layers=[Layer(name="w")])
    assert content.id is not None
    with FaultyProxy(service_url) as proxy:
        deliver(proxy.url, content, [step(i, [[-1.0]]) for i in range(50)])
        assert len(block_requests(proxy.requests)) < 8
    assert client.runs.steps(content.id, "loss").series[0].mean == [float(i) for i in range(50)]


def test_a_refused_step_is_counted_and_the_others_are_stored(service_url: str, client: gradmedic.Client) -> None:
    """The step that a path names is left out of the block."""
    content = RunCreate(id=new_id(), project="refusal", layers=[])
    assert content.id is not None
    (result,) = deliver(service_url, content, [step(0), step(1), step(2**60)])
    assert result.refused_steps == 1
    assert client.runs.get(content.id).last_step == 1


def test_metrics_beyond_the_limit_of_a_run_are_left_out(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """When a run has as many metrics as the service takes, further ones are left out, and the known ones stay."""
    in_a_block = 250
    assert MAX_METRICS_OF_A_RUN % in_a_block == 0
    with start(service_url) as run:
        for first in range(0, MAX_METRICS_OF_A_RUN, in_a_block):
            run.log(0.0, metrics={f"m{first + i}": 1.0 for i in range(in_a_block)})
            assert run.flush()
        run.log(1.0, m0=2.0, more=3.0)
        assert run.flush()
        run.log(2.0, m0=3.0, more=3.0)
    steps = client.runs.get(run.id).last_step
    assert steps is not None
    assert client.runs.steps(run.id, "m0", from_step=steps - 1).series[0].mean == [2.0, 3.0]
    with pytest.raises(gradmedic.ApiError, match="more"):
        client.runs.steps(run.id, "more")
    assert caplog.text.count("metrics of a block is left out") == 1


def test_a_refused_block_is_counted_at_the_end(
    proxy: FaultyProxy, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A block that is refused for no named part is lost alone; the end of the run says how many steps were."""
    with start(proxy.url) as run:
        run.log(0.0)
        assert run.flush()
        proxy.fail(refusal())
        run.log(1.0)
        assert run.flush()
        run.log(2.0)
    assert losses(client, run) == {0: 0.0, 2: 2.0}
    assert "the service refused 1 steps of this run" in caplog.text
