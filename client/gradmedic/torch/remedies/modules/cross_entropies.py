"""Remedies that change every cross-entropy of the script: its logits, or its gradient.

`torch.nn.functional.cross_entropy`, which `nn.CrossEntropyLoss` calls too, looks up one function of torch's core at
each call. It is replaced while a trial changes losses, and put back at the end. A loss that is written out, as
`log_softmax` and `nll_loss`, is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradmedic.torch.remedies.module_remedy import ModuleContext, ModuleRemedy

_NAME = "cross_entropy_loss"
_MEAN, _SUM = 1, 2
"""Numbers of the reductions in torch's core."""

_acting: list[CrossEntropyRemedy] = []
"""Remedies that change losses now, one of each id: a script may call `watch()` for each of its models."""
_original: list[Callable[..., Tensor]] = []
"""Torch's function, while it is replaced."""


class CrossEntropyRemedy(ModuleRemedy):
    """The base of the remedies below."""

    needs_eager = True

    def __init__(self, parameters: Mapping[str, Any], context: ModuleContext) -> None:
        super().__init__(parameters, context)
        self._sharing: CrossEntropyRemedy = self
        """The remedy that acts for this one: itself, unless that of another `watch()` does."""
        self.calls = 0
        """Cross-entropies that were changed."""

    def start(self) -> None:
        """Change cross-entropies from now on."""
        self._sharing = next((other for other in _acting if other.id == self.id), self)
        if self._sharing is not self:
            return
        if not _original:
            _original.append(getattr(torch._C._nn, _NAME))
            setattr(torch._C._nn, _NAME, _compute_cross_entropy)
        _acting.append(self)
        _acting.sort(key=lambda remedy: remedy.order)

    def close(self) -> None:
        """Change no more cross-entropies."""
        if self in _acting:
            _acting.remove(self)
        if not _acting and _original:
            if getattr(torch._C._nn, _NAME) is _compute_cross_entropy:
                setattr(torch._C._nn, _NAME, _original[0])
            _original.clear()

    @property
    def failure_after_step(self) -> str | None:
        """Reason why nothing was changed."""
        return None if self._sharing.calls else "no cross-entropy of logits was computed by torch's function"

    def change_logits(self, logits: Tensor) -> Tensor:
        """Return the logits that the loss is computed from."""
        return logits

    def change_loss(self, loss: Tensor, logits: Tensor, is_counted: Tensor | None, reduction: int) -> Tensor:  # noqa: ARG002
        """Return the loss.

        Args:
            loss: loss of these logits.
            logits: logits with the classes in the last dimension.
            is_counted: which of the examples have a label that counts; None means all.
            reduction: number of the reduction in torch's core.
        """
        return loss


class LogitSoftCap(CrossEntropyRemedy):
    """Replaces logits by `cap * tanh(logits / cap)` (Gemma team 2024, Gemma 2, section 2).

    The model's own output stays. Which class has the largest logit stays, too.
    """

    id = "logit_soft_cap"
    order = 10

    def change_logits(self, logits: Tensor) -> Tensor:
        """Return the bounded logits."""
        cap = float(self.parameters["cap"])
        return cap * torch.tanh(logits / cap)


class ZLoss(CrossEntropyRemedy):
    """Adds the gradient of `strength * logsumexp(logits)**2` (Chowdhery et al. 2022, PaLM, section 5).

    The value of the loss stays, so that it can be compared.
    """

    id = "z_loss"
    order: ClassVar[int] = 20

    def change_loss(self, loss: Tensor, logits: Tensor, is_counted: Tensor | None, reduction: int) -> Tensor:
        """Return the loss, with another gradient."""
        if not loss.requires_grad:
            return loss
        penalty = float(self.parameters["strength"]) * logits.logsumexp(-1).square()
        if is_counted is not None:
            penalty = torch.where(is_counted, penalty, torch.zeros_like(penalty))
        if reduction == _SUM:
            penalty = penalty.sum()
        elif reduction == _MEAN:
            penalty = penalty.sum() / (penalty.numel() if is_counted is None else is_counted.sum().clamp(min=1))
        result: Tensor = _AddGradient.apply(loss, penalty)  # type: ignore[no-untyped-call]
        return result


class _AddGradient(torch.autograd.Function):
    """Returns its first argument; the gradient goes to both."""

    generate_vmap_rule = True

    @staticmethod
    def forward(loss: Tensor, penalty: Tensor) -> Tensor:  # noqa: ARG004
        return loss.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG004
        return gradient, gradient


def _compute_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = _MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the cross-entropy as torch does, with the changes of the remedies."""
    compute = _original[0] if _original else getattr(torch._C._nn, _NAME)
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim == 0:
        return compute(logits, target, weight, reduction, ignore_index, label_smoothing)
    for remedy in _acting:
        remedy.calls += 1
        logits = remedy.change_logits(logits)
    loss = compute(logits, target, weight, reduction, ignore_index, label_smoothing)
    with_classes_last = logits.movedim(1, -1) if logits.ndim > 1 else logits
    is_counted = None if target.is_floating_point() else target != ignore_index
    for remedy in _acting:
        loss = remedy.change_loss(loss, with_classes_last, is_counted, reduction)
    return loss
