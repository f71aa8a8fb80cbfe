"""Measures how evenly the routers of mixtures of experts spread their tokens.

A mixture of experts has a list of at least four experts with parameters of equal shapes, or one module `experts` whose
parameters are stacked, and a gate: a module with a weight of one row per expert. One of the names must contain
"expert", "gate", "router" or "switch", because a classifier behind equal blocks has the same form. The expert with the
largest output of the gate counts as that of a token. A gate with a buffer of biases is not measured: it spreads the
tokens by these biases (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
"""

from __future__ import annotations

import math
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
from gradmedic.torch.statistics import local_part, start_copy
from gradmedic.torch.structure import unwrap_model

MIN_EXPERTS = 4
"""Experts from which on almost all tokens at one expert cannot be called a fair share."""
MOST_TOKENS = 8_192
"""Tokens of one call that are counted; of more, those that lie evenly apart. A share is then right to 1 %."""
_NAMES = ("expert", "gate", "gating", "router", "switch")


class RouterLoad(ProbeMeter):
    """Measures `router_largest_share` of at most `MAX_SUBJECTS` routers, over all calls of a step together."""

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self._counts: dict[str, list[Tensor]] = {}  # tokens of each expert, by gate
        self._hooks: list[PartHook] = []
        modules = name_modules(context.models, context.owned)
        for name, experts in choose_subjects(list(find_gates(context.models, modules).items())):
            self._hooks.append(context.part_hooks.add(modules[name], partial(self.follow, name, experts)))

    def finish_step(self) -> Sequence[ProbeValues]:
        """Return the largest share of each router that was called."""
        if not self._counts:
            return ()
        counts, self._counts = self._counts, {}
        by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
        for name, calls in counts.items():
            total = torch.stack([call.to(calls[0].device) for call in calls]).sum(0)
            share = total.amax() / total.sum()
            by_device.setdefault(share.device, []).append((name_metric("router_largest_share", name), share))
        return [
            ProbeValues(tuple(name for name, _ in group), start_copy(torch.stack([share for _, share in group])))
            for group in by_device.values()
        ]

    def close(self) -> None:
        """Remove the hooks of the gates."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._counts.clear()

    def follow(self, name: str, experts: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Count the tokens of one call of a gate."""
        if is_recorded() or not self.context.schedule.is_probing or not torch.is_grad_enabled():
            return
        self.context.call_safely(self._count, name, experts, output)

    def _count(self, name: str, experts: int, output: Any) -> None:
        floats = (tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.numel())
        scores = next((tensor for tensor in floats if tensor.ndim and tensor.shape[-1] == experts), None)
        if scores is None:
            return
        tokens = local_part(scores).detach().reshape(-1, experts)
        tokens = tokens[:: math.ceil(len(tokens) / MOST_TOKENS)]
        chosen = tokens.argmax(-1, keepdim=True) == torch.arange(experts, device=tokens.device)
        self._counts.setdefault(name, []).append(chosen.sum(0).float())


def find_gates(models: Sequence[nn.Module], modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return the number of experts of each gate in models, by the gate's name.

    Args:
        models: the models, perhaps inside wrappers.
        modules: the modules of the models by name, without the models.
    """
    names = {id(module): name for name, module in modules.items()}
    found: dict[str, int] = {}
    for module in (*(unwrap_model(model)[0] for model in models), *modules.values()):
        for attribute, child in module.named_children():
            count = count_experts(attribute, child)
            gate = _find_gate(module, attribute, count) if count >= MIN_EXPERTS else None
            if gate is not None and id(gate) in names:
                found[names[id(gate)]] = count
                break
    return found


def count_experts(attribute: str, module: nn.Module) -> int:
    """Return the number of experts in a child of a module, 0 if it holds no experts."""
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        experts = list(module.children())
        shapes = {tuple(tuple(parameter.shape) for parameter in expert.parameters()) for expert in experts}
        return len(experts) if len(shapes) == 1 and shapes != {()} else 0
    stacked = [parameter.shape for parameter in module.parameters(recurse=False)]
    if "expert" in attribute.lower() and stacked and all(len(shape) >= 2 for shape in stacked):
        counts = {shape[0] for shape in stacked}
        return counts.pop() if len(counts) == 1 else 0
    return 0


def _find_gate(module: nn.Module, experts: str, count: int) -> nn.Module | None:
    """Return the gate of a module whose child `experts` holds `count` experts."""
    for name, candidate in module.named_modules():
        if not name or name == experts or name.startswith(f"{experts}."):
            continue
        weight = candidate._parameters.get("weight")  # a weight that is computed must not be computed here
        if weight is None or weight.ndim != 2 or len(weight) != count:
            continue
        if not any(part in f"{experts}.{name}".lower() for part in _NAMES):
            continue
        owners = (module, candidate, module.get_submodule(name.rpartition(".")[0]))
        has_biases = any("bias" in key for owner in owners for key, _ in owner.named_buffers(recurse=False))
        return None if has_biases else candidate
    return None
