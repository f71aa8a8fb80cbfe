"""Whether a model is called only so that its operations are recorded or transformed."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """Return whether a call of a model now computes no batch of the training.

    `torch.compile`, `torch.jit.trace`, `SummaryWriter.add_graph`, exports and tensors without data call a model to
    record its operations. Inside `torch.func` transformations, tensors stand for others. Nothing is measured then.
    """
    return (
        torch.compiler.is_compiling()  # the first one, because the others cannot be compiled
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]  # torch leaves it untyped
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
