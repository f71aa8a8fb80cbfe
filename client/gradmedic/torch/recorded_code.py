"""Whether code computes, or is only recorded for later: then there are no numbers to measure."""

from __future__ import annotations

import sys

import torch
from torch.jit._trace import is_tracing


def is_recorded() -> bool:
    """Whether torch records what runs now, so that a call of a model is no batch of the training.

    A compiler, a tracer (`SummaryWriter.add_graph`), an export, tensors without data, a function transform or a capture
    of a CUDA graph.

    `torch.compile` reads the first condition as a constant and looks at no other one, so that a hook that returns in
    this case costs a compiled model nothing.
    """
    return (
        torch.compiler.is_compiling()
        or is_tracing()  # type: ignore[no-untyped-call]
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or is_captured()
    )


def is_captured() -> bool:
    """Whether a CUDA graph is being captured. To wait for the device, or to read a number from it, would end that."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]


def count_compiled_frames() -> int:
    """Return how often `torch.compile` has begun to compile a piece of code in this process."""
    return int(torch._dynamo.utils.counters["frames"]["total"]) if "torch._dynamo.utils" in sys.modules else 0
