"""Trainings of which `torch.compile` compiles more than the model. Graphs are counted, not timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.client.torch.recording import Recording
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, of Adam

STEPS = 6
PARTS = ("step", "step with clipping", "optimizer", "clipping", "loss", "model", "model in place")


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    """Compile anew in each test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Network(nn.Module):
    """A network whose `forward` is not torch's own, which torch would not compile by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 5), nn.Linear(5, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs."""
        outputs: Tensor = self.outer(torch.tanh(self.inner(inputs)))
        return outputs


class OwnRule(torch.optim.Optimizer):
    """An optimizer of a script, which torch can compile as one graph."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters."""
        assert closure is None
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(0.1 * parameter.grad)


def train(
    part: str, *, is_watched: bool, log_freq: int = 2, steps: int = STEPS
) -> tuple[list[int], Tensor, list[dict[str, Any]]]:
    """Train with one part compiled; return the graphs after each step, the weights, and the statistics."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    counter = CompileCounterWithBackend("eager")
    compiled: Callable[[Any], Any] = torch.compile(backend=counter)
    forward: Any = model
    if part == "model":
        forward = compiled(model)
    elif part == "model in place":
        model.compile(backend=counter)

    def compute_loss(inputs: Tensor) -> Tensor:
        return functional.mse_loss(forward(inputs), inputs[:, :1])

    def clip() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    def update() -> None:
        optimizer.step()

    loss_of = compiled(compute_loss) if part == "loss" else compute_loss
    clips = part in ("clipping", "step with clipping")
    called_clip = compiled(clip) if part == "clipping" else clip
    called_update = compiled(update) if part == "optimizer" else update

    def step(inputs: Tensor) -> None:
        optimizer.zero_grad()
        loss_of(inputs).backward()
        if clips:
            called_clip()
        called_update()

    called_step = compiled(step) if part.startswith("step") else step
    recording = Recording(model, optimizer, log_freq=log_freq) if is_watched else None
    graphs, statistics = [], []
    for seed in range(steps):
        called_step(torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)))
        graphs.append(counter.frame_count)
        if recording is not None:
            statistics.append(recording.statistics())
    if recording is not None:
        recording.watch.close()
    return graphs, torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), statistics


@pytest.mark.usefixtures("one_thread", "no_warning")
@pytest.mark.parametrize("part", PARTS)
def test_a_watch_adds_no_graphs(part: str) -> None:
    """Whatever a script compiles, a watch adds a few graphs at most, none after the first step, and changes nothing."""
    plain_graphs, plain_weights, _ = train(part, is_watched=False)
    graphs, weights, statistics = train(part, is_watched=True)
    assert graphs[0] <= plain_graphs[0] + 2
    assert graphs[1:] == [graphs[0]] * (STEPS - 1)
    assert torch.equal(weights, plain_weights)
    _, _, expected = train("nothing" if "clipping" not in part else "clipping", is_watched=True)
    assert [step.keys() for step in statistics] == [step.keys() for step in expected]
    for step, same in zip(statistics, expected, strict=True):
        for layer, values in step.items():
            assert values == pytest.approx(same[layer], rel=1e-4, abs=1e-7)


@pytest.mark.usefixtures("one_thread", "no_warning")
@pytest.mark.parametrize("part", ["step", "loss", "model", "model in place"])
def test_the_end_of_the_first_steps_adds_no_graphs(part: str) -> None:
    """When the loss is not observed any more, which is after 20 steps here, nothing is compiled again."""
    graphs, _, _ = train(part, is_watched=True, steps=24)
    assert graphs == [graphs[0]] * 24


@pytest.mark.usefixtures("one_thread")
def test_what_must_be_one_graph_is_refused_with_a_sentence() -> None:
    """With `fullgraph=True` around a step, torch's error names gradmedic and what to do; unwatched, it is compiled."""
    model = Network()
    optimizer = OwnRule(model.parameters())

    def update() -> None:
        optimizer.step()

    model(torch.ones(2, 4)).sum().backward()
    torch.compile(update, backend="eager", fullgraph=True)()
    with Recording(model, optimizer), pytest.raises(Exception, match=r"gradmedic .* Compile without fullgraph=True"):
        torch.compile(update, backend="eager", fullgraph=True)()
    torch._dynamo.reset()
    torch.compile(update, backend="eager", fullgraph=True)()


@pytest.mark.usefixtures("one_thread", "no_warning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_autograd_is_watched() -> None:
    """A backward pass that `torch.compile` compiles gives the same statistics, in as many graphs as unwatched."""
    with torch._dynamo.config.patch(compiled_autograd=True):
        plain_graphs, plain_weights, _ = train("step", is_watched=False)
        graphs, weights, statistics = train("step", is_watched=True)
    assert graphs[0] <= plain_graphs[0] + 2
    assert graphs[1:] == [graphs[0]] * (STEPS - 1)
    assert torch.equal(weights, plain_weights)
    assert [len(step) for step in statistics] == [4] * STEPS


def test_activations_that_nothing_shows_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Where a compiled model shows no activation, one warning says that they are not measured."""
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiled = torch.compile(model, backend="eager")
    with Recording(model, optimizer, activations=True) as recording:
        for _ in range(3):
            compiled(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            recording.log()
    assert caplog.text.count("no activation is measured") == 1


@pytest.mark.parametrize("has_own_hook", [False, True])
def test_an_error_of_the_observation_leaves_the_hooks_of_others(
    monkeypatch: pytest.MonkeyPatch, has_own_hook: bool
) -> None:
    """A watch that gives up inside a hook does not disturb torch, which is calling all hooks of the optimizer."""
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []

    def fail(*_: Any) -> Any:
        raise MemoryError("no room")

    with Recording(model, optimizer):
        if has_own_hook:
            optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
            optimizer.register_step_post_hook(lambda *_: calls.append("after"))
        monkeypatch.setattr("gradmedic.torch.updates.measure_norms", fail)
        for _ in range(2):
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
    assert calls == (["before", "after"] * 2 if has_own_hook else [])
