"""What a training script of the foreign part is given: its settings, and the run that it watches and logs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.corpus.foreign.cases import Settings
from benchmarks.corpus.foreign.examiner import Examiner
from gradmedic import Run

SMALLEST_FACTOR: Final = 1e-4
"""A cosine schedule ends at this share of its rate."""
LARGE_EXPONENT: Final = 200.0
"""Its exponential is infinite in single precision."""


def trapped(output: Tensor, kind: str) -> Tensor:
    """Return an output with a term that is 0 and has a gradient of NaN.

    `root` is the root of a sum of squares at zero. `where` is an exponential that overflows in the branch of
    `torch.where` that is not taken.
    """
    zero = output - output.detach()
    if kind == "root":
        return output + zero.pow(2).sum().sqrt()
    overflow = (zero.float() + LARGE_EXPONENT).exp()
    return output + torch.where(torch.ones_like(output).bool(), torch.zeros_like(output), overflow.to(output.dtype))


class ExaminedRun:
    """A run of the SDK whose calls the examiner sees too."""

    def __init__(self, run: Run, examiner: Examiner) -> None:
        self._run = run
        self._examiner = examiner
        self.step = 0
        """Number of steps that were logged."""

    def watch(self, model: nn.Module | Mapping[str, nn.Module], optimizer: Any, **options: Any) -> None:
        """Watch a model, as `gradmedic.Run.watch` does."""
        models = model.items() if isinstance(model, Mapping) else [("", model)]
        for name, part in models:
            self._examiner.watch(part, f"{name}." if name else options.get("prefix", ""))
        self._run.watch(model, optimizer, **options)

    def log(self, loss: Any, **metrics: Any) -> None:
        """Log a step, as `gradmedic.Run.log` does."""
        self._run.log(loss, **metrics)
        self.step += 1
        self._examiner.log(loss)


class Session:
    """The surroundings of one training.

    Args:
        settings: configuration of the case.
        run: run of the SDK.
        examiner: notes the outcome.
        seed: seed of weights and data.
    """

    def __init__(self, settings: Settings, run: Run, examiner: Examiner, seed: int) -> None:
        self.settings = settings
        self.run = ExaminedRun(run, examiner)
        self.steps = int(settings["steps"])
        self.batch = int(settings.get("batch", 32))
        self.seed = seed
        self._examiner = examiner
        torch.manual_seed(seed)

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting, or the default if the case does not set it."""
        return self.settings.get(name, default)

    def is_at(self, name: str, step: int) -> bool:
        """Return whether `step` is the one that a setting names."""
        return bool(self.settings.get(name) == step)

    def skill(self, measure: Callable[[], Any]) -> None:
        """Give the function that returns the skill on data that is not trained on: 0 without skill, 1 perfect."""
        self._examiner.measure_skill = measure

    def make(self, model: nn.Module) -> nn.Module:
        """Change a new model as the case sets.

        `gain` multiplies every matrix, `bias` is put into every bias, and `trap` (module, kind, step) makes the
        backward pass of a module's output non-finite in one step (see `trapped`).
        """
        gain, bias = self.get("gain", 1.0), self.get("bias")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2 and gain != 1.0:
                    parameter.mul_(gain)
                if bias is not None and name.endswith("bias"):
                    parameter.fill_(bias)
        if trap := self.get("trap"):
            name, kind, at = trap

            def change(_module: nn.Module, _inputs: Any, output: Any) -> Any:
                if self.run.step != at or not torch.is_grad_enabled():
                    return output
                if isinstance(output, tuple):
                    return (trapped(output[0], kind), *output[1:])
                return trapped(output, kind)

            model.get_submodule(name).register_forward_hook(change)
        return model

    def optimizer(self, parameters: Iterable[Any], *, rate: float = 1.0) -> torch.optim.Optimizer:
        """Return the optimizer of the case, at `rate` times its learning rate."""
        lr, name = self["lr"] * rate, self.get("optimizer", "adam")
        decay = self.get("weight_decay", 0.0)
        betas = (self.get("beta1", 0.9), self.get("beta2", 0.999))
        match name:
            case "sgd":
                return torch.optim.SGD(parameters, lr=lr, momentum=self.get("momentum", 0.0), weight_decay=decay)
            case "nesterov":
                return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=decay)
            case "adam":
                return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=self.get("eps", 1e-8), weight_decay=decay)
            case "adamw":
                return torch.optim.AdamW(parameters, lr=lr, betas=betas, eps=self.get("eps", 1e-8), weight_decay=0.01)
            case "rmsprop":
                return torch.optim.RMSprop(parameters, lr=lr, eps=self.get("eps", 1e-8))
            case "adagrad":
                return torch.optim.Adagrad(parameters, lr=lr)
            case "nadam":
                return torch.optim.NAdam(parameters, lr=lr, eps=self.get("eps", 1e-8))
            case "radam":
                return torch.optim.RAdam(parameters, lr=lr)
            case _:
                raise ValueError(f"unknown optimizer {name!r}")

    def rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step.

        `warmup` is a number of steps, `cosine` a flag, `restarts` a period, `jump` a (step, factor), `drop` the same,
        `ramp` a (step, factor per step), `burst` a (step, number of steps, factor).
        """
        factor = 1.0
        if warmup := self.get("warmup"):
            factor *= min(1.0, (step + 1) / warmup)
        if self.get("cosine"):
            factor *= max(SMALLEST_FACTOR, 0.5 * (1 + math.cos(math.pi * step / self.steps)))
        if period := self.get("restarts"):
            factor *= max(0.02, 0.5 * (1 + math.cos(math.pi * (step % period) / period)))
        for name in ("jump", "drop"):
            if (change := self.get(name)) and step >= change[0]:
                factor *= change[1]
        if (ramp := self.get("ramp")) and step >= ramp[0]:
            factor *= ramp[1] ** (step - ramp[0])
        if (burst := self.get("burst")) and burst[0] <= step < burst[0] + burst[1]:
            factor *= burst[2]
        return float(factor)

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate of a step."""
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * self.rate_factor(step)

    def corrupt(self, inputs: Tensor, step: int) -> Tensor:
        """Return a batch of inputs as the case sets it: one NaN at step `nan_at`, scaled by `bad_batch` (step, factor).

        `inputs_factor` scales every batch.
        """
        inputs = inputs * self.get("inputs_factor", 1.0)
        if self.is_at("nan_at", step):
            inputs = inputs.clone()
            inputs.view(-1)[3] = math.nan
        if self.is_at("inf_at", step):
            inputs = inputs.clone()
            inputs.view(-1)[3] = math.inf
        bad = self.get("bad_batch")
        return inputs * bad[1] if bad and bad[0] == step else inputs

    def labels(self, targets: Tensor) -> Tensor:
        """Return the targets of the training set as the case sets them: `shuffled`, a share of `label_noise`."""
        if self.get("shuffled"):
            return targets[torch.randperm(len(targets))]
        if noise := self.get("label_noise"):
            other = targets[torch.randperm(len(targets))]
            is_other = torch.rand(len(targets)) < noise
            return torch.where(is_other.view(-1, *[1] * (targets.ndim - 1)), other, targets)
        return targets

    def logits(self, outputs: Tensor) -> Tensor:
        """Return the outputs of a classifier, through a softmax too many with `softmax_twice`."""
        return outputs.softmax(-1) if self.get("softmax_twice") else outputs

    def between(self, features: Tensor) -> Tensor:
        """Return the features that one part gives to the next, without their history with `detached`."""
        return features.detach() if self.get("detached") else features

    def fit(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_at: Callable[[int], Tensor],
        *,
        metrics: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        """Train in the usual loop. Settings decide how it is written.

        `clip` is a norm, `clip_value` a value, `accumulate` a number of batches, `loss_factor` multiplies the loss (a
        sum in place of a mean), `keep_gradients` never zeroes them, `skip_nonfinite` leaves out steps with a
        non-finite loss, `late_zero` zeroes the gradients after the step, `dense_zero` fills them with zeros, `logs` is
        `tensor` or `float`.
        """
        self.run.watch(model, optimizer)
        accumulate, factor = int(self.get("accumulate", 1)), float(self.get("loss_factor", 1.0))
        keeps, late, dense = self.get("keep_gradients"), self.get("late_zero"), bool(self.get("dense_zero"))
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for step in range(self.steps):
            self.set_rate(optimizer, step)
            if not (keeps or late):
                optimizer.zero_grad(set_to_none=not dense)
            total = 0.0
            for _ in range(accumulate):
                loss = loss_at(step) * factor
                (loss / (1 if self.get("summed_parts") else accumulate)).backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach()) / accumulate
            if (norm := self.get("clip")) is not None:
                self._examiner.see_gradients()
                torch.nn.utils.clip_grad_norm_(parameters, norm)
            if (value := self.get("clip_value")) is not None:
                torch.nn.utils.clip_grad_value_(parameters, value)
            if not (self.get("skip_nonfinite") and not math.isfinite(total)):
                optimizer.step()
            if late and not keeps:
                optimizer.zero_grad(set_to_none=not dense)
            extra = metrics() if metrics is not None else {}
            self.run.log(loss if self["logs"] == "tensor" and accumulate == 1 else total, **extra)
