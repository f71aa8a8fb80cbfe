"""Measures what blocks give out, and the gradient that comes back to them: how the gradient travels through a network.

Blocks are the repeated modules of a list or sequence, such as the layers of a transformer or of a residual stage. A
network without such repetition is measured behind each weight matrix. Of an output with several tensors, the first
tensor of floating-point numbers counts.

A hook of each block measures its output, and registers a hook at the output, which is called with the gradient. The
first probed step measures every block that is called; of them, those stay that lie evenly apart in the order of calls.
What a compiler or a tracer runs is not measured, and a block that is called inside checkpointing may be measured twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradmedic.protocol.probes import choose_subjects, name_metric
from gradmedic.torch.first_batch import tensors_in
from gradmedic.torch.probes.meter import ProbeContext, ProbeMeter, ProbeValues
from gradmedic.torch.probes.module_names import name_modules
from gradmedic.torch.probes.part_hooks import PartHook
from gradmedic.torch.recorded_code import is_recorded
from gradmedic.torch.statistics import flatten, local_part, start_copy

MOST_ELEMENTS = 65_536
"""Elements of a tensor that are measured; of more, those that lie evenly apart. Their root mean square is right to 1 %,
even if nine elements of ten are zero."""
MOST_CALLS = 64
"""Calls of one block in a step that are measured: a cell may be called once per time step."""
MIN_BLOCKS = 3
"""Repeated blocks that a network must have to be measured behind its blocks: two do not show a trend."""


class BlockFlow(ProbeMeter):
    """Measures `output_rms`, `output_zero_share` and `output_gradient_rms` of at most `MAX_SUBJECTS` blocks.

    Of several calls in one step, the root of the mean square counts, and the mean of the shares.
    """

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self._step = 0
        self._is_chosen = False
        self._calls: dict[str, int] = {}  # of this step, by block, in the order of the first call
        self._measured: dict[tuple[str, str], list[Tensor]] = {}  # by probe and block
        self._hooks: dict[str, PartHook] = {}
        for name, module in find_blocks(name_modules(context.models, context.owned)).items():
            self._hooks[name] = context.part_hooks.add(module, partial(self.follow, name))

    def finish_step(self) -> Sequence[ProbeValues]:
        """Return the probes of the blocks that were called, in the order of the calls."""
        self._step += 1
        if not self._calls:
            return ()
        called, self._calls = list(self._calls), {}
        measured, self._measured = self._measured, {}
        if not self._is_chosen and any(probe == "output_gradient_rms" for probe, _ in measured):
            self._is_chosen = True
            chosen = set(choose_subjects(called))
            for name in [name for name in self._hooks if name not in chosen]:
                self._hooks.pop(name).remove()
        elif not self._is_chosen:
            return ()  # a forward pass without a backward pass shows no order of the training
        return _join(measured, [name for name in called if name in self._hooks])

    def close(self) -> None:
        """Remove the hooks of the blocks. Those of outputs do nothing any more."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        self._calls.clear()
        self._measured.clear()
        self._step += 1

    def follow(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Measure the output of a block, and its gradient later."""
        if is_recorded() or not self.context.schedule.is_probing or not torch.is_grad_enabled():
            return
        self.context.call_safely(self._follow, name, output)

    def _follow(self, name: str, output: Any) -> None:
        floats = (tensor for tensor in tensors_in(output) if tensor.is_floating_point() or tensor.is_complex())
        tensor = next((tensor for tensor in floats if not tensor.is_nested and tensor.numel()), None)
        if tensor is None or self._calls.get(name, 0) >= MOST_CALLS:
            return
        self._calls[name] = self._calls.get(name, 0) + 1
        sample = take_sample(tensor)
        rms = compute_rms(sample)
        self._add("output_rms", name, rms)
        self._add("output_zero_share", name, (1 - torch.count_nonzero(sample) / sample.numel()).to(rms.dtype))
        # A parameter or a batch that is given out as it is has no operation behind it: its hook would stay for ever.
        if tensor.requires_grad and tensor.grad_fn is not None:
            step = self._step

            def measure(gradient: Tensor | None) -> None:  # None where the loss needs only others of a module's outputs
                if gradient is not None and step == self._step and not is_recorded():
                    self.context.call_safely(self._add_gradient, name, gradient)

            tensor.register_hook(measure)  # type: ignore[no-untyped-call]

    def _add_gradient(self, name: str, gradient: Tensor) -> None:
        if gradient.numel():
            self._add("output_gradient_rms", name, compute_rms(take_sample(gradient)))

    def _add(self, probe: str, name: str, number: Tensor) -> None:
        self._measured.setdefault((probe, name), []).append(number)


def find_blocks(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the modules whose outputs show the way of the gradient, by name, in the order of registration.

    They are the repeated blocks, or else the modules with weight matrices. Blocks in blocks are left out.
    """
    blocks: dict[str, nn.Module] = {}
    children: dict[str, list[str]] = {}
    for name in modules:
        children.setdefault(name.rpartition(".")[0], []).append(name)
    for container, names in children.items():
        if any(container == block or container.startswith(f"{block}.") for block in blocks):
            continue
        owner = modules.get(container)
        if owner is not None and not isinstance(owner, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            continue
        kinds = Counter(type(modules[name]) for name in names if _is_composite(modules[name]))
        blocks.update((name, modules[name]) for name in names if kinds.get(type(modules[name]), 0) > 1)
    if len(blocks) >= MIN_BLOCKS:
        return blocks
    return {name: module for name, module in modules.items() if _has_matrix(module)}


def take_sample(tensor: Tensor) -> Tensor:
    """Return at most about `MOST_ELEMENTS` elements of a tensor that lie evenly apart, as real numbers in one row."""
    tensor = local_part(tensor).detach()
    if tensor.numel() > MOST_ELEMENTS and tensor.layout == torch.strided:
        in_memory = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)  # so that no copy is needed
        interval = math.ceil(tensor.numel() / MOST_ELEMENTS) | 1  # odd, so that it divides no even size
        tensor = tensor.permute(in_memory).reshape(-1)[::interval]
    return flatten(tensor)


def compute_rms(numbers: Tensor) -> Tensor:
    """Return the root mean square of numbers, without overflow or underflow of their squares, on their device."""
    wide = numbers.dtype if numbers.device.type == "mps" else torch.float64  # which Apple's devices lack
    norm: Tensor = torch.linalg.vector_norm(numbers, dtype=wide)
    return norm / math.sqrt(max(1, numbers.numel()))


def _join(measured: Mapping[tuple[str, str], list[Tensor]], called: Sequence[str]) -> list[ProbeValues]:
    """Return the numbers of the blocks, with one array per device."""
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for probe in ("output_gradient_rms", "output_rms", "output_zero_share"):
        for name in called:
            calls = measured.get((probe, name))
            if calls:
                stacked = torch.stack([number.to(calls[0].device) for number in calls])
                number = stacked.mean() if probe == "output_zero_share" else compute_rms(stacked)
                by_device.setdefault(number.device, []).append((name_metric(probe, name), number))
    return [
        ProbeValues(tuple(name for name, _ in group), start_copy(torch.stack([number for _, number in group])))
        for group in by_device.values()
    ]


def _is_composite(module: nn.Module) -> bool:
    return any(next(child.parameters(), None) is not None for child in module.children())


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))
