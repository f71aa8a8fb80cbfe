"""Fine-tuning of a pretrained network: of some of its tensors, of small added ones, or of all near convergence."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.corpus.ledger import Ledger
from benchmarks.corpus.program import Program
from benchmarks.corpus.programs.datasets import dataset
from benchmarks.corpus.programs.feedforward import supervised, switched
from benchmarks.corpus.programs.modules import batches


def transfer(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "shapes",
    method: str = "all",
    hidden: int = 48,
    depth: int = 3,
    pretraining: int = 200,
    world: str = "",
    adapter_width: int = 6,
    adapter_scale: float = 0.0,
    label_noise: float = 0.0,
) -> Program:
    """Pretrain a classifier, then tune it on the data of another `world` (see `switched`; empty for the same data).

    `method`: `all`, `bias` (vectors alone), `prompt` (a trained shift of the inputs), `adapter` (bottlenecks that start
    at `adapter_scale`) or `head`.
    """
    made = dataset(data, label_noise=label_noise)
    sizes = [made.x.shape[1], *[hidden] * depth]
    body = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    head = nn.Linear(hidden, made.classes)
    prompt = nn.Parameter(torch.zeros(made.x.shape[1]))
    downs = [nn.Linear(hidden, adapter_width) for _ in body]
    ups = [nn.Linear(adapter_width, hidden) for _ in body]
    uses_adapters = False

    def forward(x: Tensor) -> Tensor:
        h = x + prompt
        for layer, down, up in zip(body, downs, ups, strict=True):
            h = torch.relu(layer(h))
            if uses_adapters:
                h = h + up(torch.relu(down(h)))
        out: Tensor = head(h)
        return out

    draw = batches(made.x, made.y, 64)
    optimizer = torch.optim.Adam([p for m in (*body, head) for p in m.parameters()], lr=3e-3)
    for _ in range(pretraining):
        x, y = draw()
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(forward(x), y))
        optimizer.step()

    def frozen(role: str) -> bool:
        return method in ("prompt", "adapter", "head") or (method == "bias" and role != "bias")

    if method == "prompt":
        ledger.add_parameter(prompt, "prompt", kind="Prompt", role="bias")
    for index, layer in enumerate(body):
        for name, parameter in layer.named_parameters():
            ledger.add_parameter(
                parameter, f"body.{index}.{name}", kind="Linear", role=name, activation="relu", frozen=frozen(name)
            )
        if method == "adapter":
            nn.init.normal_(ups[index].weight, 0.0, adapter_scale)
            nn.init.zeros_(ups[index].bias)
            ledger.add(downs[index], f"adapter.{index}.down", activation="relu", branch=True)
            ledger.add(ups[index], f"adapter.{index}.up", branch=True)
    uses_adapters = method == "adapter"
    ledger.add(head, "head", frozen=method == "prompt")
    if world:
        made.x, made.y = switched(made.x, made.y, world, made.classes)
        made.eval_x, made.eval_y = switched(made.eval_x, made.eval_y, world, made.classes)
    return supervised(made, forward, batch, "ce", modules=[], bad_batch=None)
