"""A training loop that measures its own CPU time, for `benchmarks.client`. Each variant has a process of its own.

It reads the number of steps to run from standard input and answers with measurements. So a benchmark can switch between
variants after a few steps, and all of them run under the same load. gradmedic can also be switched off for a step, to
compare within one process. The loop imports torch and the package of its variant only, so that it also runs in the
environments of the other tools.

    python training_loop.py gpt gradmedic log_freq=1 base_url=http://127.0.0.1:8642
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Observer = Callable[[Tensor], None]
"""Called after each optimizer step with the loss."""


class Gradmedic:
    """gradmedic as an observer that can be paused. The time of a pause does not count for its sampler."""

    def __init__(self, options: dict[str, str], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        import gradmedic
        from gradmedic.recording.sampler import FIRST_STEPS

        log_freq = options["log_freq"]
        self.run = gradmedic.init(
            project="benchmark",
            base_url=options["base_url"],
            silent=True,
            log_freq=int(log_freq) if log_freq.isdecimal() else log_freq,
        )
        self._model, self._optimizer = model, optimizer
        self._paused_at = 0.0
        if log_freq.isdecimal():
            self.run._sampler._count = FIRST_STEPS  # skips the first steps, which are all sampled
        self.run.watch(model, optimizer)
        self._hooks = (
            optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks, model._forward_hooks,
            model._forward_pre_hooks,
        )  # fmt: skip

    def __call__(self, loss: Tensor) -> None:
        """Log a step."""
        self.run.log(loss=loss)

    @property
    def is_sampling(self) -> bool:
        """Whether the step under way is sampled."""
        return self.run._sampler.is_sampling

    @property
    def own_seconds(self) -> float:
        """Seconds of observing, as gradmedic measures them itself."""
        return self.run._sampler.spent

    def pause(self) -> None:
        """Stop observing the training."""
        self._paused_at = self.run._sampler.clock()
        self._set_hooks(OrderedDict(), OrderedDict(), OrderedDict(), OrderedDict())

    def resume(self) -> None:
        """Observe the training again."""
        self._set_hooks(*self._hooks)
        if self.run._sampler._last_at is not None:
            self.run._sampler._last_at += self.run._sampler.clock() - self._paused_at

    def end_warm_up(self) -> None:
        """Reset the sampler after the warm-up, in which the first verdict makes it sample every step for a while."""
        self.run.flush()
        sampler = self.run._sampler
        sampler._alarm_steps_left = sampler._owed = sampler._start_accounts = 0

    def _set_hooks(self, before: Any, after: Any, after_forward: Any, before_forward: Any) -> None:
        self._optimizer._optimizer_step_pre_hooks, self._optimizer._optimizer_step_post_hooks = before, after
        self._model._forward_hooks, self._model._forward_pre_hooks = after_forward, before_forward


_VOCABULARY, _WIDTH, _CONTEXT = 256, 320, 128


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(_WIDTH)
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.out = nn.Linear(_WIDTH, _WIDTH)
        self.before_mlp = nn.LayerNorm(_WIDTH)
        self.mlp = nn.Sequential(nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            part.view(batch, length, 8, _WIDTH // 8).transpose(1, 2)
            for part in self.qkv(self.before_attention(x)).chunk(3, dim=-1)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, _WIDTH))
        result: Tensor = x + self.mlp(self.before_mlp(x))
        return result


class Transformer(nn.Module):
    """A small GPT: 10 M parameters in 102 tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(_VOCABULARY, _WIDTH)
        self.places = nn.Parameter(torch.zeros(_CONTEXT, _WIDTH))
        self.blocks = nn.Sequential(*[_Block() for _ in range(8)])
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, _VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits."""
        result: Tensor = self.head(self.norm(self.blocks(self.tokens(tokens) + self.places)))
        return result


def perceptron() -> nn.Module:
    """Return 50 layers of 256 units: 3.2 M parameters in 100 tensors."""
    layers: list[nn.Module] = []
    for _ in range(49):
        linear = nn.Linear(256, 256)
        nn.init.kaiming_normal_(linear.weight)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 256))


def make_job(name: str) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], Tensor]]:
    """Return a model, its optimizer, and the function that computes the loss of the next batch."""
    generator = torch.Generator().manual_seed(1)
    if name == "gpt":
        model: nn.Module = Transformer()
        text = torch.randint(0, _VOCABULARY, (8, _CONTEXT + 1), generator=generator)

        def compute_loss() -> Tensor:
            return nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())

        return model, torch.optim.AdamW(model.parameters(), lr=3e-4), compute_loss
    model = perceptron()
    inputs = torch.randn(256, 256, generator=generator)
    targets = torch.randint(0, 256, (256,), generator=generator)
    return (
        model,
        torch.optim.Adam(model.parameters(), lr=1e-5),
        lambda: nn.functional.cross_entropy(model(inputs), targets),
    )


def observe(variant: str, options: dict[str, str], model: nn.Module, optimizer: torch.optim.Optimizer) -> Observer:
    """Return the function that a script of this variant calls after each step."""
    if variant == "nothing":
        return lambda _loss: None
    observers: dict[str, Callable[..., Observer]]
    observers = {"gradmedic": Gradmedic, "wandb": _wandb, "tensorboard": _tensorboard, "naive": _naive}
    return observers[variant](options, model, optimizer)


def _wandb(options: dict[str, str], model: nn.Module, _optimizer: torch.optim.Optimizer) -> Observer:
    import wandb

    run = wandb.init(project="benchmark", mode="offline", dir=options["folder"], settings=wandb.Settings(silent=True))
    run.watch(model, log="gradients", log_freq=1)
    return lambda loss: run.log({"loss": loss.item()})


def _tensorboard(options: dict[str, str], model: nn.Module, _optimizer: torch.optim.Optimizer) -> Observer:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(options["folder"])
    step = 0

    def log(loss: Tensor) -> None:
        nonlocal step
        step += 1
        writer.add_scalar("loss", loss.item(), step)
        for name, parameter in model.named_parameters():
            writer.add_histogram(name, parameter.grad, step)

    return log


def _naive(options: dict[str, str], model: nn.Module, optimizer: torch.optim.Optimizer) -> Observer:
    """Return a simple observer: it writes seven statistics and the loss to a file, with one `.item()` for each."""
    file = (Path(options["folder"]) / "naive.jsonl").open("w")
    before: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        before.update({name: parameter.detach().clone() for name, parameter in model.named_parameters()})

    optimizer.register_step_pre_hook(keep)

    def log(loss: Tensor) -> None:
        row: dict[str, Any] = {"loss": loss.item()}
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            if gradient is not None:
                row[name] = [
                    gradient.norm().item(),
                    gradient.abs().max().item(),
                    gradient.mean().item(),
                    (gradient == 0).float().mean().item(),
                    (~torch.isfinite(gradient)).sum().item(),
                    before[name].norm().item(),
                    (parameter.detach() - before[name]).norm().item(),
                ]
        file.write(json.dumps(row) + "\n")

    return log


def _read_memory(name: str) -> int:
    """Return a size of this process's memory in bytes, by its name in `/proc/self/status`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _peak_memory() -> int:
    """Return the largest resident size so far, in bytes."""
    return _read_memory("VmHWM")


def _size_of_code() -> int:
    """Return the resident size of files that are mapped, in bytes: the machine code of libraries that was used."""
    return _read_memory("RssFile")


def main() -> None:
    """Train: each line of standard input is a number of steps and, optionally, a mode.

    The mode "settle" runs warm-up steps. The mode "alone" runs no bare steps, in which gradmedic is paused.
    """
    job, variant, *rest = sys.argv[1:]
    options = dict(option.split("=", 1) for option in rest)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, optimizer, compute_loss = make_job(job)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = compute_loss()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    for _ in range(5):
        step()
    if "loads_first" in options:  # so that the measured memory does not include the code
        import urllib3  # noqa: F401

        import gradmedic.run
        import gradmedic.torch.watch  # noqa: F401
    gc.collect()
    memory, code = _peak_memory(), _size_of_code()
    observer = observe(variant, options, model, optimizer)
    ours = observer if isinstance(observer, Gradmedic) else None

    def observed_step() -> None:
        are_sampled.append(ours is not None and ours.is_sampling)
        begun = time.thread_time()
        tensor = step()
        called = time.perf_counter_ns()
        observer(tensor)
        calls.append(time.perf_counter_ns() - called)
        cpus.append(time.thread_time() - begun)

    def bare_step() -> None:
        if ours is not None:
            ours.pause()
            begun = time.thread_time()
            step()
            bare_cpus.append(time.thread_time() - begun)
            ours.resume()

    print("ready", flush=True)
    for line in sys.stdin:
        count, *modes = line.split()
        calls: list[int] = []
        cpus: list[float] = []
        bare_cpus: list[float] = []
        are_sampled: list[bool] = []
        own, everything, here = 0.0 if ours is None else ours.own_seconds, time.process_time(), time.thread_time()
        for i in range(int(count)):
            pair = (observed_step, bare_step) if i % 2 else (bare_step, observed_step)
            for run_step in (observed_step,) if "alone" in modes else pair:
                run_step()
        answer = {
            "cpu": cpus,
            "bare": bare_cpus,
            "sampled": are_sampled,
            "other_threads": time.process_time() - everything - (time.thread_time() - here),
            "calls": calls,
            "own": 0.0 if ours is None else ours.own_seconds - own,
            "memory": _peak_memory() - memory,
            "code": _size_of_code() - code,
        }
        if "settle" in modes and ours is not None:
            ours.end_warm_up()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
