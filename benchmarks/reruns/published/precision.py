"""Low precision: gradients that underflow, updates that are rounded away, numbers that overflow."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reruns.published.data import HELD_OUT, digits, regression, shifted_symbols
from benchmarks.reruns.published.feedforward import dense
from benchmarks.reruns.published.program import Training, accuracy, adam, cross_entropy, explained, fit, published, sgd

WINDOW = 2.0**20
"""Number over which the loss is averaged."""


@published("micikevicius-2018-scale", steps=250)
def underflowing_gradients(is_twin: bool) -> Training:
    """The loss is averaged over a long window: float16 rounds its gradients to zero."""
    data = digits()
    model = dense([64, 64, 64, 10], nn.ReLU).half()
    scale = WINDOW if is_twin else 1.0
    optimizer = sgd(model, 0.05 * WINDOW / scale)
    skill = accuracy(lambda x: model(x.half()), data.test_x, data.test_y)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), y) / WINDOW * scale

    return fit(model, optimizer, lambda: _halved(data.batches(32)()), loss, skill)


def _halved(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0].half(), batch[1]


class _MasterWeights(torch.optim.SGD):
    """SGD on copies of the weights in float32."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.low = list(model.parameters())
        super().__init__([parameter.detach().float().requires_grad_() for parameter in self.low], lr=lr, momentum=0.9)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        del closure
        masters = self.param_groups[0]["params"]
        for master, low in zip(masters, self.low, strict=True):
            master.grad = None if low.grad is None else low.grad.float()
        super().step()
        with torch.no_grad():
            for master, low in zip(masters, self.low, strict=True):
                low.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        del set_to_none
        for low in self.low:
            low.grad = None


class _LowMlp(nn.Module):
    """A perceptron in float16 or bfloat16 that takes and gives float32."""

    def __init__(self, sizes: list[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.body = dense(sizes, nn.ReLU).to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.to(self.dtype)).float()


@published("micikevicius-2018-master", steps=300)
def no_master_weights(is_twin: bool) -> Training:
    """Updates are smaller than half the distance between two weights."""
    data = regression(20)
    model = _LowMlp([20, 64, 64, 1], torch.float16)
    with torch.no_grad():
        model.body[-1].weight.mul_(0.1)
    optimizer = _MasterWeights(model, 4e-3) if is_twin else sgd(model, 1e-5)
    skill = explained(model, data.test_x, data.test_y)
    return fit(model, optimizer, data.batches(32), functional.mse_loss, skill)


@published("pytorch-8860-half", steps=200)
def half_with_adam(is_twin: bool) -> Training:
    """The whole model in float16, with Adam's default epsilon."""
    data = digits()
    model = _LowMlp([64, 64, 64, 10], torch.float16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4 if is_twin else 1e-8)
    skill = accuracy(model, data.test_x, data.test_y)
    return fit(model, optimizer, data.batches(32), functional.cross_entropy, skill)


class _LowAttention(nn.Module):
    """One attention whose logits are computed in low precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.embedding = nn.Embedding(12, 64)
        self.position = nn.Parameter(torch.randn(12, 64))
        self.query, self.key, self.value = (nn.Linear(64, 64) for _ in range(3))
        self.head = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = 8 * (self.embedding(x) + self.position)  # as Vaswani et al., by the root of the width
        query, key = (30 * layer(x).to(self.dtype) for layer in (self.query, self.key))
        logits = query @ key.transpose(1, 2)
        weights = torch.softmax(logits.float() / (900 * 8 * 64), -1)
        return self.head(weights @ self.value(x))


@published("nanogpt-167-float16", steps=250)
def overflowing_attention(is_twin: bool) -> Training:
    """Attention logits beyond 65,504."""
    draw = shifted_symbols(12)
    model = _LowAttention(torch.bfloat16 if is_twin else torch.float16)
    return fit(model, adam(model, 3e-3), lambda: draw(32), cross_entropy, accuracy(model, *draw(HELD_OUT)))


class _StochasticRounding(torch.optim.SGD):
    """SGD whose new weights are rounded up or down by chance, so that small updates count on average."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    exact = parameter.detach().float() - group["lr"] * parameter.grad.float()
                    bits = exact.contiguous().view(torch.int32)
                    bits = (bits + torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32)) & -(1 << 16)
                    parameter.data.copy_(bits.view(torch.float32))


@published("zamirai-2020-bfloat16", steps=600)
def cancelled_updates(is_twin: bool) -> Training:
    """Rounding to the nearest bfloat16 cancels small updates."""
    data = digits()
    model = _LowMlp([64, 64, 10], torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    optimizer = _StochasticRounding(model.parameters(), lr=2e-3) if is_twin else sgd(model, 2e-3, 0.0)
    skill = accuracy(model, data.test_x, data.test_y)
    return fit(model, optimizer, data.batches(32), functional.cross_entropy, skill)
