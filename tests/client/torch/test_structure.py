"""What is known of a model's layers and training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.client.torch.recording import Recording
from torch import nn

from gradmedic.protocol.runs import Layer, Optimizer, Training
from gradmedic.torch.first_forward import FirstForward, find_uses
from gradmedic.torch.followers import Follower
from gradmedic.torch.graph import AutogradGraph


def describe(model: nn.Module) -> dict[str, Layer]:
    """Return the layers of a model by name."""
    with Recording(model, torch.optim.SGD(model.parameters(), lr=0.1)) as recording:
        return recording.layers


def describe_after_backward(model: nn.Module, inputs: torch.Tensor) -> dict[str, Layer]:
    """Return the layers of a model by name after one step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        model(inputs).sum().backward()
        optimizer.step()
        return recording.layers


def training_of(model: nn.Module, optimizer: torch.optim.Optimizer, *inputs: torch.Tensor) -> Training:
    """Return what is known after one step."""
    with Recording(model, optimizer) as recording:
        output = model(*inputs)
        (output[0] if isinstance(output, tuple) else output).sum().backward()
        optimizer.step()
        recording.log()
        training = recording.watch.training()
        assert training is not None
        return training


def test_layers_of_a_sequential_model_know_what_follows() -> None:
    """Activation and normalization behind each module are found, through dropout and nested sequences."""
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Flatten(),
        nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1)),
        nn.Sigmoid(),
        nn.Linear(16, 4),
        nn.Linear(4, 2),
    )
    layers = describe(model)
    followers = {name: (layer.activation, layer.normalized) for name, layer in layers.items() if layer.role == "weight"}
    assert followers == {
        "0.0.weight": ("relu", True),
        "2.0.weight": ("sigmoid", False),
        "4.weight": ("linear", False),
        "5.weight": (None, None),
    }


def test_roles_kinds_shapes_and_fans_are_torchs() -> None:
    """Fans are those that torch.nn.init uses for the same weight."""
    model = nn.ModuleDict({
        "embedding": nn.Embedding(11, 6), "conv": nn.Conv2d(4, 10, (3, 5), groups=2), "linear": nn.Linear(6, 9),
        "norm": nn.LayerNorm(9), "deconv": nn.ConvTranspose1d(4, 6, 3),
    })  # fmt: skip
    layers = describe(model)
    assert {name: layer.role for name, layer in layers.items()} == {
        "embedding.weight": "embedding", "conv.weight": "weight", "conv.bias": "bias", "linear.weight": "weight",
        "linear.bias": "bias", "norm.weight": "gain", "norm.bias": "bias", "deconv.weight": "weight",
        "deconv.bias": "bias",
    }  # fmt: skip
    for name in ("conv", "linear", "deconv"):
        weight = model.get_parameter(f"{name}.weight")
        expected = nn.init._calculate_fan_in_and_fan_out(weight)
        layer = layers[f"{name}.weight"]
        assert (layer.fan_in, layer.fan_out) == expected
        assert (layer.kind, layer.shape, layer.numel) == (
            type(model[name]).__name__,
            list(weight.shape),
            weight.numel(),
        )
        rms = np.sqrt(np.mean(weight.detach().double().numpy() ** 2))
        assert layer.initial_rms == pytest.approx(rms, rel=1e-6)
    assert layers["linear.bias"].fan_in is None


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4), (nn.GRUCell, 3)])
def test_recurrent_matrices_have_their_spectral_norm_gate_by_gate(kind: type[nn.Module], gates: int) -> None:
    """The spectral norm is the largest singular value of any gate, as numpy computes it; fans are those of a gate."""
    model = kind(5, 7)
    layers = describe(model)
    name = next(name for name in layers if name.startswith("weight_hh"))
    matrices = dict(model.named_parameters())[name].detach().double().numpy().reshape(gates, 7, 7)
    layer = layers[name]
    assert layer.role == "recurrent"
    assert layer.spectral_norm == pytest.approx(max(np.linalg.norm(m, 2) for m in matrices), rel=1e-4)
    assert (layer.fan_in, layer.fan_out) == (7, 7)
    assert layers[name.replace("hh", "ih")].role == "weight"
    assert layers[name.replace("weight", "bias")].role == "bias"
    assert layer.activation == ("tanh" if kind is nn.RNN else None)


def test_a_large_recurrent_matrix_is_measured_without_a_decomposition() -> None:
    """Power iteration is right to a hundredth for a random matrix, and draws no random numbers."""
    torch.manual_seed(0)
    model = nn.RNN(2, 600, nonlinearity="relu")
    state = torch.get_rng_state()
    layer = describe(model)["weight_hh_l0"]
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.spectral_norm == pytest.approx(
        np.linalg.norm(model.get_parameter("weight_hh_l0").detach().numpy(), 2), rel=0.01
    )
    assert layer.activation == "relu"


def test_a_parametrized_weight_belongs_to_its_module() -> None:
    """Both tensors of torch's weight normalization have the kind of the module."""
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU())
    layers = describe(model)
    assert {layer.kind for layer in layers.values()} == {"ParametrizedLinear"}
    assert {layer.activation for layer in layers.values()} == {"relu"}


def test_the_first_batch_and_the_optimizer_are_described() -> None:
    """The training has the input size, batch size, precision and optimizer's settings of the script."""
    model = nn.Linear(3, 1)
    inputs = torch.tensor([[3.0, -400.0, 0.0], [1.0, 2.0, 3.0]])
    adam = torch.optim.AdamW(model.parameters(), lr=0.02, betas=(0.8, 0.99), weight_decay=0.1)
    training = training_of(model, adam, inputs)
    assert training.optimizers == [
        Optimizer(name="AdamW", learning_rate=0.02, momentum=0.8, weight_decay=0.1, beta2=0.99, epsilon=1e-8)
    ]
    assert training.input_rms == pytest.approx(float(np.sqrt(np.mean(inputs.double().numpy() ** 2))), rel=1e-6)
    assert (training.input_abs_max, training.batch_size, training.precision) == (400.0, 2, "float32")
    assert training.clips_gradients is False


def test_the_group_with_the_largest_rate_and_decay_is_described() -> None:
    """Biases without decay before the weights do not hide the decay of the weights; a lower rate never counts."""
    model = nn.Linear(3, 1)
    groups = [{"params": [model.bias], "weight_decay": 0.0}, {"params": [model.weight], "weight_decay": 0.1}]
    inputs = torch.ones(2, 3)
    (described,) = training_of(model, torch.optim.AdamW(groups, lr=0.02), inputs).optimizers
    assert (described.learning_rate, described.weight_decay) == (0.02, 0.1)
    groups[1]["lr"] = 0.01
    (described,) = training_of(model, torch.optim.AdamW(groups, lr=0.02), inputs).optimizers
    assert (described.learning_rate, described.weight_decay) == (0.02, 0.0)


def test_integer_inputs_have_no_size_and_autocast_is_noticed() -> None:
    """Token ids are not measured, and the precision is that of autocast."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        training = training_of(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.tensor([[1, 2]]))
    assert (training.input_rms, training.batch_size, training.precision) == (None, 1, "bfloat16")


def test_a_single_number_is_no_input() -> None:
    """A number that a trainer passes beside the batch, such as a count of examples, is not measured."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, count: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
            scaled: torch.Tensor = self.linear(inputs) / count
            return scaled

    model = Scaled()
    training = training_of(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.tensor(16.0), torch.ones(2, 3))
    assert (training.input_rms, training.input_abs_max) == (1.0, 1.0)


class Functional(nn.Module):
    """Calls activations and normalizations in `forward` only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.flat = nn.Linear(4, 6)
        self.gate = nn.Linear(6, 6)
        self.up = nn.Linear(6, 6)
        self.raw = nn.Parameter(torch.ones(6, 6))
        self.bias = nn.Parameter(torch.ones(6))
        self.residual = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return outputs of all kinds."""
        signal = torch.relu(self.norm(self.conv(images))).mean(dim=(2, 3))
        signal = nn.functional.dropout(self.flat(signal), 0.1).sigmoid()
        signal = nn.functional.silu(self.gate(signal)) * self.up(signal)
        signal = torch.tanh(signal @ self.raw + self.bias)
        signal = signal + self.residual(signal)
        return {"logits": self.head(signal)}


def test_a_functional_model_is_read_from_its_first_graph() -> None:
    """A graph shows activations and normalizations that are functions, except behind gates and residual sums."""
    model = Functional()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.randn(2, 1, 3, 3)
    with Recording(model, optimizer) as recording:
        with torch.no_grad():
            model(images)  # a validation before the training shows no graph
        model(images)["logits"].sum().backward()
        optimizer.step()
        layers = recording.layers
        assert not any(isinstance(hook, FirstForward) for hook in model._forward_hooks.values())
    followers = {name: (layer.activation, layer.normalized) for name, layer in layers.items() if layer.role == "weight"}
    assert followers == {
        "conv.weight": ("relu", True),
        "flat.weight": ("sigmoid", False),
        "gate.weight": ("silu", False),
        "up.weight": (None, False),
        "raw": ("tanh", False),
        "residual.weight": (None, False),
        "head.weight": (None, None),
    }


class Unbounded(nn.Module):
    """A variational model whose activations are powers and exponentials."""

    def __init__(self) -> None:
        super().__init__()
        self.exponential, self.cube, self.square, self.product = (nn.Linear(4, 4) for _ in range(4))
        self.mean, self.log_variance, self.decoder = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a reconstruction and the rate of a Poisson distribution."""
        x = self.exponential(x).exp()
        x = self.cube(x) ** 3
        x = nn.functional.dropout(self.square(x).square(), 0.1)
        x = self.product(x)
        x = x * x
        noise = torch.ones(4) * (0.5 * self.log_variance(x)).exp()
        rate: torch.Tensor = self.decoder(self.mean(x) + noise).exp()
        return rate


def test_activations_without_bound_are_known_where_a_matrix_takes_them() -> None:
    """An exponential or a power is an activation between two matrices, and none for a variance or an output."""
    layers = describe_after_backward(Unbounded(), torch.randn(3, 4))
    found = {name: layer.activation for name, layer in layers.items() if layer.role == "weight"}
    assert found == {
        "exponential.weight": "exp",
        "cube.weight": "cube",
        "square.weight": "square",
        "product.weight": None,  # its square has two readers
        "mean.weight": None,
        "log_variance.weight": None,
        "decoder.weight": None,
    }


def test_a_parameter_used_in_different_ways_has_no_activation() -> None:
    """A matrix that is used before a sigmoid and before a tanh has no known activation."""
    model = nn.ParameterDict({"w": nn.Parameter(torch.ones(2, 2))})
    output = torch.sigmoid(model["w"] @ torch.ones(2)) + torch.tanh(model["w"] @ torch.ones(2))
    assert output.grad_fn is not None
    uses = find_uses(AutogradGraph([output.grad_fn]))[id(model["w"])]
    assert (uses.follower, uses.count) == (Follower(), 2)
