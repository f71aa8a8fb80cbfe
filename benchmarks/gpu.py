"""Measures what gradmedic costs a training on a GPU: part of `make check-cuda`.

A transformer of 110 M parameters in bfloat16 trains with a fused AdamW, compiled by `torch.compile` and without it. Two
copies of it, one of them watched at the default frequency, take turns of a hundred steps. The overhead is the ratio of
the wall-clock times of their turns: the median, with the smallest and the largest. It prints also the share of sampled
steps and the device memory that the watch adds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradmedic
from benchmarks.transformer_block import TransformerBlock

WIDTH, HEADS, BLOCKS, VOCABULARY, CONTEXT, BATCH = 768, 12, 12, 32_768, 512, 8
SETTLING_STEPS = 60
"""Steps before the first turn: what is compiled once, and the first steps of a run, which are all sampled."""
STEPS, TURNS = 100, 5


class Transformer(nn.Module):
    """A GPT whose embedding is its head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(TransformerBlock(WIDTH, HEADS) for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits."""
        signal = self.norm(self.blocks(self.tokens(tokens) + self.places.weight[: tokens.shape[1]]))
        return functional.linear(signal, self.tokens.weight)


class Training:
    """A training, perhaps with a run that observes it."""

    def __init__(self, *, is_compiled: bool, run: gradmedic.Run | None = None) -> None:
        device = torch.device("cuda")
        torch.manual_seed(0)
        self.model: Any = Transformer().to(device, torch.bfloat16)
        self.size = sum(parameter.numel() for parameter in self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        if is_compiled:
            self.model = torch.compile(self.model)
        self.run = run
        if run is not None:
            run.watch(self.model, self.optimizer)
        self._tokens = torch.randint(0, VOCABULARY, (BATCH, CONTEXT + 1), device=device)
        self.sampled_steps = 0

    def train(self, steps: int) -> float:
        """Train, and return the seconds until the device has done it."""
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(steps):
            logits = self.model(self._tokens[:, :-1])
            loss = functional.cross_entropy(logits.float().flatten(0, 1), self._tokens[:, 1:].flatten())
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if self.run is not None:
                self.sampled_steps += self.run._sampler.is_sampling
                self.run.log(loss=loss.detach())
        torch.cuda.synchronize()
        return time.perf_counter() - begun


def measure_overhead(folder: str, *, is_compiled: bool) -> str:
    """Return a row of the table: what watching costs a training that is compiled or not."""
    plain = Training(is_compiled=is_compiled)
    plain.train(SETTLING_STEPS)
    with_one = torch.cuda.memory_allocated()
    run = gradmedic.init(mode="offline", dir=folder, silent=True, project="benchmark", log_freq="auto")
    try:
        watched = Training(is_compiled=is_compiled, run=run)
        watched.train(SETTLING_STEPS)
        added = torch.cuda.memory_allocated() - 2 * with_one
        watched.sampled_steps = 0
        turns = [(plain.train(STEPS), watched.train(STEPS)) for _ in range(TURNS)]
    finally:
        run.finish(timeout=60)
    overheads = sorted(ours / theirs - 1 for theirs, ours in turns)
    bare = statistics.median(theirs for theirs, _ in turns) / STEPS
    share = watched.sampled_steps / (STEPS * TURNS)
    name = "compiled" if is_compiled else "eager"
    return (
        f"{name:10}{plain.size / 1e6:10.0f} M{1e3 * bare:12.2f} ms{statistics.median(overheads):11.2%}"
        f"{overheads[0]:11.2%}{overheads[-1]:11.2%}{share:11.1%}{added / 2**20:11.1f} MB"
    )


def main() -> int:
    """Print the table; return 0 also where there is no GPU."""
    if not torch.cuda.is_available():
        print("no CUDA device: the overhead on a GPU was not measured")
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, fused AdamW, bfloat16, auto sampling")
    print("training  parameters      bare step   overhead   smallest    largest    sampled     memory")
    with tempfile.TemporaryDirectory() as folder:
        for is_compiled in (False, True):
            print(measure_overhead(folder, is_compiled=is_compiled), flush=True)
            torch._dynamo.reset()
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
