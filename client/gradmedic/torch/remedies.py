"""Applies remedies to a live optimizer, so that the script that failed can be rerun as it is.

There is one `OptimizerRemedies` per optimizer. It hooks into `step()` and always works in the same order, in whichever
order the remedies were named: the rate of this step (scaled, warmed up, or that of another optimizer), then the
gradients (unscaled, rescaled, passed over where they are not finite, clipped by value, by layer, by norm and by row,
penalized), then the weights' decay, then the step. What the script holds stays as it is: its optimizer steps, its
schedulers see their own learning rates, its state can be saved and loaded. With another optimizer the script's own
finds no gradients, and an inner one steps behind it.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradmedic.exceptions import ConfigurationError, UsageError
from gradmedic.protocol.remedies import REMEDIES, Remedy, remedy_errors
from gradmedic.torch.loss_scaling import LossScale

AGC_EPSILON = 1e-3
"""Least norm of a row's weights that adaptive clipping counts with (Brock et al. 2021, section 4.1): a row that is zero
could never move."""
CLIP_EPSILON = 1e-6
"""What `torch.nn.utils.clip_grad_norm_` adds to a norm before it divides by it."""
SCALE_INVARIANT = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Rprop")
"""Optimizers that divide by the gradient's own scale."""
ON_GRADIENTS = (
    "clip_grad_norm",
    "clip_grad_value",
    "clip_grad_norm_per_layer",
    "adaptive_clip",
    "l1_penalty",
    "rescale_loss_gradient",
    "skip_nonfinite_steps",
    "switch_optimizer",
    "scale_loss",
)

BESIDE_THE_OPTIMIZER = ("switch_optimizer", "weight_decay")
"""Remedies by which something else than the script's optimizer moves the weights."""


class NotApplicable(Exception):
    """A remedy cannot be applied to this model or optimizer; the message says why."""


class Observer(Protocol):
    """Whoever measures the steps that are changed here."""

    def distrust_state(self, optimizer: Optimizer) -> None:
        """Not everything that reaches the weights is in an optimizer's state."""

    def after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        """The gradients of `parameters` were multiplied by `coefficient`, or limited by value if it is None."""


_treated: weakref.WeakKeyDictionary[Optimizer, OptimizerRemedies] = weakref.WeakKeyDictionary()


def is_treated(optimizer: Optimizer) -> bool:
    """Whether remedies are applied to an optimizer."""
    return optimizer in _treated


class OptimizerRemedies:
    """The remedies of one optimizer.

    Args:
        optimizer: whose steps they change.
        models: whose parameters it updates.
        remedies: of tier 1, and `scale_loss`; their order does not matter.
        loss_scale: of the losses, for `scale_loss`: says which steps overflowed.

    Raises:
        NotApplicable: a remedy cannot be applied here; the message says which and why.
        ConfigurationError: a remedy is unknown, named twice, or has a parameter out of range.
        UsageError: remedies are applied to this optimizer already.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        models: Iterable[nn.Module],
        remedies: Sequence[Remedy],
        loss_scale: LossScale | None = None,
    ) -> None:
        if is_treated(optimizer):
            raise UsageError("remedies are applied to this optimizer already; they cannot be applied twice")
        errors = [f"{error.path}: {error.message}" for error in remedy_errors("remedies", remedies)]
        if errors:
            raise ConfigurationError("; ".join(errors))
        self._by_id: dict[str, Mapping[str, Any]] = {remedy.id: remedy.parameters for remedy in remedies}
        _check_applicable(self._by_id, optimizer, list(models))
        self._optimizer = weakref.ref(optimizer)  # the hooks live in it
        self._handles: list[RemovableHandle] = []
        self._listener: Observer | None = None
        self._steps_taken = 0
        self._base_rate = _base_rate(optimizer)
        self._inner: Optimizer | None = None
        self._rates: list[Any] | None = None  # of the script, while its optimizer steps
        self._decays: list[Any] | None = None
        self._hidden: list[tuple[Tensor, Tensor]] = []
        self._grad_scale: Tensor | None = None
        self._is_skipped = False
        self._loss_scale = loss_scale
        self.has_stepped = False
        """Whether the optimizer has made a step since."""
        self.reason: str | None = None
        """What was found to stand against a remedy after all."""

    def before(self) -> None:
        """Register what must happen before a step is measured, and what must happen after it and before that is."""
        optimizer = self._living()
        _treated[optimizer] = self
        self._handles.append(optimizer.register_step_pre_hook(self._set_rates))
        self._handles.append(optimizer.register_step_post_hook(self._finish))

    def after(self, listener: Observer | None = None) -> None:
        """Register what must happen between the measurement and the step."""
        self._listener = listener
        if listener is not None and any(name in self._by_id for name in BESIDE_THE_OPTIMIZER):
            listener.distrust_state(self._living())
        self._handles.append(self._living().register_step_pre_hook(self._treat))

    def close(self) -> None:
        """Leave the optimizer as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        optimizer = self._optimizer()
        if optimizer is not None:
            self._restore(optimizer)
            _treated.pop(optimizer, None)

    def _living(self) -> Optimizer:
        optimizer = self._optimizer()
        if optimizer is None:
            raise UsageError("the optimizer is gone")
        return optimizer

    # --- the three moments of a step ----------------------------------------------------------------------------------

    def _set_rates(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        self._restore(optimizer)  # what a step that raised may have left
        if self._loss_scale is not None:
            self._loss_scale.scale_back(_with_gradients(optimizer))
            if hasattr(optimizer, "found_inf"):
                del optimizer.found_inf  # of the step before; an optimizer that is not fused wants none
        factor = 1.0
        if (scaled := self._by_id.get("scale_learning_rate")) is not None:
            factor *= scaled["factor"]
        if (warm_up := self._by_id.get("warm_up")) is not None:
            factor *= min(1.0, (self._steps_taken + 1) / warm_up["steps"])
        if (switched := self._by_id.get("switch_optimizer")) is not None:
            factor *= switched["learning_rate"] / self._base_rate
        if factor != 1.0:
            self._rates = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * factor
        if (reduced := self._by_id.get("reduce_weight_decay")) is not None:
            self._decays = [group.get("weight_decay") for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                if group.get("weight_decay"):
                    group["weight_decay"] = group["weight_decay"] * reduced["factor"]

    def _treat(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Treat the gradients; those that a closure computes, whenever it has computed them."""
        self._is_skipped = self._loss_scale is None and _found_inf(optimizer)
        closures = [value for value in (*args[1:], *kwargs.values()) if callable(value)]
        if not closures:
            self._treat_gradients(optimizer)
            self._decay(optimizer)
            return None
        treated = self._treating(optimizer, closures[0])
        args = (args[0], *(treated if value is closures[0] else value for value in args[1:]))
        return args, {name: treated if value is closures[0] else value for name, value in kwargs.items()}

    def _treating(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        calls = itertools.count()

        def treated() -> Any:
            self._show()
            loss = closure()
            self._treat_gradients(optimizer)
            if next(calls) == 0:
                self._decay(optimizer)
            return loss

        return treated

    def _finish(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        has_switched = "switch_optimizer" in self._by_id
        is_skipped = self._is_skipped
        self._show()
        if has_switched and not is_skipped:
            self._step_inside(optimizer)
        self._restore(optimizer)
        if self._loss_scale is not None:
            skipped = torch.tensor(float(is_skipped))
            optimizer.found_inf = skipped  # type: ignore[attr-defined]  # where a loss scaler says so, and `Watch` looks
        self._steps_taken += 1
        self.has_stepped = True

    def _restore(self, optimizer: Optimizer) -> None:
        """Give back to the script what was changed for the length of a step."""
        self._show()
        if self._rates is not None:
            for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate
            self._rates = None
        if self._decays is not None:
            for group, decay in zip(optimizer.param_groups, self._decays, strict=True):
                if decay is not None:
                    group["weight_decay"] = decay
            self._decays = None
        if self._grad_scale is not None:
            optimizer.grad_scale = self._grad_scale  # type: ignore[attr-defined]  # a loss scaler puts it there
            self._grad_scale = None

    # --- gradients ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _treat_gradients(self, optimizer: Optimizer) -> None:
        parameters = _with_gradients(optimizer)
        if self._loss_scale is not None:
            self._loss_scale.scale_back(parameters)  # those that a closure computed
        if not parameters or not any(name in self._by_id for name in ON_GRADIENTS):
            return
        gradients = [_gradient(p) for p in parameters]
        self._unscale(optimizer, gradients)
        if self._loss_scale is not None:
            if not self.has_stepped and _is_in_loss_scaler():
                self.reason = "scale_loss: the script scales its losses dynamically already"
            self._is_skipped = self._loss_scale.note_step(gradients)
        if (rescaled := self._by_id.get("rescale_loss_gradient")) is not None:
            torch._foreach_mul_(gradients, rescaled["factor"])
        if "skip_nonfinite_steps" in self._by_id and not all(bool(g.isfinite().all()) for g in gradients):
            self._is_skipped = True
        if self._is_skipped:
            self._hide(parameters)
            return
        if (by_value := self._by_id.get("clip_grad_value")) is not None:
            torch._foreach_clamp_min_(gradients, -by_value["clip_value"])
            torch._foreach_clamp_max_(gradients, by_value["clip_value"])
            self._tell(parameters, None)
        if (by_layer := self._by_id.get("clip_grad_norm_per_layer")) is not None:
            for gradient in gradients:
                gradient.mul_(_coefficient(by_layer["max_norm"], torch.linalg.vector_norm(gradient)))
            self._tell(parameters, None)
        if (by_norm := self._by_id.get("clip_grad_norm")) is not None:
            coefficient = _coefficient(by_norm["max_norm"], torch.nn.utils.get_total_norm(gradients))
            for gradient in gradients:
                gradient.mul_(coefficient.to(gradient.device))
            self._tell(parameters, coefficient)
        if (adaptive := self._by_id.get("adaptive_clip")) is not None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                _clip_rows(parameter, gradient, adaptive["clipping"])
            self._tell(parameters, None)
        if (penalty := self._by_id.get("l1_penalty")) is not None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                gradient.add_(parameter.sign(), alpha=penalty["strength"])
        if "switch_optimizer" in self._by_id:
            self._hide(parameters)

    def _unscale(self, optimizer: Optimizer, gradients: list[Tensor]) -> None:
        """Divide by the scale that a loss scaler leaves to a fused optimizer, which is told that this is done."""
        scale = getattr(optimizer, "grad_scale", None)
        if isinstance(scale, Tensor) and self._grad_scale is None:
            self._grad_scale = scale
            for gradient in gradients:
                gradient.div_(scale.to(gradient.device))
            optimizer.grad_scale = torch.ones_like(scale)  # type: ignore[attr-defined]

    def _tell(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        if self._listener is not None:
            self._listener.after_clipping(parameters, coefficient)

    def _hide(self, parameters: list[Tensor]) -> None:
        """Let the optimizer find no gradients, so that its step does nothing."""
        for parameter in parameters:
            self._hidden.append((parameter, _gradient(parameter)))
            parameter.grad = None

    def _show(self) -> None:
        for parameter, gradient in self._hidden:
            parameter.grad = gradient
        self._hidden.clear()

    # --- weights ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _decay(self, optimizer: Optimizer) -> None:
        """Shrink the weight matrices by rate times decay, as AdamW does (Loshchilov and Hutter 2019); no biases."""
        decay = self._by_id.get("weight_decay")
        if decay is None or self._is_skipped:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.ndim >= 2 and parameter.requires_grad:
                    parameter.mul_(1 - group["lr"] * decay["weight_decay"])

    def _step_inside(self, optimizer: Optimizer) -> None:
        """Let the inner optimizer step, with the groups as they are now: a script may have added or reloaded some."""
        groups = [
            {
                "params": list(group["params"]),
                "lr": float(group["lr"]),
                "weight_decay": float(group.get("weight_decay") or 0.0),
                "maximize": bool(group.get("maximize", False)),
            }
            for group in optimizer.param_groups
        ]
        if self._inner is None:
            kind: Callable[..., Optimizer] = getattr(torch.optim, self._by_id["switch_optimizer"]["optimizer"])
            self._inner = kind(groups, lr=groups[0]["lr"])
        known = self._inner.param_groups
        for have, want in zip(known, groups, strict=False):
            have.update(want)
        for want in groups[len(known) :]:
            self._inner.add_param_group(want)
        self._inner.step()


@dataclass(frozen=True, slots=True)
class _Condition:
    """What stands against some remedies."""

    remedies: tuple[str, ...]
    reason: str


def _check_applicable(by_id: Mapping[str, Any], optimizer: Optimizer, models: list[nn.Module]) -> None:
    for remedy in by_id:
        if REMEDIES[remedy].tier != 1 and remedy != "scale_loss":
            raise NotApplicable(f"{remedy} changes more than the optimizer")
    for condition in _conditions(by_id, optimizer, models):
        for remedy in condition.remedies:
            if remedy in by_id:
                raise NotApplicable(f"{remedy}: {condition.reason}")


def _conditions(by_id: Mapping[str, Any], optimizer: Optimizer, models: list[nn.Module]) -> Iterable[_Condition]:
    groups = optimizer.param_groups
    parameters = [p for group in groups for p in group["params"]]
    name = type(optimizer).__name__
    if not all("lr" in group for group in groups):
        of_rate = ("scale_learning_rate", "warm_up", "switch_optimizer", "weight_decay")
        yield _Condition(of_rate, f"{name} has no learning rate of its own")
    if any(group.get("capturable") for group in groups):
        yield _Condition(tuple(REMEDIES), f"{name} is captured in a CUDA graph, which hooks do not reach")
    if any(hasattr(p, "device_mesh") for p in parameters):
        yield _Condition(ON_GRADIENTS, "the parameters are sharded, and no norm of a shard is that of the whole")
    if any(getattr(module, "sparse", False) is True for model in models for module in model.modules()):
        yield _Condition(ON_GRADIENTS, "the model has sparse gradients")
    if any(p.is_complex() for p in parameters):
        yield _Condition(("clip_grad_value", "adaptive_clip", "l1_penalty"), "the model has complex parameters")
    if not any(p.ndim >= 2 for p in parameters):
        yield _Condition(("weight_decay",), "the optimizer updates no matrix")
    if not any(group.get("weight_decay") for group in groups):
        yield _Condition(("reduce_weight_decay",), f"{name} decays no weights")
    if name == "LBFGS":
        yield _Condition(("switch_optimizer",), "LBFGS evaluates its closure several times a step, others once")
    switched = by_id.get("switch_optimizer")
    if switched is not None and switched["optimizer"] == name:
        yield _Condition(("switch_optimizer",), f"the script's optimizer is {name} already")
    final = name if switched is None else switched["optimizer"]
    if final in SCALE_INVARIANT:
        yield _Condition(("rescale_loss_gradient",), f"{final} divides by the gradient's own scale: it has no effect")


def _base_rate(optimizer: Optimizer) -> float:
    """Return the rate that the script gave: what a scheduler multiplies, even if it is at 0 now, or rises to."""
    found = [
        float(rate)
        for group in optimizer.param_groups
        if (rate := group.get("max_lr", group.get("initial_lr", group.get("lr")))) is not None
    ]
    largest = max(found, default=0.0)
    default = optimizer.defaults.get("lr")
    return largest or float(default or 0.0) or 1.0


def _found_inf(optimizer: Optimizer) -> bool:
    """Whether a loss scaler told a fused optimizer that this step is to be skipped."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.item())


def _is_in_loss_scaler() -> bool:
    """Whether the step that is under way was called by torch's own loss scaler."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith("torch/amp/grad_scaler.py"):
            return True
        frame = frame.f_back
    return False


def _with_gradients(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a gradient disappeared while it was treated")
    return parameter.grad


def _coefficient(max_norm: float, norm: Tensor) -> Tensor:
    return torch.clamp(max_norm / (norm + CLIP_EPSILON), max=1.0)


def _clip_rows(parameter: Tensor, gradient: Tensor, clipping: float) -> None:
    """Bound each row's gradient by a share of the row's weights; a vector counts as one row."""
    rows = (len(parameter), -1) if parameter.ndim > 1 else (1, -1)
    bound = parameter.reshape(rows).norm(dim=1).clamp(min=AGC_EPSILON) * clipping
    norms = gradient.reshape(rows).norm(dim=1)
    factor = (bound / norms.clamp(min=CLIP_EPSILON)).clamp(max=1.0)
    gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)) if gradient.ndim > 1 else factor.reshape(()))
