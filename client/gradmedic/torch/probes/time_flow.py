"""Measures how the gradient changes with each time step back through a recurrent module.

Of `nn.RNN`, `nn.LSTM` and `nn.GRU`, the gradient at the input sequence must be known, but the input is mostly a batch
that needs no gradient. And where each time step has a loss of its own, the gradients of many losses add up there. So
the module computes a part of its batch once more, alone: at most 8 examples and 256 time steps, from a state of zeros,
without dropout, with weights that need no gradient. Then a fixed gradient at the last output goes back to each time
step. Of a packed batch, the longest examples count up to the length that all of them have; of a module with two
directions, the forward one. Weights that are sharded or parametrized are not measured.

`nn.RNNCell`, `nn.LSTMCell` and `nn.GRUCell` are called in a loop of the script, and so may the modules above be, with
one time step a call. There the gradient of the script's own loss is measured at the states that each call gives out,
for the first sequence of a step. If each time step has a loss of its own, it shows no decline.

The factor per time step is fitted: it is the slope of the gradient norm's logarithm (Pascanu et al. 2013, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence

from gradmedic.protocol.probes import choose_subjects, name_metric
from gradmedic.torch.first_batch import tensors_in
from gradmedic.torch.probes.meter import ProbeContext, ProbeMeter, ProbeValues
from gradmedic.torch.probes.module_names import name_modules
from gradmedic.torch.probes.part_hooks import PartHook
from gradmedic.torch.recorded_code import is_recorded
from gradmedic.torch.statistics import flatten, local_part, start_copy

MOST_EXAMPLES = 8
MOST_TIME_STEPS = 256
MIN_TIME_STEPS = 4
"""Time steps that a fit needs. Over fewer, a gradient can hardly die."""
SMALLEST_SHARE = 1e-30
"""Norms below this share of the largest one are left out of a fit: float32 rounds what is smaller to zero."""

_FUNCTIONS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}
"""Names of the functions that compute a module, by its mode."""
_SEQUENCES = (nn.RNN, nn.LSTM, nn.GRU)
_CELLS = (nn.RNNCell, nn.LSTMCell, nn.GRUCell)


@dataclass(slots=True)
class _Loop:
    """The calls of one cell in one step, a call per time step."""

    calls: int = 0
    is_over: bool = False
    """Whether another sequence has begun."""
    norms: dict[int, list[Tensor]] = field(default_factory=dict)
    """Norms of the gradients at the states that a call gave out, by the call."""


class TimeFlow(ProbeMeter):
    """Measures `time_gradient_factor` and `time_steps` of at most `MAX_SUBJECTS` recurrent modules."""

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self._step = 0
        self._factors: dict[str, tuple[Tensor, int]] = {}
        self._loops: dict[str, _Loop] = {}
        self._hooks: list[PartHook] = []
        modules = name_modules(context.models, context.owned)
        for model in context.models:
            if isinstance(model, (*_SEQUENCES, *_CELLS)):
                modules.setdefault(type(model).__name__, model)
        recurrent = [name for name, module in modules.items() if isinstance(module, (*_SEQUENCES, *_CELLS))]
        for name in choose_subjects(recurrent):
            self._hooks.append(context.part_hooks.add(modules[name], partial(self.follow, name)))

    def finish_step(self) -> Sequence[ProbeValues]:
        """Return the factor and the length of each recurrent module that was called."""
        self._step += 1
        if not self._factors and not self._loops:
            return ()
        factors, self._factors = self._factors, {}
        loops, self._loops = self._loops, {}
        for name, loop in loops.items():
            if name not in factors and len(loop.norms) >= MIN_TIME_STEPS:
                device = next(iter(loop.norms.values()))[0].device
                nothing = torch.zeros((), dtype=_widest(device), device=device)
                norms = [_join(loop.norms.get(call, [nothing]), device) for call in range(loop.calls)]
                factors[name] = fit_factor(torch.stack(norms)), loop.calls
        return [
            ProbeValues(
                (name_metric("time_gradient_factor", name), name_metric("time_steps", name)),
                start_copy(torch.stack([factor, torch.full_like(factor, length)])),
            )
            for name, (factor, length) in factors.items()
        ]

    def close(self) -> None:
        """Remove the hooks of the modules. Those of states do nothing any more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._factors.clear()
        self._loops.clear()
        self._step += 1

    def follow(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Measure a call of a recurrent module."""
        if is_recorded() or not self.context.schedule.is_probing or not torch.is_grad_enabled():
            return
        if name not in self._factors:
            self.context.call_safely(self._follow, module, name, inputs, output)

    def _follow(self, module: nn.Module, name: str, inputs: Any, output: Any) -> None:
        if isinstance(module, _CELLS):
            self._follow_loop(name, inputs, output)
            return
        if not isinstance(module, _SEQUENCES) or not inputs:
            return
        sequence, length = take_sequence(module, inputs[0])
        if length == 1:
            self._follow_loop(name, inputs, output[1])
        elif length >= MIN_TIME_STEPS and has_plain_weights(module):
            self._factors[name] = fit_factor(measure_norms_back(module, sequence)), length

    def _follow_loop(self, name: str, inputs: Any, states: Any) -> None:
        """Register a hook at each state that a call of a loop gave out."""
        loop = self._loops.setdefault(name, _Loop())
        given = list(tensors_in(inputs[1:]))
        if loop.calls and not any(state.grad_fn is not None for state in given):
            loop.is_over = True
        if loop.is_over or loop.calls >= MOST_TIME_STEPS:
            return
        step, call = self._step, loop.calls
        loop.calls += 1

        def measure(gradient: Tensor | None) -> None:  # None where the loss needs only another state
            if gradient is not None and step == self._step and not is_recorded():
                self.context.call_safely(self._add_norm, loop, call, gradient)

        for state in tensors_in(states):
            if state.requires_grad and state.grad_fn is not None:
                state.register_hook(measure)  # type: ignore[no-untyped-call]

    def _add_norm(self, loop: _Loop, call: int, gradient: Tensor) -> None:
        numbers = flatten(gradient)
        norm = torch.linalg.vector_norm(numbers, dtype=_widest(numbers.device))
        loop.norms.setdefault(call, []).append(norm)


def has_plain_weights(module: nn.RNNBase) -> bool:
    """Whether the weights can be read without a computation, and this process holds all of them."""
    if is_parametrized(module):
        return False
    weights = (getattr(module, name, None) for name in module._flat_weights_names)
    return all(isinstance(weight, Tensor) and local_part(weight) is weight for weight in weights)


def take_sequence(module: nn.RNNBase, given: Any) -> tuple[Tensor, int]:
    """Return a part of the input of a recurrent module, `[time, example, feature]`, and the length of the sequence."""
    if isinstance(given, PackedSequence):
        data, sizes = given.data, given.batch_sizes.tolist()
        examples = min(MOST_EXAMPLES, sizes[0])
        common = [size for size in sizes if size >= examples]
        starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
        rows = [data[starts[time] : starts[time] + examples] for time in range(len(common))][-MOST_TIME_STEPS:]
        return torch.stack(rows).detach(), len(common)
    if not isinstance(given, Tensor):
        return torch.empty(0), 0
    sequence = given.detach()
    if sequence.ndim == 2:
        sequence = sequence.unsqueeze(1)
    elif module.batch_first:
        sequence = sequence.transpose(0, 1)
    return sequence[-MOST_TIME_STEPS:, :MOST_EXAMPLES], len(sequence)


def measure_norms_back(module: nn.RNNBase, sequence: Tensor) -> Tensor:
    """Return the norm of the gradient at each time step of a sequence, of a fixed gradient at the last output.

    Args:
        module: the module, of which only the weights are read.
        sequence: `[time, example, feature]`.
    """
    precise = torch.float64 if sequence.dtype == torch.float64 else torch.float32
    weights = [getattr(module, name).detach().to(precise) for name in module._flat_weights_names]
    directions = 2 if module.bidirectional else 1
    examples, width = sequence.shape[1], module.proj_size or module.hidden_size
    state = weights[0].new_zeros((module.num_layers * directions, examples, width))
    states: Any = state
    if module.mode == "LSTM":
        states = (state, weights[0].new_zeros((module.num_layers * directions, examples, module.hidden_size)))
    # No ones, along which a module may behave in a special way, and no random numbers, which are the script's.
    seed = torch.cos(torch.arange(1, width + 1, device=state.device, dtype=precise)).expand(examples, width)
    # Hooks of its own keep the tensors away from those of the script: checkpointing counts what is saved.
    keeping = saved_tensors_hooks(Tensor.detach, _give_back)
    with torch.enable_grad(), torch.autocast(sequence.device.type, enabled=False), keeping:
        leaf = sequence.to(precise).clone().requires_grad_()
        # Training mode, because cuDNN computes no gradient without it; the dropout is 0.
        output = getattr(torch._VF, _FUNCTIONS[module.mode])(
            leaf, states, weights, module.bias, module.num_layers, 0.0, True, module.bidirectional, False
        )[0]
        (gradient,) = torch.autograd.grad(output[-1, :, :width], leaf, seed)
    norms: Tensor = torch.linalg.vector_norm(gradient, dim=(1, 2), dtype=_widest(gradient.device))
    return norms


def _give_back(saved: Tensor) -> Tensor:
    return saved


def fit_factor(norms: Tensor) -> Tensor:
    """Return the factor per time step back that fits the norms best, `norms` being in the order of time, on its device.

    It is 0 if only one norm is not zero, and NaN if all norms are zero or NaN.
    """
    is_used = norms > norms.amax() * SMALLEST_SHARE
    weights = is_used.to(norms.dtype)
    count = weights.sum()
    back = torch.arange(len(norms) - 1, -1, -1, device=norms.device, dtype=norms.dtype)
    logarithms = torch.where(is_used, norms, 1.0).log()
    centered = (back - (weights * back).sum() / count) * weights
    slope = (centered * logarithms).sum() / centered.square().sum()
    return torch.where(count == 1, torch.zeros_like(slope), slope.exp())


def _join(norms: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the norm of gradients whose norms are given."""
    joined: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))
    return joined


def _widest(device: torch.device) -> torch.dtype:
    """Return the widest floating-point type of a device. Those of Apple have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
