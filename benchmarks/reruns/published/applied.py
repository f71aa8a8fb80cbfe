"""Recommenders, metric learning, mixtures of experts, graphs, and regressions in odd units."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reruns.published.data import Table, blobs, digits, split
from benchmarks.reruns.published.feedforward import dense
from benchmarks.reruns.published.program import Training, accuracy, adam, explained, fit, published, sgd


class _Factorization(nn.Module):
    """The product of a user's and an item's embedding."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, width), nn.Embedding(items, width)
        self.mean = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return (self.users(x[:, 0]) * self.items(x[:, 1])).sum(1, keepdim=True) + self.mean


@published("recbole-1641-embedding", steps=400)
def ratings(is_twin: bool) -> Training:
    """Ratings of 1 to 5 from embeddings of unit variance."""
    taste, style = torch.randn(40, 3), torch.randn(30, 3)
    pairs = torch.stack([torch.randint(40, (6000,)), torch.randint(30, (6000,))], 1)
    rating = (3 + (taste[pairs[:, 0]] * style[pairs[:, 1]]).sum(1, keepdim=True) / 1.5).round().clamp(1, 5)
    data = split(pairs, rating)
    model = _Factorization(40, 30, 64)
    if is_twin:
        nn.init.xavier_normal_(model.users.weight)
        nn.init.xavier_normal_(model.items.weight)
    return fit(
        model, sgd(model, 0.5), data.batches(128), functional.mse_loss, explained(model, data.test_x, data.test_y)
    )


def _neighbours(embed: nn.Module, data: Table) -> float:
    """Return the skill of the nearest class centre in the embedded space."""
    made, tested = embed(data.x), embed(data.test_x)
    centres = torch.stack([made[data.y == label].mean(0) for label in range(int(data.y.max()) + 1)])
    spread = tested.std()
    if not torch.isfinite(spread):
        return math.nan
    if spread < 1e-6:
        return 0.0
    return accuracy(lambda x: -torch.cdist(x, centres), tested, data.test_y)()


def _metric_learning(
    model: nn.Module, data: Table, optimizer: torch.optim.Optimizer, loss: object, classes: int
) -> Training:
    """Return a training on triplets: `loss` gets the embeddings and labels of four examples of each class."""
    assert callable(loss)

    def draw() -> tuple[Tensor, Tensor]:
        labels = torch.arange(classes).repeat_interleave(4)
        chosen = torch.stack(
            [(data.y == label).nonzero()[:, 0][torch.randint(int((data.y == label).sum()), ())] for label in labels]
        )
        return data.x[chosen], labels

    def criterion(out: Tensor, y: Tensor) -> Tensor:
        made: Tensor = loss(out, y)
        return made

    return fit(model, optimizer, draw, criterion, lambda: _neighbours(model, data))


@published("hermans-2017-collapse", steps=250)
def collapsing_triplets(is_twin: bool) -> Training:
    """Squared distances of the hardest negatives: all embeddings move to one point."""
    data = blobs(features=24, spread=1.0)
    model = dense([24, 48, 48, 8], nn.ReLU)

    def loss(made: Tensor, y: Tensor) -> Tensor:
        squares = ((made[:, None] - made) ** 2).sum(-1)
        same = y[:, None] == y
        if is_twin:
            away = (squares + 1e-6).sqrt()
            triplets = functional.softplus(away[:, :, None] - away[:, None, :])
            return triplets[same[:, :, None] & ~same[:, None, :]].mean()
        hardest = squares.masked_fill(~same, 0).amax(1) - squares.masked_fill(same, 1e9).amin(1)
        return torch.relu(hardest + 1.0).mean()

    return _metric_learning(model, data, sgd(model, 0.05), loss, 6)


@published("tensorflow-30199-sqrt", steps=150)
def root_of_zero(is_twin: bool) -> Training:
    """Triplets whose anchor and positive may be the same example."""
    data = digits()
    model = dense([64, 48, 8], nn.ReLU)

    def loss(made: Tensor, y: Tensor) -> Tensor:
        squares = ((made[:, None] - made) ** 2).sum(-1)
        away = (squares + 1e-6 if is_twin else squares).sqrt()
        same = y[:, None] == y
        triplets = torch.relu(away[:, :, None] - away[:, None, :] + 1.0)
        return triplets[same[:, :, None] & ~same[:, None, :]].mean()

    return _metric_learning(model, data, adam(model, 2e-3), loss, 10)


class _Experts(nn.Module):
    """A router sends each example to its best of four experts, whose output is weighted by the router."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList([dense([8, 32, 32, 1], nn.ReLU) for _ in range(4)])
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.trunc_normal_(parameter, std=(factor / parameter.shape[1]) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = torch.softmax(self.router(x), 1).max(1, keepdim=True)
        made = torch.stack([expert(x) for expert in self.experts], 1)[..., 0]
        return weight * made.gather(1, chosen)


@published("fedus-2021-switch", steps=250)
def large_experts(is_twin: bool) -> Training:
    """A mixture of experts whose weights have a hundred times the usual variance."""
    x = torch.randn(2000, 8)
    y = torch.where(x[:, :1] > 0, x[:, 1:2] + x[:, 2:3], x[:, 3:4] - x[:, 4:5])
    data = split(x, y)
    model = _Experts(1.0 if is_twin else 100.0)
    return fit(
        model, sgd(model, 0.02), data.batches(64), functional.mse_loss, explained(model, data.test_x, data.test_y)
    )


def _communities() -> tuple[Tensor, Tensor, Tensor]:
    """Return a graph of 120 nodes in two communities: features, classes and the adjacency with loops."""
    y = torch.arange(120) % 2
    chance = torch.where(y[:, None] == y, 0.12, 0.02)
    edges = (torch.rand(120, 120) < chance).float().triu(1)
    x = torch.randn(120, 16) + 0.7 * (2 * y[:, None] - 1) * torch.randn(16)
    return x, y, edges + edges.T + torch.eye(120)


class _GraphNet(nn.Module):
    """Graph convolutions; with `is_residual` those of GCNII, with an initial residual and identity mapping."""

    def __init__(self, mixing: Tensor, depth: int, *, is_residual: bool) -> None:
        super().__init__()
        self.mixing, self.is_residual = mixing, is_residual
        self.first, self.head = nn.Linear(16, 24), nn.Linear(24, 2)
        self.layers = nn.ModuleList([nn.Linear(24, 24) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        start = x = torch.relu(self.first(x))
        for index, layer in enumerate(self.layers):
            mixed = self.mixing @ x
            if self.is_residual:
                mixed = 0.8 * mixed + 0.2 * start
                share = math.log(0.5 / (index + 1) + 1)
                x = torch.relu((1 - share) * mixed + share * layer(mixed))
            else:
                x = torch.relu(layer(mixed))
        return self.head(x)


@published("chen-2020-gcnii", steps=150)
def oversmoothing(is_twin: bool) -> Training:
    """Twenty graph convolutions make all nodes equal."""
    x, y, edges = _communities()
    root = edges.sum(1).rsqrt()
    model = _GraphNet(root[:, None] * edges * root, 20, is_residual=is_twin)
    return fit(model, adam(model, 5e-3), lambda: (x, y), functional.cross_entropy, accuracy(model, x, y))


class _SumNet(nn.Module):
    """Layers that sum the neighbours, with or without a normalization behind each."""

    def __init__(self, edges: Tensor, *, is_normalized: bool) -> None:
        super().__init__()
        self.edges = edges
        self.layers = nn.ModuleList([nn.Linear(24 if index else 16, 24) for index in range(8)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(24) if is_normalized else nn.Identity() for _ in range(8)])
        self.head = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.relu(norm(layer(self.edges @ x)))
        return self.head(x)


@published("smp-3-sum", steps=150)
def summed_neighbours(is_twin: bool) -> Training:
    """Sums over a dense graph, layer after layer."""
    x, y, edges = _communities()
    model = _SumNet(edges, is_normalized=is_twin)
    return fit(model, sgd(model, 0.02), lambda: (x, y), functional.cross_entropy, accuracy(model, x, y))


@published("hasselt-2016-popart", steps=400)
def changing_scale(is_twin: bool) -> Training:
    """Numbers from their binary digits, mostly below 1,024, at times up to 65,535."""
    limit = torch.where(torch.rand(3000, 1) < 0.1, 65536, 1024)
    numbers = (torch.rand(3000, 1) * limit).long()
    bits = ((numbers >> torch.arange(16)) & 1).float()
    y = numbers.float()
    if is_twin:
        y = (y - y.mean()) / y.std()
    data = split(bits, y)
    model = dense([16, 32, 32, 1], nn.Tanh)
    return fit(
        model, sgd(model, 0.03), data.batches(16), functional.mse_loss, explained(model, data.test_x, data.test_y)
    )


class _Sine(nn.Module):
    """A linear layer and a sine of high frequency."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * self.linear(x))


@published("sitzmann-2020-siren", steps=300)
def sine_activations(is_twin: bool) -> Training:
    """A signal as a function of its coordinate, by sines with default weights."""
    x = torch.linspace(-1, 1, 800)[torch.randperm(800)].unsqueeze(1)
    y = torch.sin(9 * x) + 0.5 * torch.sin(25 * x + 1)
    data = split(x, y)
    layers = [_Sine(1, 48), *[_Sine(48, 48) for _ in range(4)]]
    if is_twin:
        for layer in layers[1:]:
            nn.init.uniform_(layer.linear.weight, -math.sqrt(6 / 48) / 30, math.sqrt(6 / 48) / 30)
    model = nn.Sequential(*layers, nn.Linear(48, 1))
    return fit(
        model, adam(model, 1e-3), data.batches(128), functional.mse_loss, explained(model, data.test_x, data.test_y)
    )


class _ClickModel(nn.Module):
    """Embeddings of two categories beside numeric counts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(50, 8), nn.Embedding(20, 8)
        self.top = dense([20, 48, 48, 2], nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x[:, 4].long()), self.second(x[:, 5].long())
        return self.top(torch.cat([first, second, x[:, :4]], 1))


@published("naumov-2019-counts", steps=250)
def raw_counts(is_twin: bool) -> Training:
    """Counts with a long tail go into the network as they are."""
    counts = torch.exp(3 + 2.5 * torch.randn(4000, 4)).round()
    ids = torch.stack([torch.randint(50, (4000,)), torch.randint(20, (4000,))], 1)
    worth = torch.randn(50)[ids[:, 0]] + torch.randn(20)[ids[:, 1]]
    likely = torch.log1p(counts) @ torch.tensor([0.6, -0.6, 0.4, -0.4]) + worth
    y = (torch.rand(4000) < torch.sigmoid(2 * likely)).long()
    data = split(torch.cat([torch.log1p(counts) if is_twin else counts, ids.float()], 1), y)
    model = _ClickModel()
    return fit(
        model,
        sgd(model, 0.1),
        data.batches(64),
        functional.cross_entropy,
        accuracy(model, data.test_x, data.test_y),
    )
