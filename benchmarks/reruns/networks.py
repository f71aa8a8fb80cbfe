"""Networks as users write them, each in another style: containers, functions, recurrent cells, attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional


class Square(nn.Module):
    """An activation without a bound on its slope."""

    def forward(self, x: Tensor) -> Tensor:
        """Square every element."""
        return x * x


ACTIVATIONS: Final[dict[str, Callable[[], nn.Module]]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "square": Square,
}


def initialize(model: nn.Module, rule: str) -> None:
    """Fill the matrices of linear and convolutional modules.

    `default` leaves them; `he` and `xavier` are named for their authors; `normal:STD`; `he*GAIN` multiplies.
    """
    name, _, argument = rule.partition(":")
    scheme, _, gain = name.partition("*")
    for module in model.modules():
        if scheme == "default" or not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        with torch.no_grad():
            if scheme == "he":
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif scheme == "xavier":
                nn.init.xavier_uniform_(module.weight)
            elif scheme == "normal":
                module.weight.normal_(0.0, float(argument))
            else:
                raise ValueError(f"unknown initialization {rule!r}")
            module.weight.mul_(float(gain or 1.0))
            if module.bias is not None:
                module.bias.zero_()


def mlp(
    inputs: int,
    outputs: int,
    *,
    depth: int = 3,
    width: int = 32,
    activation: str = "relu",
    norm: bool = False,
    init: str = "default",
) -> nn.Module:
    """A perceptron as a `Sequential`."""
    modules: list[nn.Module] = []
    for index in range(depth):
        modules.append(nn.Linear(inputs if index == 0 else width, width))
        if norm:
            modules.append(nn.BatchNorm1d(width))
        modules.append(ACTIVATIONS[activation]())
    model = nn.Sequential(*modules, nn.Linear(width, outputs))
    initialize(model, init)
    return model


class FunctionalMlp(nn.Module):
    """A perceptron whose activations are calls of functions, over a list of layers."""

    def __init__(
        self, inputs: int, outputs: int, *, depth: int = 3, width: int = 32, activation: str = "relu", init: str
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(inputs if i == 0 else width, width) for i in range(depth)])
        self.out = nn.Linear(width, outputs)
        self.activation = activation
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, outputs]`."""
        for layer in self.layers:
            x = layer(x)
            match self.activation:
                case "relu":
                    x = functional.relu(x)
                case "elu":
                    x = functional.elu(x)
                case "tanh":
                    x = torch.tanh(x)
                case "sigmoid":
                    x = torch.sigmoid(x)
        out: Tensor = self.out(x)
        return out


class ConvolutionalNet(nn.Module):
    """Plain 3x3 convolutions on small one-channel images, averaged at the end."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        depth: int = 6,
        width: int = 12,
        activation: str = "relu",
        norm: bool = False,
        init: str = "default",
    ) -> None:
        super().__init__()
        self.side = round(inputs**0.5)
        blocks: list[nn.Module] = []
        for index in range(depth):
            blocks.append(nn.Conv2d(width if index else 1, width, 3, padding=1))
            if norm:
                blocks.append(nn.BatchNorm2d(width))
            blocks.append(ACTIVATIONS[activation]())
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(width, outputs)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for flattened images."""
        maps: Tensor = self.features(x.view(-1, 1, self.side, self.side))
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


class Autoencoder(nn.Module):
    """An encoder and a decoder, mirrored."""

    def __init__(
        self, inputs: int, outputs: int, *, depth: int = 3, width: int = 32, activation: str = "relu", init: str
    ) -> None:
        super().__init__()
        self.encoder = mlp(inputs, width // 4, depth=depth, width=width, activation=activation, init=init)
        self.decoder = mlp(width // 4, outputs, depth=depth, width=width, activation=activation, init=init)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction."""
        out: Tensor = self.decoder(self.encoder(x))
        return out


class Chain(nn.Module):
    """Linear layers `W = a I` without an activation: their product is `a ** depth`."""

    def __init__(self, inputs: int, outputs: int, *, depth: int = 10, factor: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(inputs, inputs, bias=False) for _ in range(depth)])
        self.head = nn.Linear(inputs, outputs)
        with torch.no_grad():
            for layer in self.layers:
                assert isinstance(layer, nn.Linear)
                layer.weight.copy_(factor * torch.eye(inputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, outputs]`."""
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x)
        return out


def _recurrent(cell: str, inputs: int, hidden: int, recurrent_gain: float | None, init: str) -> nn.Module:
    name, _, nonlinearity = cell.partition("-")
    if name in ("gru", "lstm"):
        return (nn.GRU if name == "gru" else nn.LSTM)(inputs, hidden, batch_first=True)
    core = nn.RNN(inputs, hidden, nonlinearity=nonlinearity, batch_first=True)
    weight = core.get_parameter("weight_hh_l0")
    with torch.no_grad():
        if init == "orthogonal":
            nn.init.orthogonal_(weight)
        if recurrent_gain is not None:
            weight.normal_(0.0, recurrent_gain / hidden**0.5)
    return core


class SequenceClassifier(nn.Module):
    """Reads a sequence and answers from the last state."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        cell: str = "rnn-tanh",
        hidden: int = 32,
        recurrent_gain: float | None = None,
        init: str = "default",
    ) -> None:
        super().__init__()
        self.rnn = _recurrent(cell, inputs, hidden, recurrent_gain, init)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, outputs]` for `[batch, time, inputs]`."""
        states, _ = self.rnn(x)
        out: Tensor = self.head(states[:, -1])
        return out


class LanguageModel(nn.Module):
    """Predicts the next character with a recurrent network."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        cell: str = "rnn-relu",
        hidden: int = 48,
        recurrent_gain: float | None = None,
        init: str = "default",
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(inputs, 24)
        self.rnn = _recurrent(cell, 24, hidden, recurrent_gain, init)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `[batch, time, character]`."""
        states, _ = self.rnn(self.embedding(tokens))
        logits: Tensor = self.head(states)
        return logits


class Transformer(nn.Module):
    """Predicts the next character with attention."""

    def __init__(
        self, inputs: int, outputs: int, *, depth: int = 4, width: int = 32, is_pre_norm: bool = False, length: int = 24
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(inputs, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, norm_first=is_pre_norm, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `[batch, time, character]`."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        states = self.encoder(self.embedding(tokens) + self.position, mask=mask, is_causal=True)
        logits: Tensor = self.head(states)
        return logits


NETWORKS: Final[dict[str, Callable[..., nn.Module]]] = {
    "mlp": mlp,
    "functional_mlp": FunctionalMlp,
    "convolutional": ConvolutionalNet,
    "autoencoder": Autoencoder,
    "chain": Chain,
    "sequence_classifier": SequenceClassifier,
    "language_model": LanguageModel,
    "transformer": Transformer,
}
