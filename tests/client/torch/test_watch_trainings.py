"""What a `Watch` measures in trainings of all kinds, up to the service."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import arrays, backward, norm, perceptron
from torch import nn

import gradmedic

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")


def test_a_closure_is_measured_at_its_last_gradients() -> None:
    """LBFGS, which computes gradients inside step(), is measured, and its closure runs as often as without a watch."""

    def run(*, watched: bool) -> tuple[int, bytes]:
        torch.manual_seed(3)
        model = perceptron()
        inputs = torch.randn(8, 6)
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
        calls = 0

        def closure() -> float:
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            loss = (model(inputs) ** 2).mean()
            loss.backward()
            return float(loss.detach())

        recording = Recording(model, optimizer) if watched else None
        for _ in range(3):
            before = arrays(model)
            optimizer.step(closure)  # type: ignore[no-untyped-call]
            if recording is not None:
                numbers = recording.statistics()["0.weight"]
                assert numbers["grad_norm"] == pytest.approx(norm(model.get_parameter("0.weight").grad), rel=1e-6)
                assert numbers["weight_norm"] == pytest.approx(np.linalg.norm(before["0.weight"]), rel=1e-6)
                moved = np.linalg.norm(arrays(model)["0.weight"] - before["0.weight"])
                assert numbers["update_norm"] == pytest.approx(moved, rel=1e-5)
        if recording is not None:
            recording.watch.close()
        return calls, arrays(model)["0.weight"].tobytes()

    assert run(watched=True) == run(watched=False)


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scaler_is_divided_out_and_its_skipped_steps_are_marked(fused: bool) -> None:
    """Gradients are measured unscaled, and a step that the scaler skips is marked and has no statistics."""
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Recording(model, optimizer, scaler=scaler) as recording:
        for i in range(6):
            optimizer.zero_grad()
            loss = (model(torch.randn(4, 6)) ** 2).mean() * (float("inf") if i == 3 else 1.0)
            scaler.scale(loss).backward()
            scaled = norm(model.get_parameter("0.weight").grad)
            scale = scaler.get_scale()
            if i == 4:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            scaler.step(optimizer)
            scaler.update()
            measurement = recording.log()
            assert measurement.skipped is (i == 3)
            assert measurement.loss_scale == scale
            if i == 3:
                assert measurement.row is None
            else:
                numbers = recording.by_layer(measurement)["0.weight"]
                assert numbers["grad_norm"] == pytest.approx(scaled / scale, rel=1e-5)


def test_sparse_and_complex_gradients_are_measured() -> None:
    """A sparse embedding counts the rows without a gradient as zeros, and complex parameters count as pairs."""
    embedding = nn.Embedding(10, 2, sparse=True)
    phase = nn.ParameterDict({"z": nn.Parameter(torch.tensor([3 + 4j, 0j]))})
    model = nn.ModuleDict({"embedding": embedding, "phase": phase})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with Recording(model, optimizer) as recording:
        (embedding(torch.tensor([1, 1, 4])).sum() + phase["z"].abs().square().sum()).backward()
        assert embedding.weight.grad is not None
        dense = embedding.weight.grad.to_dense()
        optimizer.step()
        statistics = recording.statistics()
    assert statistics["embedding.weight"]["grad_norm"] == pytest.approx(norm(dense), rel=1e-6)
    assert statistics["embedding.weight"]["grad_zero_fraction"] == pytest.approx(0.8)
    assert statistics["embedding.weight"]["update_norm"] == pytest.approx(0.5 * norm(dense), rel=1e-5)
    assert statistics["phase.z"]["weight_norm"] == pytest.approx(5.0)
    assert statistics["phase.z"]["grad_norm"] == pytest.approx(10.0)
    assert statistics["phase.z"]["update_norm"] == pytest.approx(5.0)


@pytest.mark.parametrize("watch_compiled", [False, True])
@pytest.mark.slow
def test_a_compiled_model_is_one_graph_and_has_its_own_names(watch_compiled: bool) -> None:
    """Layers have the names of the model that was compiled, and a watch causes no graph break."""
    model = perceptron()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert isinstance(compiled, nn.Module)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(compiled if watch_compiled else model, optimizer) as recording:
        for _ in range(2):
            backward(compiled)
            optimizer.step()
            assert list(recording.statistics()) == [name for name, _ in model.named_parameters()]


def test_a_lazy_model_is_described_once_it_has_shapes() -> None:
    """A model whose layers get their shapes at the first call can be watched before it."""
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        model(torch.randn(2, 3)).sum().backward()
        optimizer.step()
        assert set(recording.statistics()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
        assert recording.layers["0.weight"].shape == [4, 3]


def test_copies_and_saved_files_of_a_watched_model_are_plain() -> None:
    """deepcopy, torch.save and state_dict work before the first batch, and copies are not measured."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        twin = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        copy.deepcopy(optimizer)
        for other in (twin, loaded):
            other(torch.full((2, 6), 100.0))
        backward(model)
        optimizer.step()
        recording.log()
        training = recording.watch.training()
        assert training is not None
        assert training.input_abs_max is not None
        assert training.input_abs_max < 100.0
        assert model.state_dict().keys() == perceptron().state_dict().keys()


def test_weights_loaded_after_watch_are_the_initial_ones() -> None:
    """The initial size of the weights is that just before the first update."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.25)
        backward(model)
        optimizer.step()
        recording.log()
        for layer in recording.layers.values():
            assert layer.initial_rms == pytest.approx(0.25, rel=1e-6)


def test_gradients_with_a_graph_are_measured_and_keep_it() -> None:
    """Gradients that are part of a graph are measured and stay part of it."""
    layer = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with Recording(layer, optimizer) as recording:
        (gradient,) = torch.autograd.grad((layer(torch.ones(1, 2)) ** 2).sum(), layer.weight, create_graph=True)
        layer.weight.grad = gradient
        optimizer.step()
        assert recording.statistics()["weight"]["grad_norm"] == pytest.approx(norm(gradient), rel=1e-6)
        assert layer.weight.grad.requires_grad


# --- with a service -----------------------------------------------------------------------------------------------


def test_a_watched_training_is_stored_and_diagnosed(service_url: str, client: gradmedic.Client) -> None:
    """A watched run is stored with layers, statistics, learning rates and clipping, and is diagnosed."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    norms, rates = [], []
    with gradmedic.init("watched", base_url=service_url, flush_interval=0.01) as run:
        run.watch(model, optimizer)
        for i in range(60):
            optimizer.zero_grad()
            loss = backward(model)
            norms.append(np.float32(norm(model.get_parameter("2.weight").grad)))
            rates.append(optimizer.param_groups[0]["lr"])
            if i >= 30:
                nn.utils.clip_grad_norm_(model.parameters(), 1e-4)
            optimizer.step()
            scheduler.step()
            run.log(loss)
            if i == 20:
                assert run.flush()
                training = client.runs.get(run.id).training
                assert training is not None
                assert training.clips_gradients is False
    stored = client.runs.get(run.id)
    assert stored.framework == f"torch {torch.__version__}"
    assert [layer.name for layer in stored.layers] == [name for name, _ in model.named_parameters()]
    assert stored.training is not None
    assert stored.training.clips_gradients is True
    series = client.runs.steps(run.id, ["grad_norm", "learning_rate"], layer="2.weight", max_points=100).series
    by_name = {item.statistic: item for item in series}
    np.testing.assert_allclose(np.array(by_name["grad_norm"].mean, dtype=float), norms, rtol=1e-6)
    assert by_name["learning_rate"].mean == rates
    assert run.diagnosis().verdict in ("undetermined", "healthy", "vanishing", "exploding")
