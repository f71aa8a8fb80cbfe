"""What a training script of the causes corpus is given: settings that faults change, and the usual loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.corpus.foreign.session import Session, trapped

ACTIVATIONS: Final[dict[str, Callable[[], nn.Module]]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "leaky": nn.LeakyReLU,
    "softplus": nn.Softplus,
}
DTYPES: Final = {"half": torch.float16, "bfloat16": torch.bfloat16}


class Exp(nn.Module):
    """An activation that grows without bound: the exponential."""

    def forward(self, x: Tensor) -> Tensor:
        """Return e to the x."""
        return x.exp()


class Cube(nn.Module):
    """An activation that grows without bound: the third power."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the cube of x."""
        return x**3


class Square(nn.Module):
    """An activation that grows without bound: the square."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the square of x."""
        return x * x


class UnitLinear(nn.Module):
    """A linear layer with weights of about 1, and an output that is divided by the root of the fan-in."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, outputs]`."""
        return nn.functional.linear(x * (2.0 / self.weight.shape[1]) ** 0.5, self.weight, self.bias)


UNBOUNDED: Final[dict[str, Callable[[], nn.Module]]] = {"exp": Exp, "cube": Cube, "square": Square}


class CauseSession(Session):
    """The surroundings of one training; see `Session` for the settings that it reads itself.

    `lr_factor` multiplies the learning rate; `precision` is `half` or `bfloat16` for the weights and inputs, `autocast`
    for operations in float16; `static_scale` multiplies the loss and divides the gradients; `scaler` uses a GradScaler;
    `leave_out` is the beginning of the names of parameters that the optimizer does not get; `freeze` that of parameters
    that need no gradient; `bad_every` (period, factor) multiplies one example of a batch; `clamp_loss` is the largest
    loss; `mask_loss` multiplies it by an empty mask; `bad_loss` (step, factor) multiplies that of one step; `nan_loss`
    adds 0 times minus infinity.
    """

    def activation(self) -> nn.Module:
        """Return a new activation as the case sets."""
        name = self.get("activation", "relu")
        return UNBOUNDED[name]() if name in UNBOUNDED else ACTIVATIONS[name]()

    def norm(self, width: int) -> nn.Module:
        """Return a normalization of features as the case sets: `layer`, `batch`, or none."""
        match self.get("norm"):
            case "layer":
                return nn.LayerNorm(width)
            case "batch":
                return nn.BatchNorm1d(width)
            case _:
                return nn.Identity()

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        """Return a linear layer; with `unit_weights` one with weights of about 1, whose output is divided instead."""
        return UnitLinear(inputs, outputs) if self.get("unit_weights") else nn.Linear(inputs, outputs)

    def make(self, model: nn.Module) -> nn.Module:
        """Change a new model as the case sets: see `Session.make`; `trap_always` makes every backward pass NaN."""
        model = super().make(model)
        if frozen := self.get("freeze"):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not name.startswith(frozen))
        if (name := self.get("trap_always")) is not None:

            def change(_module: nn.Module, _inputs: Any, output: Any) -> Any:
                return trapped(output, "root") if torch.is_grad_enabled() else output

            model.get_submodule(name).register_forward_hook(change)
        return model.to(DTYPES[self["precision"]]) if self.get("precision") in DTYPES else model

    def corrupt(self, inputs: Tensor, step: int) -> Tensor:
        """Return a batch of inputs as the case sets it; see `Session.corrupt`."""
        inputs = super().corrupt(inputs, step) + self.get("inputs_shift", 0.0)
        if (bad := self.get("bad_every")) and step % bad[0] == bad[0] - 1:
            inputs = inputs.clone()
            inputs[0] *= bad[1]
        return self.cast(inputs)

    def cast(self, values: Tensor) -> Tensor:
        """Return values in the precision of the case."""
        return values.to(DTYPES[self["precision"]]) if self.get("precision") in DTYPES else values

    def see(self, inputs: Tensor) -> Tensor:
        """Return inputs as the model is trained on them, to measure its skill."""
        return self.cast(inputs * self.get("inputs_factor", 1.0) + self.get("inputs_shift", 0.0))

    def features(self, part: Callable[[], Tensor]) -> Tensor:
        """Return what one part of a model gives to the next: cut off with `detached` or `no_grad`."""
        with torch.no_grad() if self.get("no_grad") else nullcontext():
            features = part()
        return self.between(features)

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameters that the optimizer gets."""
        left_out = self.get("leave_out")
        return [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not (left_out and name.startswith(left_out))
        ]

    def optimizer(self, parameters: Iterable[Any], *, rate: float = 1.0) -> torch.optim.Optimizer:
        """Return the optimizer of the case."""
        rate *= self.get("lr_factor", 1.0)
        if self.get("optimizer", "adam") == "adamw":
            return torch.optim.AdamW(
                parameters,
                lr=self["lr"] * rate,
                betas=(self.get("beta1", 0.9), self.get("beta2", 0.999)),
                eps=self.get("eps", 1e-8),
                weight_decay=self.get("weight_decay", 0.01),
            )
        return super().optimizer(parameters, rate=rate)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute in the precision of the case: under autocast to float16, or as it is."""
        if self.get("precision") == "autocast":
            with torch.autocast("cpu", dtype=torch.float16):
                yield
        else:
            yield

    def train(
        self,
        model: nn.Module,
        loss_at: Callable[[int], Tensor],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        metrics: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        """Train a model in the usual loop, as `Session.fit` does, in the precision of the case.

        Args:
            model: the model. The optimizer gets the `parameters` of it.
            loss_at: computes the loss of a step.
            optimizer: the optimizer; that of the case by default.
            metrics: returns further metrics to log.
        """
        optimizer = optimizer or self.optimizer(self.parameters(model))
        scaled = self.get("static_scale", 1.0)

        def loss_of(step: int) -> Tensor:
            with self.computing():
                loss = loss_at(step).float()
            if (largest := self.get("clamp_loss")) is not None:
                loss = loss.clamp(max=largest)
            if (bad := self.get("bad_loss")) and step == bad[0]:
                loss = loss * bad[1]
            if self.get("mask_loss"):
                loss = loss * 0.0
            if self.get("nan_loss"):
                loss = loss + 0.0 * torch.full((), -1e9).half().float()
            return loss

        clears = bool(self.get("clear_gradients"))
        if not self.get("scaler") and scaled == 1.0 and not clears:
            self.fit(model, optimizer, loss_of, metrics=metrics)
            return
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12) if self.get("scaler") else None
        self.run.watch(model, optimizer, **({} if scaler is None else {"scaler": scaler}))
        for step in range(self.steps):
            self.set_rate(optimizer, step)
            optimizer.zero_grad()
            loss = loss_of(step)
            if scaler is not None:
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                scaler.step(optimizer)
                scaler.update()
            else:
                (loss * scaled).backward()
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad /= scaled
                if clears:
                    optimizer.zero_grad()
                optimizer.step()
            self.run.log(loss)


def recurrent_gain(model: nn.Module, factor: float) -> None:
    """Make the recurrent matrices of a model orthogonal, times a factor."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "weight_hh" in name:
                for part in parameter.chunk(len(parameter) // parameter.shape[1]):
                    nn.init.orthogonal_(part)
                    part.mul_(factor)
