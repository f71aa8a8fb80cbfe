"""The order, the branches and the blocks of a network as its first forward pass executes it.

The expected values are written down from the code of each model's `forward`.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.client.torch.recording import Recording
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from gradmedic.protocol.runs import Layer
from gradmedic.torch.first_batch import tensors_in
from gradmedic.torch.first_forward import FirstForward


def observe(
    model: nn.Module, *inputs: Tensor, call: Callable[[], Any] | None = None
) -> tuple[dict[str, Layer], str | None]:
    """Return the layers by name in their depth order after one step, and where the order comes from."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        output = model(*inputs) if call is None else call()
        total = torch.stack([each.float().sum() for each in tensors_in(output) if each.requires_grad]).sum()
        torch.autograd.backward(total)
        optimizer.step()
        recording.log()
        training = recording.watch.training()
        assert training is not None
        layers = sorted(recording.layers.values(), key=lambda layer: layer.depth if layer.depth is not None else -1)
        return {layer.name: layer for layer in layers}, training.layer_order


def matrices(layers: dict[str, Layer]) -> list[str]:
    """Return the names of the matrices in their order, without `.weight`."""
    return [name.removesuffix(".weight") for name, layer in layers.items() if layer.role in ("weight", "recurrent")]


def branches(layers: dict[str, Layer]) -> dict[str, str | None]:
    """Return the block of each matrix on a branch."""
    return {
        name.removesuffix(".weight"): layer.block
        for name, layer in layers.items()
        if layer.branch and layer.role in ("weight", "recurrent")
    }


class Reversed(nn.Module):
    """Registers its layers in the opposite order to that in which it uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.middle = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Linear(4, 4)
        self.stem = nn.Linear(3, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        signal: Tensor = torch.relu(self.stem(inputs))
        signal = self.frozen(signal)
        signal = torch.tanh(self.middle(signal))
        return self.head(signal)  # type: ignore[no-any-return]


def test_the_order_is_that_of_execution_and_not_of_registration() -> None:
    """Layers that are registered backwards, and a frozen one among them, have the depth of their use."""
    layers, order = observe(Reversed(), torch.randn(2, 3))
    assert order == "execution"
    assert matrices(layers) == ["stem", "frozen", "unused", "middle", "head"]
    assert sorted(layer.depth for layer in layers.values() if layer.depth is not None) == list(range(len(layers)))
    assert branches(layers) == {}
    assert {layer.branch for name, layer in layers.items() if name.startswith(("stem", "middle", "head"))} == {False}
    assert layers["frozen.weight"].requires_grad is False
    assert layers["stem.weight"].requires_grad is True


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_stock_transformer_encoder_has_two_branches_in_each_layer(*, norm_first: bool, batch_first: bool) -> None:
    """All matrices of an encoder layer are on branches of that layer; the ones around them are on the main path."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, norm_first=norm_first)
    norm = nn.LayerNorm(8) if norm_first else None
    encoder = nn.TransformerEncoder(layer, 2, norm=norm, enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(5, 8), encoder, nn.Linear(8, 3))
    layers, order = observe(model, torch.randn(2, 4, 5))
    inner = ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2")
    assert order == "execution"
    assert matrices(layers) == ["0", *(f"1.layers.{i}.{name}" for i in (0, 1) for name in inner), "2"]
    assert branches(layers) == {f"1.layers.{i}.{name}": f"1.layers.{i}" for i in (0, 1) for name in inner}
    assert layers["1.layers.1.self_attn.in_proj_weight"].activation == "softmax"
    assert layers["1.layers.1.linear1.weight"].activation == "relu"
    assert layers["1.layers.1.self_attn.in_proj_weight"].input_normalized is True
    assert layers["1.layers.0.linear1.weight"].input_normalized is True
    assert layers["1.layers.0.linear2.weight"].input_normalized is False
    assert layers["2.weight"].input_normalized is True


def test_a_block_that_the_input_enters_has_branches_like_the_next_one() -> None:
    """The identity path of the first block has no gradient; its twin behind it shows what the sum is."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    layers, _ = observe(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 4, 8))
    inner = ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2")
    assert branches(layers) == {f"layers.{i}.{name}": f"layers.{i}" for i in (0, 1) for name in inner}


class Attention(nn.Module):
    """Attention as timm writes it: one matrix for queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, signal: Tensor) -> Tensor:
        """Return the attended values."""
        batch, length, width = signal.shape
        queries, keys, values = (
            self.qkv(signal).reshape(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm block with a scale on each branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))
        self.gamma = nn.Parameter(1e-4 * torch.ones(width))

    def forward(self, signal: Tensor) -> Tensor:
        """Return the signal behind the two branches."""
        signal = signal + self.gamma * self.attn(self.norm1(signal))
        return signal + self.mlp(self.norm2(signal))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """A timm-like vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.blocks = nn.ModuleList(Block(8) for _ in range(2))
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        signal = self.patch(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            signal = block(signal)
        return self.head(self.norm(signal).mean(dim=1))  # type: ignore[no-any-return]


def test_blocks_as_timm_writes_them_are_found() -> None:
    """The blocks hold the branches; patches come first and the head last, whatever is registered first."""
    layers, order = observe(VisionTransformer(), torch.randn(2, 3, 8, 8))
    inner = ("attn.qkv", "attn.proj", "mlp.0", "mlp.3")
    assert order == "execution"
    assert matrices(layers) == ["patch", *(f"blocks.{i}.{name}" for i in (0, 1) for name in inner), "head"]
    assert branches(layers) == {f"blocks.{i}.{name}": f"blocks.{i}" for i in (0, 1) for name in inner}
    assert layers["blocks.0.gamma"].branch is True
    assert layers["blocks.0.attn.qkv.weight"].activation == "softmax"
    assert layers["blocks.0.attn.qkv.weight"].input_normalized is True


class ResidualStage(nn.Module):
    """A block of a ResNet, with a matrix on its shortcut where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))
        )
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)

    def forward(self, signal: Tensor) -> Tensor:
        """Return the sum of branch and shortcut."""
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(signal)))))
        branch += self.shortcut(signal)
        return torch.relu(branch)


def test_a_resnet_has_branches_and_a_shortcut_with_a_matrix() -> None:
    """The convolutions of a block are on its branch; the one on the shortcut is on the main path."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), ResidualStage(4, 4), ResidualStage(4, 6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    layers, _ = observe(model, torch.randn(2, 3, 8, 8))
    assert matrices(layers) == ["0", "3.conv1", "3.conv2", "4.conv1", "4.conv2", "4.shortcut.0", "7"]
    assert branches(layers) == {"3.conv1": "3", "3.conv2": "3", "4.conv1": "4", "4.conv2": "4"}
    assert layers["3.conv1.weight"].normalized is True
    assert layers["4.shortcut.0.weight"].normalized is True


def test_gpt2_has_pre_norm_blocks_and_a_tied_embedding() -> None:
    """GPT-2's matrices are on branches of its blocks, behind their norms, and the embedding is used twice."""
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    tokens = torch.randint(20, (2, 6))
    layers, order = observe(model, call=lambda: model(tokens).logits)
    inner = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert order == "execution"
    assert branches(layers) == {f"transformer.h.{i}.{name}": f"transformer.h.{i}" for i in (0, 1) for name in inner}
    assert layers["transformer.wte.weight"].calls == 2
    assert layers["transformer.h.1.attn.c_attn.weight"].input_normalized is True
    assert layers["transformer.h.1.attn.c_proj.weight"].input_normalized is False


def test_bert_has_a_block_for_attention_inside_of_each_layer() -> None:
    """BERT joins attention inside of its attention module, and the rest inside of the layer."""
    config = BertConfig(vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = BertForSequenceClassification(config)
    layers, _ = observe(model, call=lambda: model(torch.randint(20, (2, 6))).logits)
    layer = "bert.encoder.layer.0"
    attention = ("self.query", "self.key", "self.value", "output.dense")
    assert branches(layers) == {
        **{f"{layer}.attention.{name}": f"{layer}.attention" for name in attention},
        f"{layer}.intermediate.dense": layer,
        f"{layer}.output.dense": layer,
    }
    assert layers["bert.pooler.dense.weight"].activation == "tanh"


def test_a_recurrent_cell_in_a_loop_is_no_residual_block() -> None:
    """A sum of input and state joins two signals; only its matrices are used once a time step."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.cell, self.embed = nn.Linear(4, 2), nn.RNNCell(4, 4), nn.Embedding(7, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            state = torch.zeros(tokens.shape[0], 4)
            for embedded in self.embed(tokens).unbind(1):
                state = self.cell(embedded, state)
            return self.head(state)  # type: ignore[no-any-return]

    layers, _ = observe(Loop(), torch.randint(7, (2, 5)))
    assert sorted(matrices(layers)[:2]) == ["cell.weight_hh", "cell.weight_ih"]
    assert branches(layers) == {}
    assert (layers["cell.weight_hh"].calls, layers["head.weight"].calls) == (5, None)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_modules_lie_between_their_input_and_their_head(kind: type[nn.Module]) -> None:
    """A recurrent module is one call of its matrices."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.cell, self.embed = (
                nn.Linear(4, 2),
                kind(4, 4, num_layers=2, batch_first=True),
                nn.Linear(3, 4),
            )

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.cell(self.embed(inputs))[0])  # type: ignore[no-any-return]

    layers, order = observe(Tagger(), torch.randn(2, 5, 3))
    assert order == "execution"
    names = ("weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1")
    assert matrices(layers) == ["embed", *(f"cell.{name}" for name in names), "head"]
    assert branches(layers) == {}
    assert {layer.calls for layer in layers.values()} == {None}


class Positions(nn.Module):
    """Adds learned positions and a learned token to embedded words, and scales the result."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.position = nn.Parameter(torch.randn(5, 4))
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.scale = nn.Parameter(torch.ones(1, 4))
        self.shift = nn.Parameter(torch.zeros(1, 4))
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.embed = nn.Embedding(7, 4)

    def forward(self, words: Tensor) -> Tensor:
        """Return the logits of the token."""
        signal = torch.cat([self.token.expand(len(words), 1, 4), self.embed(words)], dim=1) + self.position
        return self.head(torch.relu(signal @ self.matrix * self.scale + self.shift)[:, 0])  # type: ignore[no-any-return]


def test_what_is_added_to_a_signal_is_no_weight_matrix() -> None:
    """A parameter with several dimensions is a weight only if something is multiplied with it as a matrix."""
    layers, _ = observe(Positions(), torch.randint(7, (2, 4)))
    assert {name: layer.role for name, layer in layers.items()} == {
        "embed.weight": "embedding", "token": "embedding", "position": "embedding", "matrix": "weight",
        "scale": "gain", "shift": "bias", "head.weight": "weight", "head.bias": "bias",
    }  # fmt: skip
    assert layers["matrix"].activation == "relu"


def test_several_inputs_and_heads_are_in_the_order_of_their_use() -> None:
    """Both inputs come before what joins them, and the heads come last; a sum of two inputs is no residual block."""

    class Multiple(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.policy, self.trunk = nn.Linear(4, 1), nn.Linear(4, 3), nn.Linear(4, 4)
            self.pictures, self.words = nn.Linear(6, 4), nn.Embedding(5, 4)

        def forward(self, pictures: Tensor, words: Tensor) -> dict[str, Any]:
            signal = self.trunk(torch.relu(self.pictures(pictures) + self.words(words)))
            return {"policy": self.policy(signal), "rest": (self.value(signal), None)}

    layers, order = observe(Multiple(), torch.randn(2, 6), torch.tensor([1, 2]))
    assert order == "execution"
    names = [name for name, layer in layers.items() if layer.role != "bias"]
    assert names == ["pictures.weight", "words.weight", "trunk.weight", "policy.weight", "value.weight"]
    assert branches(layers) == {}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_blocks_are_placed_between_their_neighbours(*, use_reentrant: bool) -> None:
    """The calls of the modules show the order, also where the graph holds a checkpoint in place of a block."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 3)
            self.body = Body()
            self.stem = nn.Linear(5, 8)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.body(self.stem(inputs)))  # type: ignore[no-any-return]

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block(8) for _ in range(2))

        def forward(self, signal: Tensor) -> Tensor:
            for block in self.blocks:
                signal = checkpoint(block, signal, use_reentrant=use_reentrant)
            return signal

    layers, order = observe(Checkpointed(), torch.randn(2, 4, 5))
    inner = ("attn.qkv", "attn.proj", "mlp.0", "mlp.3")
    assert order == "execution"
    assert matrices(layers) == ["stem", *(f"body.blocks.{i}.{name}" for i in (0, 1) for name in inner), "head"]
    assert branches(layers) == {f"body.blocks.{i}.{name}": f"body.blocks.{i}" for i in (0, 1) for name in inner}


@pytest.mark.parametrize("compiles", [True, False])
def test_where_the_order_cannot_be_seen_it_is_that_of_registration(*, compiles: bool) -> None:
    """A compiled or a scripted model has no depths, and the run says where the order comes from."""
    model: Any = Reversed()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        model = torch.compile(model, backend="aot_eager") if compiles else torch.jit.script(model)
    layers, order = observe(model, torch.randn(2, 3))
    assert order == "registration"
    assert {layer.depth for layer in layers.values()} == {None}
    assert [name.partition(".")[0] for name in layers][::2] == ["head", "middle", "frozen", "unused", "stem"]


def test_a_graph_that_is_too_large_leaves_the_order_to_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a graph nothing is known of branches, but the calls of the modules still show the order."""
    monkeypatch.setattr("gradmedic.torch.graph.LARGEST_GRAPH", 10)
    layers, order = observe(Reversed(), torch.randn(2, 3))
    assert order == "execution"
    assert matrices(layers) == ["stem", "frozen", "unused", "middle", "head"]
    assert {layer.branch for layer in layers.values()} == {None}


def test_models_that_use_each_other_are_in_the_order_of_their_use() -> None:
    """The encoder comes before the decoder that takes its output, although it is given last; blocks have full names."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(4, 4)
            self.block = Block(4)

        def forward(self, signal: Tensor) -> Tensor:
            return self.block(signal)  # type: ignore[no-any-return]

    models = {"decoder": Residual(), "encoder": nn.Linear(3, 4)}
    parameters = [parameter for model in models.values() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    with Recording(models, optimizer, prefix="my.") as recording:
        models["decoder"](models["encoder"](torch.randn(2, 3, 3))).sum().backward()
        optimizer.step()
        layers = sorted(recording.layers.values(), key=lambda layer: layer.depth or 0)
    assert [layer.name for layer in layers][:2] == ["my.encoder.weight", "my.encoder.bias"]
    assert {layer.block for layer in layers} == {None, "my.decoder.block"}


class Marker:
    """Lives as long as the node of a graph that holds it."""


def test_nothing_stays_in_the_model_after_the_first_forward_pass() -> None:
    """All hooks are gone after the first pass that records gradients, and copies of the model hold none that acts."""
    model = VisionTransformer()
    images = torch.randn(2, 3, 8, 8)
    with Recording(model, torch.optim.SGD(model.parameters(), lr=0.1)):
        twin = copy.deepcopy(model)
        hooked = sum(len(module._forward_hooks) for module in model.modules())
        with torch.no_grad():
            model(images)
        assert sum(len(module._forward_hooks) for module in model.modules()) == hooked
        twin(images).sum().backward()
        output = model(images)
        left = {type(hook) for module in model.modules() for hook in module._forward_hooks.values()}
        assert not left & {FirstForward, MethodType}
        assert not any(isinstance(hook, MethodType) for m in model.modules() for hook in m._forward_pre_hooks.values())
        marker = Marker()
        output.grad_fn.metadata["marker"] = marker
        reference = weakref.ref(marker)
        del output, marker
        assert reference() is None


def test_data_parallelism_hides_nothing(tmp_path: Path) -> None:
    """A model in `DistributedDataParallel` has the order, branches and blocks of the model alone, by the same names."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        parallel, order = observe(nn.parallel.DistributedDataParallel(VisionTransformer()), torch.randn(2, 3, 8, 8))
    finally:
        dist.destroy_process_group()
    torch.manual_seed(0)
    alone, _ = observe(VisionTransformer(), torch.randn(2, 3, 8, 8))
    assert order == "execution"
    assert parallel == alone


def test_the_training_is_the_same_with_and_without_the_observation() -> None:
    """Neither the first forward pass nor a later one computes anything else, and no random number is drawn."""

    def train(*, observed: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = VisionTransformer()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Recording(model, optimizer) if observed else nullcontext():
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(2, 3, 8, 8)).square().sum().backward()
                optimizer.step()
        return [*(parameter.detach() for parameter in model.parameters()), torch.get_rng_state()]

    assert all(torch.equal(*pair) for pair in zip(train(observed=True), train(observed=False), strict=True))
