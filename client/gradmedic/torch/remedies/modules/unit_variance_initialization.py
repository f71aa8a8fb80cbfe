"""The remedy that fits initial weights to the first batch, layer by layer (Mishkin and Matas 2016, LSUV).

Every matrix is drawn as an orthogonal one, and then scaled so that the signal behind its layer has unit variance on the
first batch. A number by which the script multiplies that signal on its way to the next function counts, as the
frequency of a sine does. So nothing has to be known of activations, skips, or sums: the batch shows what they do. The
matrices are those of torch's layers, and parameters of the script's own that a trace shows to be used as such.

- The last layer of each of `n` residual branches gets a variance of `1 / n`, so that their sum keeps its size.
- What is used at every step of a recurrence is not scaled: one batch shows one time step. A matrix stays orthogonal, so
  that no state grows or fades. A vector that multiplies the state, and has an element beyond 1, is drawn between 0 and
  1 (Li et al. 2018, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradmedic.torch.remedies.module_remedy import AppliedPlaces, CallRemedy, FirstCall
from gradmedic.torch.remedies.modules.changed_calls import CallChange
from gradmedic.torch.remedies.modules.moments import compute_moments
from gradmedic.torch.remedies.modules.parameters import (
    draw_matrix,
    find_signs_of_training,
    find_updated_ids,
    list_biases,
    list_embedding_parameters,
    list_matrices,
    make_generator,
)
from gradmedic.torch.remedies.modules.places import Places
from gradmedic.torch.remedies.modules.trace import INPUT, Call, Recorder, Trace, call_copy
from gradmedic.torch.remedies.modules.transformer_places import passes

_SMALLEST_SPREAD = 1e-12
"""Deviation of a signal below which it is constant: no factor of the weights changes that."""
_PARAMETRIZED = "parametrizations."
"""In the names of parameters from which a parametrization computes weights."""
_NO_LAYER = "the model has no linear, convolutional or recurrent layer that is trained"


class UnitVarianceInitialization(CallRemedy):
    """Draws the weights again, and scales them so that each layer's signal has unit variance on the first batch."""

    id = "unit_variance_initialization"
    order = 4
    needs_parameters = True

    def __init__(self, parameters: Mapping[str, Any], context: Any) -> None:
        super().__init__(parameters, context)
        self._first_call: FirstCall | None = None
        self._fitted: dict[str, dict[str, Tensor]] = {}
        """The weights of each part of a model, by its name: a copy of the model gets the same ones."""

    def reason_against(self, model: nn.Module, wrappers: set[str]) -> str | None:
        """Return why the weights must stay as they are."""
        if (reason := super().reason_against(model, wrappers)) is not None:
            return reason
        return find_signs_of_training(model, self.context.optimizers)

    def observe_first_call(self, call: FirstCall) -> None:
        """Keep the call until `change_calls`."""
        self._first_call = call

    def change_calls(
        self, part: nn.Module, places: Places, *, is_copy: bool
    ) -> tuple[AppliedPlaces, Sequence[CallChange]]:
        """Fit the weights to the batch of this call, or give a copy of the model those of the original."""
        first, self._first_call = self._first_call, None
        if first is None:
            return AppliedPlaces([], _NO_LAYER), ()
        if not (is_copy and first.name in self._fitted):
            updated = find_updated_ids(self.context.optimizers)
            self._fitted[first.name] = _fit(part, first, places, self.context.seed, None if is_copy else updated)
        fitted = self._fitted[first.name]
        if not fitted:
            return AppliedPlaces([], _NO_LAYER), ()
        with torch.no_grad():
            for parameter_name, parameter in part.named_parameters():
                if parameter_name in fitted:
                    parameter.copy_(fitted[parameter_name])
        return AppliedPlaces(list(fitted), ""), ()


@dataclass(slots=True)
class _Plan:
    """What becomes of the parameters of a model, by their names."""

    recurrent: set[str]
    """What a recurrence uses at every step."""
    drawn: dict[str, int] = field(default_factory=dict)
    """Matrices that are drawn, and the number of matrices stacked in each."""
    zeroed: set[str] = field(default_factory=set)
    """Biases."""
    shrunk: set[str] = field(default_factory=set)
    """Vectors that multiply a recurrent state."""
    targets: dict[int, tuple[str, float]] = field(default_factory=dict)
    """The matrix that is scaled at a call, and the deviation of the call's result, by the call's index."""


def _fit(part: nn.Module, first: FirstCall, places: Places, seed: int, trained: set[int] | None) -> dict[str, Tensor]:
    """Return the new values of parameters by name, empty if there is no layer. The part stays as it is.

    Args:
        part: part of a model that the script calls.
        first: its first call.
        places: where the trace of the part shows residual branches.
        seed: seed of the trial.
        trained: ids of the parameters that an optimizer updates; None if all do.
    """
    kept = list_embedding_parameters(part)
    free = {
        name: parameter
        for name, parameter in part.named_parameters()
        if id(parameter) not in kept and (trained is None or id(parameter) in trained)
    }
    plan = _plan_draws(part, first.trace, free)
    if not plan.drawn:
        return {}
    measured = call_copy(part, first.args, first.kwargs, partial(_Measuring, plan=plan, seed=seed))
    _plan_scales(plan, measured, places)
    scaled = call_copy(part, first.args, first.kwargs, partial(_Scaling, plan=plan, seed=seed))
    return {name: scaled.parameters[name].detach() for name in (*plan.drawn, *plan.zeroed, *plan.shrunk)}


def _plan_draws(part: nn.Module, trace: Trace, free: Mapping[str, Tensor]) -> _Plan:
    """Return what is drawn: matrices and biases of torch's modules, and what the trace shows to be used as such.

    Args:
        part: part of a model.
        trace: a call of it.
        free: parameters that may be changed, by name.
    """
    plan = _Plan(recurrent=_find_recurrent(trace))
    names = {id(parameter): name for name, parameter in free.items()}
    for module in part.modules():
        matrices = [(matrix, pieces) for _, matrix, pieces in list_matrices(module) if id(matrix) in names]
        plan.drawn.update({names[id(matrix)]: pieces for matrix, pieces in matrices})
        if matrices:
            plan.zeroed.update(names[id(bias)] for bias in list_biases(module) if id(bias) in names)
    for call in trace.calls:
        for name in call.parameters:
            if name not in free or name in plan.drawn or name in plan.zeroed or _PARAMETRIZED in name:
                continue
            parameter = free[name].detach()
            if call.is_layer and parameter.ndim >= 2:
                plan.drawn[name] = 1
            elif call.is_layer and parameter.ndim == 1:
                plan.zeroed.add(name)
            elif name in plan.recurrent and parameter.ndim == 1 and bool((parameter.abs() > 1).any()):
                plan.shrunk.add(name)
    return plan


def _plan_scales(plan: _Plan, measured: _Measuring, places: Places) -> None:
    """Set the targets of the plan."""
    consumers = measured.trace.find_consumers()
    branches = set(places.residual_branches)
    scaled: set[str] = set()
    for call in measured.trace.calls:
        matrices = [name for name in call.parameters if name in plan.drawn]
        if not call.is_layer or len(matrices) != 1 or matrices[0] in scaled | plan.recurrent:
            continue
        scaled.add(matrices[0])
        deviation = len(places.residual_branches) ** -0.5 if call.owner in branches else 1.0
        plan.targets[call.index] = (matrices[0], deviation / _measure_gain(call, consumers, measured.spreads))


def _measure_gain(call: Call, consumers: Mapping[int, list[Call]], spreads: Mapping[int, float]) -> float:
    """Return by what factor a layer's result is scaled until the next function that does more than that."""
    last = call
    while len(following := consumers.get(last.index, [])) == 1 and passes(following[0]):
        last = following[0]
    before, behind = spreads[call.index], spreads[last.index]
    return behind / before if before > _SMALLEST_SPREAD and behind > _SMALLEST_SPREAD else 1.0


def _find_recurrent(trace: Trace) -> set[str]:
    """Return the parameters that are used in a call whose arguments were computed with them already."""
    numbers: dict[str, int] = {}
    known: list[int] = []  # of each call, the parameters that it depends on, as a set of bits
    recurrent: set[str] = set()
    for call in trace.calls:
        before = 0
        for source in call.sources:
            before |= 0 if source == INPUT else known[source]
        own = 0
        for name in call.parameters:
            bit = 1 << numbers.setdefault(name, len(numbers))
            own |= bit
            if before & bit:
                recurrent.add(name)
        known.append(before | own)
    return recurrent


class _Drawing(Recorder):
    """Records the call of a copy whose matrices are drawn anew."""

    def __init__(self, model: nn.Module, inputs: Any, *, plan: _Plan, seed: int) -> None:
        super().__init__(model, inputs)
        self.plan = plan
        self.parameters = dict(model.named_parameters())
        for name, pieces in plan.drawn.items():
            draw_matrix(self.parameters[name], pieces, "orthogonal", make_generator(seed, name))
        for name in plan.zeroed:
            self.parameters[name].zero_()
        for name in plan.shrunk:
            vector = self.parameters[name]
            vector.copy_(torch.rand(vector.shape, generator=make_generator(seed, name)))


class _Measuring(_Drawing):
    """Measures the deviation of each result."""

    def __init__(self, model: nn.Module, inputs: Any, *, plan: _Plan, seed: int) -> None:
        super().__init__(model, inputs, plan=plan, seed=seed)
        self.spreads: dict[int, float] = {}
        """Deviation of the result of each call, by its index; 0 where it has none."""

    def change_result(self, call: Call, arguments: Sequence[Tensor], result: Any) -> Any:  # noqa: ARG002
        """Measure the result, which stays."""
        self.spreads[call.index] = _measure_spread(result)
        return result


class _Scaling(_Drawing):
    """Scales the matrices of the plan as the signal reaches them."""

    def change_result(self, call: Call, arguments: Sequence[Tensor], result: Any) -> Any:  # noqa: ARG002
        """Return the result with the deviation of the plan, and scale the weights to it."""
        if call.index not in self.plan.targets:
            return result
        name, deviation = self.plan.targets[call.index]
        if name not in call.parameters:  # the copy took another path this time
            return result
        spread = _measure_spread(result)
        if spread <= _SMALLEST_SPREAD:
            return result
        self.parameters[name].mul_(deviation / spread)
        return result * (deviation / spread)


def _measure_spread(result: Any) -> float:
    """Return the deviation of all elements of a tensor, over all processes together; 0 for what has none."""
    if not isinstance(result, Tensor) or not result.is_floating_point() or result.numel() < 2:
        return 0.0
    moments = compute_moments(result.reshape(-1))
    spread = float(moments.deviation)
    return spread if torch.isfinite(moments.deviation).all() else 0.0
