"""What is measured while a torch model trains."""

from __future__ import annotations

import copy
import io
import logging
import math
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.client.torch.recording import Recording
from torch import Tensor, nn

import gradmedic


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Let torch use one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_complaint(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail if anything is logged: an error of the observation is only logged, so that the training goes on."""
    with caplog.at_level(logging.WARNING, "gradmedic"):
        yield
    assert not caplog.records


def norm(tensor: object) -> float:
    """Return the L2 norm in float64, by numpy."""
    assert isinstance(tensor, Tensor)
    return float(np.linalg.norm(tensor.detach().double().numpy().ravel()))


def arrays(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Return copies of the parameters."""
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def backward(model: nn.Module, scale: float = 1.0) -> Tensor:
    """Compute gradients of a loss on a random batch."""
    inputs = torch.randn(8, next(model.parameters()).shape[-1])
    loss: Tensor = (model(inputs) ** 2).mean() * scale
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def perceptron() -> nn.Sequential:
    """Return a small model with hidden layers."""
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.1, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_statistics_are_those_of_gradients_weights_and_updates(optimizer_name: str) -> None:
    """All seven statistics of every layer and step are those that numpy computes from copies."""
    model = perceptron()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    with Recording(model, optimizer) as recording:
        for _ in range(5):
            optimizer.zero_grad()
            backward(model)
            gradients = {n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
            before = arrays(model)
            optimizer.step()
            after = arrays(model)
            statistics = recording.statistics()
            assert list(statistics) == list(before)
            for name, numbers in statistics.items():
                gradient = gradients[name].astype(np.float64)
                expected = {
                    "grad_norm": np.linalg.norm(gradient),
                    "grad_abs_max": np.abs(gradient).max(),
                    "grad_zero_fraction": np.mean(gradient == 0),
                    "nonfinite_count": 0.0,
                    "weight_norm": np.linalg.norm(before[name].astype(np.float64)),
                }
                assert {k: numbers[k] for k in expected} == pytest.approx(expected, rel=1e-6)
                change = np.linalg.norm(after[name].astype(np.float64) - before[name])
                rounding = 2.0**-23 * expected["weight_norm"]  # of the weights, which the state knows nothing of
                assert numbers["update_norm"] == pytest.approx(change, rel=1e-6, abs=rounding)
                assert numbers["grad_mean"] == pytest.approx(gradient.mean(), abs=1e-6 * np.abs(gradient).max())


def train(optimizer_name: str, *, watched: bool, clip: bool) -> tuple[dict[str, NDArray[Any]], Tensor, list[float]]:
    """Train a model with dropout; return its weights, the generator's state and the losses."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.BatchNorm1d(50), nn.Sigmoid(), nn.Linear(50, 1))
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    recording = Recording(model, optimizer, log_freq=3) if watched else None
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = backward(model)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if recording is not None:
            recording.log()
    if recording is not None:
        recording.watch.close()
    return arrays(model), torch.get_rng_state(), losses


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_training_is_bit_identical_with_and_without(optimizer_name: str, clip: bool) -> None:
    """Weights, losses and the random generator's state are equal to the bit."""
    weights, state, losses = train(optimizer_name, watched=False, clip=clip)
    watched_weights, watched_state, watched_losses = train(optimizer_name, watched=True, clip=clip)
    assert losses == watched_losses
    assert torch.equal(state, watched_state)
    for name, expected in weights.items():
        assert expected.tobytes() == watched_weights[name].tobytes(), name


# --- clipping -----------------------------------------------------------------------------------------------------


def by_imported_name() -> Callable[..., Tensor]:
    """Return the clipping function as a script has it that imported it before any run began."""
    return nn.utils.clip_grad_norm_


CLIP_IMPORTED_BEFORE = by_imported_name()


@pytest.mark.parametrize("clip", [lambda *a: nn.utils.clip_grad_norm_(*a), CLIP_IMPORTED_BEFORE], ids=["now", "before"])
def test_gradients_are_measured_before_they_are_clipped(clip: Callable[..., Tensor]) -> None:
    """The norm is that before clipping, and the coefficient that of clipping, also if it was imported before."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        for _ in range(3):
            optimizer.zero_grad()
            backward(model, scale=1e4)
            expected = {name: norm(p.grad) for name, p in model.named_parameters()}
            total = clip(model.parameters(), 1.0)
            clipped = {name: norm(p.grad) for name, p in model.named_parameters()}
            optimizer.step()
            measurement = recording.log()
            statistics = recording.by_layer(measurement)
            for name, numbers in statistics.items():
                assert numbers["grad_norm"] == pytest.approx(expected[name], rel=1e-6)
                assert numbers["update_norm"] == pytest.approx(0.1 * clipped[name], rel=1e-4)
            assert measurement.clip_coefficient == pytest.approx(1.0 / (float(total) + 1e-6), rel=1e-6)
        training = recording.watch.training()
        assert training is not None
        assert training.clips_gradients is True


def test_clipping_that_changes_nothing_has_the_coefficient_one() -> None:
    """Gradients below the limit have the coefficient 1."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        backward(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1e6)
        optimizer.step()
        assert recording.log().clip_coefficient == 1.0


def test_clipping_by_value_and_twice_counts_from_before_the_first() -> None:
    """With two kinds of clipping in one step, statistics are those before both."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        backward(model, scale=1e4)
        expected = {name: norm(p.grad) for name, p in model.named_parameters()}
        nn.utils.clip_grad_value_(model.parameters(), 0.5)
        nn.utils.clip_grad_norm_(list(model.parameters()), 0.1)
        optimizer.step()
        statistics = recording.statistics()
        assert {n: s["grad_norm"] for n, s in statistics.items()} == pytest.approx(expected, rel=1e-6)


def test_gradients_changed_after_clipping_are_measured_again() -> None:
    """What was measured before clipping is used only if nothing else has changed the gradient since."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        backward(model, scale=1e4)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        first = model.get_parameter("0.weight")
        assert first.grad is not None
        first.grad.mul_(3.0)
        expected = norm(first.grad)
        optimizer.step()
        assert recording.statistics()["0.weight"]["grad_norm"] == pytest.approx(expected, rel=1e-6)
        optimizer.zero_grad()
        backward(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.zero_grad()  # the script gives this step up
        backward(model)
        expected = norm(first.grad)
        optimizer.step()
        assert recording.statistics()["0.weight"]["grad_norm"] == pytest.approx(expected, rel=1e-6)


def test_closing_leaves_no_trace() -> None:
    """After the last `close`, torch has its own functions, and models and optimizers have no hooks."""
    originals = (nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_, nn.utils.clip_grad._clip_grads_with_norm_)
    models = [perceptron(), perceptron()]
    recordings = [Recording(m, torch.optim.SGD(m.parameters(), lr=0.1)) for m in models]
    assert nn.utils.clip_grad_value_ is not originals[1]
    recordings[0].watch.close()
    recordings[0].watch.close()
    assert nn.utils.clip_grad_value_ is not originals[1]
    recordings[1].watch.close()
    assert (
        nn.utils.clip_grad_norm_,
        nn.utils.clip_grad_value_,
        nn.utils.clip_grad._clip_grads_with_norm_,
    ) == originals
    assert not models[0]._forward_pre_hooks
    assert not recordings[0].watch._optimizers[0]._optimizer_step_pre_hooks


# --- which layers, which steps ------------------------------------------------------------------------------------


def test_frozen_and_unused_parameters_are_absent() -> None:
    """A layer without a gradient has no statistics in that step; a layer in no optimizer is frozen."""
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1), "frozen": nn.Linear(3, 1)})
    model["frozen"].requires_grad_(False)
    optimizer = torch.optim.SGD([*model["used"].parameters(), *model["unused"].parameters()], lr=0.1)
    with Recording(model, optimizer) as recording:
        model["used"](model["frozen"](torch.randn(2, 3)).expand(2, 3)).sum().backward()
        optimizer.step()
        assert set(recording.statistics()) == {"used.weight", "used.bias"}
        assert {name for name, layer in recording.layers.items() if layer.frozen} == {"frozen.weight", "frozen.bias"}


def test_tied_weights_are_one_layer() -> None:
    """A parameter with two names is listed and measured once."""
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 3), "output": nn.Linear(3, 7, bias=False)})
    model["output"].weight = model["embedding"].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        model["output"](model["embedding"](torch.tensor([1, 2]))).sum().backward()
        optimizer.step()
        assert list(recording.statistics()) == ["embedding.weight"]


def test_alternating_optimizers_touch_their_own_layers() -> None:
    """Only the layers of optimizers that stepped since the last log() have statistics."""
    models = {"generator": perceptron(), "critic": perceptron()}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=rate) for (name, model), rate in zip(
        models.items(), (0.1, 0.2), strict=True)}  # fmt: skip
    with Recording(models, list(optimizers.values())) as recording:
        for stepping in (["critic"], ["generator"], ["critic", "critic", "generator"]):
            for name in stepping:
                optimizers[name].zero_grad()
                backward(models[name])
                optimizers[name].step()
            measurement = recording.log()
            assert {layer.split(".")[0] for layer in recording.by_layer(measurement)} == set(stepping)
            assert measurement.learning_rate == (0.2 if "critic" in stepping else 0.1)


def test_several_optimizer_steps_in_one_log_keep_the_last_values_and_the_worst_count() -> None:
    """A NaN gradient between two logs is not hidden by a healthy step after it."""
    layer = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    with Recording(layer, optimizer) as recording:
        for values in ([[np.nan, np.inf]], [[3.0, 4.0]]):
            layer.weight.grad = torch.tensor(values)
            optimizer.step()
        (numbers,) = recording.statistics().values()
        assert numbers["nonfinite_count"] == 2
        assert recording.statistics() == {}


def test_seldom_logging_of_clipped_steps_holds_few_coefficients() -> None:
    """Of many clipped steps that are not sampled, few coefficients are held, and the smallest one counts."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        recording.sampler.is_sampling = False
        for max_norm in (1e-3, *[1e-2] * 1000):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
        assert len(recording.watch._measurement.clip_coefficients) <= 300
        assert recording.log().clip_coefficient == pytest.approx(1e-3 / float(norm), rel=1e-3)


def test_seldom_logging_keeps_the_same_numbers_and_no_memory() -> None:
    """Of a thousand optimizer steps, the last values, largest count and smallest coefficient are kept."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(gradient: float, max_norm: float) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()

    with Recording(model, optimizer) as recording:
        step(1.0, max_norm=1e-3)
        for parameter in list(model.parameters())[:1]:
            parameter.grad = torch.full_like(parameter, math.inf)
        optimizer.step()
        for parameter in model.parameters():
            parameter.data.fill_(1.0)
        for _ in range(200):
            step(1.0, max_norm=100.0)
        tracemalloc.start()
        for _ in range(800):
            step(1.0, max_norm=100.0)
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        step(0.5, max_norm=100.0)
        measurement = recording.log()
    assert grown < 800_000  # one by one they take twice as much
    assert measurement.row is not None
    counts = measurement.row.column("nonfinite_count")
    norms = measurement.row.column("grad_norm")
    assert counts is not None
    assert norms is not None
    assert list(counts) == [30.0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(norms, [0.5 * math.sqrt(p.numel()) for p in model.parameters()], rtol=1e-6)
    assert measurement.clip_coefficient == pytest.approx(1e-3 / math.sqrt(sum(p.numel() for p in model.parameters())))


def test_accumulated_gradients_are_measured_once_whole() -> None:
    """A log() without an optimizer step has no statistics; the one with a step has those of the whole gradient."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        for _ in range(3):
            backward(model)
            measurement = recording.log()
            assert measurement.row is None
            assert not measurement.skipped
        backward(model)
        expected = norm(model.get_parameter("0.weight").grad)
        optimizer.step()
        assert recording.statistics()["0.weight"]["grad_norm"] == pytest.approx(expected, rel=1e-6)


def test_parameters_that_join_the_optimizer_later_are_layers() -> None:
    """Parameters of a group that is added later are layers, with the model's name if they have one."""
    model = perceptron()
    stray = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        backward(model)
        optimizer.step()
        assert set(recording.statistics()) == {"0.weight", "0.bias"}
        optimizer.add_param_group({"params": list(model[2].parameters())})
        model.append(extra := nn.Linear(1, 1))
        optimizer.add_param_group({"params": [*extra.parameters(), stray], "lr": 0.5})
        stray.grad = torch.ones(3)
        backward(model)
        optimizer.step()
        measurement = recording.log()
        assert set(recording.by_layer(measurement)) == {
            "0.weight", "0.bias", "2.weight", "2.bias", "5.weight", "5.bias", "parameter",
        }  # fmt: skip
        assert measurement.learning_rate == 0.5


def test_only_sampled_steps_are_measured() -> None:
    """With log_freq 4, the first twenty steps and then every fourth are measured."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer, log_freq=4) as recording:
        sampled = []
        for i in range(30):
            backward(model)
            optimizer.step()
            if recording.statistics():
                sampled.append(i)
    assert sampled == [*range(20), 20, 24, 28]


# --- kinds of training --------------------------------------------------------------------------------------------


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
    by_name = {each.statistic: each for each in series}
    np.testing.assert_allclose(np.array(by_name["grad_norm"].mean, dtype=float), norms, rtol=1e-6)
    assert by_name["learning_rate"].mean == rates
    assert run.diagnosis().verdict in ("undetermined", "healthy", "vanishing", "exploding")


# --- wrong use ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, torch.optim.SGD([torch.zeros(1)], lr=0.1)), "model must be"),
        ((perceptron(), "adam"), "optimizer must be"),
        ((nn.Sequential(nn.ReLU()), torch.optim.SGD([torch.zeros(1)], lr=0.1)), "model with parameters"),
        ((perceptron(), torch.optim.SGD([torch.zeros(1)], lr=0.1)), "updates no parameter"),
    ],
)
def test_what_cannot_be_watched_is_refused(arguments: tuple[Any, Any], message: str) -> None:
    """Wrong arguments are errors, in a disabled run too."""
    with pytest.raises(gradmedic.ConfigurationError, match=message):
        gradmedic.init(mode="disabled").watch(*arguments)


def test_models_whose_parameters_are_flat_parts_are_refused() -> None:
    """A model that FSDP1 shards is refused: the parts of its flat parameters belong to no layer."""

    class FullyShardedDataParallel(nn.Sequential):
        """Has the name of torch's class, which needs several processes."""

    model = FullyShardedDataParallel(nn.Linear(2, 1))
    with pytest.raises(gradmedic.ConfigurationError, match="fully_shard"):
        gradmedic.init(mode="disabled").watch(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_two_models_need_names_that_differ() -> None:
    """Watching a second model with the same layer names is an error that proposes a prefix."""
    run = gradmedic.init(mode="offline")
    first, second = perceptron(), perceptron()
    run.watch(first, torch.optim.SGD(first.parameters(), lr=0.1))
    with pytest.raises(gradmedic.ConfigurationError, match="prefix"):
        run.watch(second, torch.optim.SGD(second.parameters(), lr=0.1))
    run.watch(second, torch.optim.SGD(second.parameters(), lr=0.1), prefix="second.")
    run.finish()
