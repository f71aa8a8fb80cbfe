"""Which modules attend, how they are named, and that observing them leaves the training as it was."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.client.torch.recording import Recording
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gradmedic.protocol.probes import parse_metric
from gradmedic.torch.probes import attention, probing, schedule

pytestmark = [
    pytest.mark.usefixtures("one_thread", "no_warning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:The .grad attribute of a Tensor"),
]

STEPS = 12


@pytest.fixture(autouse=True)
def probe_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe attention alone, and as often as may be, also where a step takes no longer than a probe."""
    monkeypatch.setattr(schedule, "SHARE", math.inf)
    monkeypatch.setattr(probing, "PROBE_METERS", (attention.AttentionMeter,))


class Attention(nn.Module):
    """Attention of one kind, with projections of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.project, self.merge = nn.Linear(16, 48), nn.Linear(16, 16)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Attend to earlier positions."""
        batch, length, _ = inputs.shape
        q, k, v = (x.view(batch, length, 4, 4).transpose(1, 2) for x in self.project(inputs).chunk(3, -1))
        if self.kind == "function":
            mixed = functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, dropout_p=0.1 if self.training else 0.0
            )
        else:
            mask = torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril()
            logits = (q @ k.transpose(-2, -1) / 2).masked_fill(~mask, -math.inf)
            normalize: dict[str, Callable[[Tensor], Tensor]] = {
                "module": self.softmax,
                "torch": lambda x: torch.softmax(x, dim=-1),
                "method": lambda x: x.softmax(-1),
                "float32": lambda x: functional.softmax(x, dim=-1, dtype=torch.float32).to(q.dtype),
            }
            weights = normalize[self.kind](logits)
            mixed = functional.dropout(weights, 0.1, self.training) @ v
        merged: Tensor = self.merge(mixed.transpose(1, 2).reshape(batch, length, 16))
        return merged


class Network(nn.Module):
    """Blocks of attention behind each other, perhaps checkpointed."""

    def __init__(self, *kinds: str, reentrant: bool | None = None) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 4, 32, batch_first=True) if kind == "torch layer" else Attention(kind)
            for kind in kinds
        )
        self.reentrant = reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        """Return class probabilities of each position."""
        signal = self.embed(inputs)
        for block in self.blocks:
            call: Callable[..., Tensor] = block
            if self.reentrant is not None and self.training:
                signal = signal + checkpoint(call, signal, use_reentrant=self.reentrant)
            else:
                signal = signal + call(signal)
        return functional.softmax(self.head(signal), dim=-1)


KINDS = ("function", "module", "torch", "method", "float32", "torch layer")


def train(
    model: nn.Module, *, is_watched: bool = True, autocast: bool = False, steps: int = STEPS
) -> tuple[list[Tensor], list[dict[str, float]]]:
    """Train; return losses, weights and the state of the random numbers, and the probes of attention of each step."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recording = Recording(model, optimizer) if is_watched else None
    losses, probes = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(torch.randn(3, 10, 6)).float().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if recording is not None:
            numbers = recording.log().probes
            probes.append({name: value for name, value in numbers.items() if "/attention_" in name})
    if recording is not None:
        recording.watch.close()
    return [*losses, *(p.detach().clone() for p in model.parameters()), torch.get_rng_state()], probes


def build(*kinds: str, reentrant: bool | None = None) -> Network:
    """Return a network that is the same each time."""
    torch.manual_seed(0)
    return Network(*kinds, reentrant=reentrant)


def list_modules(probes: list[dict[str, float]]) -> list[str]:
    """Return the names of the modules that were measured."""
    names = [parse_metric(name) for step in probes for name in step]
    return list(dict.fromkeys(name[1] for name in names if name is not None))


def test_attention_of_every_kind_is_found_and_named_by_its_module() -> None:
    """A softmax belongs to the module that computes the logits, and that of the classes is no attention."""
    _, probes = train(build(*KINDS))
    names = [f"blocks.{i}" for i in range(5)]
    assert list_modules(probes) == [*names, "blocks.5.self_attn"]
    assert not any(probes[:2]), "the first two probed calls show which modules attend"
    for step in probes:
        for name, value in step.items():
            assert 0 < value < 10
            assert value <= 1.0 or "entropy" not in name


def test_the_numbers_are_those_of_the_weights_of_the_step() -> None:
    """A probed step is measured with the weights and the batch of that step, whatever way attention is written."""
    numbers = []
    for kind in ("function", "module", "torch", "method", "float32"):
        model = build(kind)
        for parameter in model.parameters():
            parameter.requires_grad_(parameter is model.head.bias)  # so that every kind has the same weights
        model.embed.weight.requires_grad_()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        torch.manual_seed(1)
        with Recording(model, optimizer) as recording:
            for _ in range(3):
                inputs = torch.randn(3, 10, 6)
                model(inputs).sum().backward()
                optimizer.step()
                probes = recording.log().probes
        numbers.append([value for name, value in sorted(probes.items()) if "/attention_" in name])
        block = model.blocks[0]
        assert isinstance(block, Attention)
        with torch.no_grad():
            q, k, _ = (
                x.view(3, 10, 4, 4).transpose(1, 2).double() for x in block.project(model.embed(inputs)).chunk(3, -1)
            )
            logits = q @ k.transpose(-2, -1) / 2
        assert numbers[-1][1] == pytest.approx(logits.tril().abs().max().item(), rel=1e-5)
    for other in numbers[1:]:
        assert other == pytest.approx(numbers[0], rel=1e-5)


@pytest.mark.parametrize("reentrant", [None, False, True], ids=["plain", "checkpointed", "reentrant"])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_training_is_the_same_to_the_bit(reentrant: bool | None, autocast: bool) -> None:
    """Losses, weights and random numbers are those of a training without a watch, dropout and checkpoints included."""
    watched, probes = train(build(*KINDS, reentrant=reentrant), autocast=autocast)
    plain, _ = train(build(*KINDS, reentrant=reentrant), is_watched=False, autocast=autocast)
    assert len(list_modules(probes)) == len(KINDS)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(watched, plain, strict=True))


def test_nothing_is_left_in_a_model_between_its_calls() -> None:
    """Hooks of its parts and the mode are there during probed calls alone: torch's fast path needs modules without."""
    model = build(*KINDS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        for _ in range(5):
            model(torch.randn(3, 10, 6)).sum().backward()
            optimizer.step()
            assert torch._C._len_torch_function_stack() == 0
            assert not any(has_hooks(module) for module in model.blocks.modules())
            recording.log()
    assert not any(has_hooks(module) for module in model.modules())


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of the meter."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(isinstance(hook, attention._Hook) for hook in hooks)


@pytest.mark.slow
def test_data_parallel_models_are_measured_and_train_the_same() -> None:
    """The model inside the wrapper of data parallelism is observed, by the names of its layers."""
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        watched, probes = train(nn.parallel.DistributedDataParallel(build(*KINDS)))
        plain, _ = train(nn.parallel.DistributedDataParallel(build(*KINDS)), is_watched=False)
    finally:
        torch.distributed.destroy_process_group()
    assert "blocks.0" in list_modules(probes)
    assert len(list_modules(probes)) == len(KINDS)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(watched, plain, strict=True))


def test_a_model_without_attention_is_left_alone_after_two_probes() -> None:
    """Its hooks of this meter are removed at the end of the second step, and its training goes on without them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Softmax(dim=-1), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        hooks = []
        for _ in range(4):
            hooks.append(sum(isinstance(hook, attention._Hook) for hook in model._forward_pre_hooks.values()))
            model(torch.randn(3, 6)).sum().backward()
            optimizer.step()
            recording.log()
    assert hooks == [1, 1, 0, 0]


def test_an_interrupt_within_a_call_leaves_nothing_behind() -> None:
    """Torch calls no hook after an interrupt. What was attached is removed at the end of the step."""
    model = build("function", "module")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        for step in range(4):
            if step == 2:
                merge = model.blocks[1].get_submodule("merge")
                interrupting = merge.register_forward_hook(raise_interrupt)
                with pytest.raises(KeyboardInterrupt):
                    model(torch.randn(3, 10, 6))
                interrupting.remove()
            else:
                model(torch.randn(3, 10, 6)).sum().backward()
            optimizer.step()
            recording.log()
            assert torch._C._len_torch_function_stack() == 0
            assert not any(has_hooks(module) for module in model.blocks.modules())


def raise_interrupt(*_: object) -> None:
    """Do what pressing Ctrl-C does."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_call_that_raises_leaves_nothing_behind(step: int) -> None:
    """An error in the middle of a probed call passes through; the mode is left, and later calls are measured."""
    model = build("function", "module")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names: list[str] = []
    with Recording(model, optimizer) as recording:
        for i in range(8):
            inputs = torch.randn(3, 10, 6)
            if i == step:
                block = model.blocks[1]
                assert isinstance(block, Attention)
                block.kind = "unknown"
                with pytest.raises(KeyError):
                    model(inputs)
                block.kind = "module"
                assert torch._C._len_torch_function_stack() == 0
                assert not any(has_hooks(module) for module in model.blocks.modules())
            model(inputs).sum().backward()
            optimizer.step()
            names.extend(name for name in recording.log().probes if "/attention_" in name)
    assert any("blocks.1" in name for name in names)


def test_a_call_that_cannot_be_measured_ends_the_probes_of_its_module_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of measuring reaches neither the training nor the log; other modules are measured on."""
    model = build("function", "torch", "method")
    blocks = {"blocks.1": RuntimeError("no memory"), "blocks.2": TypeError("no such argument")}
    measure, fails = attention._ModelCalls._measure, False

    def observe(self: Any, name: str, function: Any, *arguments: Any) -> None:
        def fail(*_arguments: Any, **_named: Any) -> None:
            raise blocks[name]

        measure(self, name, fail if fails and name in blocks else function, *arguments)

    monkeypatch.setattr(attention._ModelCalls, "_measure", observe)
    _, before = train(model, steps=3)
    assert list_modules(before) == ["blocks.0", "blocks.1", "blocks.2"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names: list[str] = []
    with Recording(model, optimizer) as recording:
        for step in range(12):
            fails = step > 1
            model(torch.randn(3, 10, 6)).sum().backward()
            optimizer.step()
            names.extend(recording.log().probes)
    assert {parsed[1] for name in names if (parsed := parse_metric(name)) and "attention" in parsed[0]} == {"blocks.0"}


def test_a_watch_that_is_closed_within_a_call_leaves_nothing_behind() -> None:
    """The mode and all hooks are gone at once, and the call goes on."""
    model = build("function", "module")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = Recording(model, optimizer)
    for _ in range(2):
        model(torch.randn(3, 10, 6)).sum().backward()
        optimizer.step()
        recording.log()
    closing = model.blocks[1].register_forward_pre_hook(lambda *_: recording.watch.close())
    model(torch.randn(3, 10, 6)).sum().backward()
    closing.remove()
    assert torch._C._len_torch_function_stack() == 0
    assert not any(has_hooks(module) for module in model.modules())


def test_only_calls_that_train_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls under `no_grad` are not measured, and of several calls in a step the first is."""
    calls: list[str] = []
    measure = attention._ModelCalls._measure

    def observe(self: Any, name: str, *arguments: Any) -> None:
        calls.append(name)
        measure(self, name, *arguments)

    monkeypatch.setattr(attention._ModelCalls, "_measure", observe)
    model = build("function")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        for _ in range(3):
            with torch.no_grad():
                model(torch.randn(2, 10, 6))
            for _ in range(3):
                model(torch.randn(3, 10, 6)).sum().backward()
            optimizer.step()
            recording.log()
    assert calls.count("blocks.0") == 2, "one while modules are looked for, and one that is measured"


def test_a_module_in_eval_keeps_its_fast_path() -> None:
    """A frozen encoder inside the model computes by the same kernels as without a watch."""

    class Tuned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
            self.frozen = nn.TransformerEncoder(layer, 2).eval().requires_grad_(requires_grad=False)
            self.tuned = Attention("function")
            self.ran: list[bool] = []

        def forward(self, inputs: Tensor) -> Tensor:
            with torch.profiler.profile() as profile:
                features = self.frozen(inputs)
            names = {event.key for event in profile.key_averages()}
            self.ran.append("aten::_transformer_encoder_layer_fwd" in names)
            tuned: Tensor = self.tuned(features)
            return tuned

    torch.manual_seed(0)
    model = Tuned()
    optimizer = torch.optim.SGD(model.tuned.parameters(), lr=0.1)
    names: list[str] = []
    with Recording(model, optimizer) as recording:
        for _ in range(8):
            model(torch.randn(3, 10, 16)).sum().backward()
            optimizer.step()
            names.extend(recording.log().probes)
    assert all(model.ran)
    assert {parsed[1] for name in names if (parsed := parse_metric(name)) and "attention" in parsed[0]} == {"tuned"}


@pytest.fixture
def forget_graphs() -> Iterator[None]:
    """Leave no compiled code to other tests."""
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("forget_graphs")
@pytest.mark.parametrize("part", ["model", "model in place", "block", "block in place", "function"])
def test_what_is_compiled_is_compiled_once(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training compiles as often as without this meter, and what is compiled is not measured."""

    def run() -> tuple[int, list[str]]:
        torch._dynamo.reset()
        compiler = CompileCounterWithBackend("aot_eager")
        model: Any = build("function", "module")
        if part == "model":
            model = torch.compile(model, backend=compiler)
        elif part == "model in place":
            model.compile(backend=compiler)
        elif part == "block":
            model.blocks[0] = torch.compile(model.blocks[0], backend=compiler)
        elif part == "block in place":
            model.blocks[0].compile(backend=compiler)
        else:
            model.blocks[0].merge.forward = torch.compile(model.blocks[0].merge.forward, backend=compiler)
        _, probes = train(model)
        return compiler.frame_count, list_modules(probes)

    graphs, names = run()
    monkeypatch.setattr(probing, "PROBE_METERS", ())
    assert run() == (graphs, [])
    assert graphs > 0
    assert names == (["blocks.1"] if part.startswith("block") else [])


@pytest.mark.slow
@pytest.mark.usefixtures("forget_graphs")
def test_a_function_that_was_compiled_before_the_watch_is_compiled_once_more() -> None:
    """Nothing shows that it is compiled. It runs as one graph as before, with the same results."""

    def run(*, is_watched: bool) -> tuple[int, list[Tensor], list[str]]:
        torch._dynamo.reset()
        compiler = CompileCounterWithBackend("aot_eager")
        model = build("function")
        block: Any = model.blocks[0]
        project = block.project.forward
        scale = torch.compile(lambda x: x * torch.rsqrt(x.square().mean() + 1.0), backend=compiler, fullgraph=True)
        block.project.forward = lambda inputs: scale(project(inputs))
        model(torch.randn(3, 10, 6)).sum().backward()
        model.zero_grad()
        trained, probes = train(model, is_watched=is_watched)
        return compiler.frame_count, trained, list_modules(probes)

    graphs, watched, names = run(is_watched=True)
    expected, plain, _ = run(is_watched=False)
    assert graphs <= expected + 1
    assert names == ["blocks.0"]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(watched, plain, strict=True))


def test_a_scripted_part_is_left_alone() -> None:
    """TorchScript runs a part as before, and the others are measured."""

    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.jit.script(nn.Sequential(nn.Linear(6, 16), nn.Tanh()))
            self.second = Attention("function")

        def forward(self, inputs: Tensor) -> Tensor:
            second: Tensor = self.second(self.first(inputs))
            return second

    torch.manual_seed(0)
    _, probes = train(Scripted())
    assert list_modules(probes) == ["second"]


def test_copies_of_a_model_do_nothing() -> None:
    """A deep copy, a pickled copy and a scripted copy are no part of the watch."""
    model = build("function")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        saved = io.BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        for duplicate in (copy.deepcopy(model), torch.load(saved, weights_only=False)):
            duplicate(torch.randn(3, 10, 6)).sum().backward()
            assert not any("attention" in name for name in recording.log().probes)


def test_names_begin_like_those_of_the_layers() -> None:
    """The name of a module is that of its layers without their last part, with the prefix of the watch."""
    models = {"left": build("function"), "right": build("torch layer")}
    optimizer = torch.optim.SGD([p for model in models.values() for p in model.parameters()], lr=0.1)
    names: list[str] = []
    with Recording(models, optimizer, prefix="net.") as recording:
        for _ in range(8):
            sum(model(torch.randn(3, 10, 6)).sum() for model in models.values()).backward()
            optimizer.step()
            names.extend(recording.log().probes)
        layers = list(recording.layers)
    modules = {parsed[1] for name in names if (parsed := parse_metric(name)) and "attention" in parsed[0]}
    assert len(modules) == 2
    assert all(any(layer.startswith(f"{module}.") for layer in layers) for module in modules)


def test_attention_in_the_forward_of_the_model_itself_is_measured() -> None:
    """The name of the model itself is empty."""

    class Inputs(Attention):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(functional.pad(inputs, (0, 10)))

    _, probes = train(Inputs("module"))
    assert list_modules(probes) == [""]
