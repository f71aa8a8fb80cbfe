"""Finds in a trace where each remedy may act: which activations are hidden, which layers can be normalized.

An activation is hidden if there is a layer before it and another behind it. If its result is multiplied with another
signal, it is a gate and stays. The last activation is the model's output and stays. A layer can be normalized, or get a
residual connection, if its result goes to one such activation or layer and nowhere else.

Places contain only names of modules and sites in the code, so that they can be copied and stored with the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from gradmedic.torch.remedies.modules.normalized_layers import NORMALIZED_LAYERS
from gradmedic.torch.remedies.modules.trace import INPUT, Call, CallSite, Trace
from gradmedic.torch.remedies.modules.transformer_places import (
    NORMS,
    Attention,
    find_attentions,
    find_residual_branches,
    passes,
)

ACTIVATIONS = frozenset({
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "expit", "tanh",
    "hardtanh", "hardsigmoid", "hardswish", "softplus", "softsign", "tanhshrink", "logsigmoid", "log_sigmoid",
})  # fmt: skip
"""Functions that may be replaced. Those with parameters of their own, as `prelu`, stay."""
MATH_FUNCTIONS = frozenset({
    "exp", "exp2", "expm1", "square", "pow", "__pow__", "sinh", "cosh", "asinh", "arcsinh", "sin", "cos", "tan", "atan",
    "arctan", "erf", "abs", "log1p", "clamp", "clip", "clamp_min",
})  # fmt: skip
"""Functions that are activations only right behind a layer. `x * x` counts as `square`."""
_FRACTIONS = frozenset({"sigmoid", "expit", "hardsigmoid"})
"""Activations between 0 and 1. They are gates also if the other factor is an input; other activations are masked."""
_PARTS = frozenset({"chunk", "split", "unbind", "__getitem__", "stack", "cat"})
"""Functions that cut a signal into parts, or join it with others."""
_PRODUCTS = frozenset({
    "mul", "__mul__", "__rmul__", "__imul__", "multiply", "lerp", "addcmul", "matmul", "__matmul__", "bmm", "mm",
    "einsum", "baddbmm",
})  # fmt: skip
"""Functions that multiply signals."""
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Modules that remedies change, if they are of exactly these classes: a subclass may compute something else."""

NO_LAYER = "no hidden layer whose output goes to exactly one activation or layer"
"""Why there is nothing to normalize and no block, unless there are other reasons."""


@dataclass(frozen=True, slots=True)
class Place:
    """Calls of an activation inside one module."""

    owner: str
    """Name of the module."""
    site: CallSite
    ordinals: frozenset[int] | None = None
    """Which of the calls at the site in each call of the module, counted from 0; None means all of them."""


@dataclass(frozen=True, slots=True)
class Block:
    """A layer, with the activation behind it if there is one."""

    layer: str
    end: Place | None
    """Where the activation is called; None if another layer follows directly."""


@dataclass(slots=True)
class Places:
    """Where remedies may act in a model."""

    activations: list[tuple[Place, str]] = field(default_factory=list)
    """Hidden activations, each with the name of the function that is called now."""
    callers: set[str] = field(default_factory=set)
    """Modules that call a function at the site of one of these places, whether it may be replaced there or not."""
    normalizable: list[str] = field(default_factory=list)
    """Names of layers whose output may be normalized, in the order of their calls."""
    over_time: set[str] = field(default_factory=set)
    """Those of them whose rows are not independent examples: moments over the batch would mix time steps."""
    one_example: set[str] = field(default_factory=set)
    """Those of them whose batch is one example."""
    blocks: list[Block] = field(default_factory=list)
    """Blocks that may get a residual connection."""
    residual_branches: list[str] = field(default_factory=list)
    """Name of the last layer of each residual branch, in the order of the calls; once for each join."""
    attentions: list[Attention] = field(default_factory=list)
    """Calls of attention functions."""
    excluded: list[str] = field(default_factory=list)
    """Reasons why activations, and the layers before them, were left out."""
    not_normalizable: list[str] = field(default_factory=list)
    """Further reasons why layers cannot be normalized."""
    not_blocks: list[str] = field(default_factory=list)
    """Further reasons why layers are no blocks."""

    def without(self, modules: set[str]) -> Places:
        """Return the places outside of some modules, which are changed already."""
        return replace(
            self,
            activations=[(place, function) for place, function in self.activations if place.owner not in modules],
            normalizable=[layer for layer in self.normalizable if layer not in modules],
            blocks=[block for block in self.blocks if block.layer not in modules],
        )

    def explain_none(self, otherwise: str, further: Sequence[str] = ()) -> str:
        """Return why there is no place: the reasons for which some were left out, or `otherwise` if there are none."""
        return "; ".join(dict.fromkeys([*further, *self.excluded])) or otherwise


def find_places(model: nn.Module, trace: Trace) -> Places:
    """Return the places of a model, given a trace of a call."""
    return _PlaceFinder(model, trace).find()


def _is_layer_of_torch(module: nn.Module | None) -> bool:
    """Whether a module is a layer of torch, and not of a class derived from one."""
    if module is None:
        return False
    module_class = type_before_parametrizations(module)
    module_class = getattr(module_class, "cls_to_become", None) or module_class  # a lazy module becomes it when called
    return module_class in LAYERS or isinstance(module, NORMALIZED_LAYERS)


class _PlaceFinder:
    """Finds the places in one trace."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self._trace = trace
        self._calls = trace.calls
        self._consumers = trace.find_consumers()
        self._modules = dict(model.named_modules())
        self._has_layer_before = self._find_calls_behind_layers()
        self._has_layer_behind = self._find_calls_before_layers()
        self._places = Places()

    def find(self) -> Places:
        """Return the places."""
        replaceable = self._find_activations()
        sites = {place.site for place, _ in self._places.activations}
        self._places.callers = {call.owner for call in self._calls if call.site in sites}
        self._places.residual_branches = list(find_residual_branches(self._trace, self._modules))
        self._places.attentions = list(find_attentions(self._trace))
        for call in self._calls:
            module = self._modules.get(call.owner)
            if call.is_layer and _is_layer_of_torch(module) and call.owner_call == 0 and call.ordinal == 0:
                self._find_places_of_layer(call, replaceable)
        return self._places

    # --- activations --------------------------------------------------------------------------------------------------

    def _find_activations(self) -> Mapping[int, Place]:
        """Fill in `activations`; return the place of each call that may be replaced, by its index."""
        sites: dict[tuple[str, CallSite], list[Call]] = {}
        for call in self._calls:
            if call.name in ACTIVATIONS or (call.name in MATH_FUNCTIONS and self._is_behind_layer(call)):
                sites.setdefault((call.owner, call.site), []).append(call)
        places: dict[int, Place] = {}
        for (owner, site), calls in sites.items():
            is_replaceable: dict[int, bool] = {}  # by ordinal
            for call in calls:
                is_replaceable[call.ordinal] = self._may_be_replaced(call) and is_replaceable.get(call.ordinal, True)
            ordinals = frozenset(ordinal for ordinal, may_be_replaced in is_replaceable.items() if may_be_replaced)
            if not ordinals:
                if len({self._may_be_replaced(call) for call in calls}) > 1:
                    self._places.excluded.append(f"{owner or 'the model'} uses one activation for several purposes")
                continue
            place = Place(owner, site, None if len(ordinals) == len(is_replaceable) else ordinals)
            self._places.activations.append((place, calls[0].name))
            for call in calls:
                if call.ordinal in ordinals:
                    places[call.index] = place
        return places

    def _may_be_replaced(self, call: Call) -> bool:
        if call.is_recomputed:
            self._places.excluded.append(
                "an activation is recomputed by a checkpoint outside of the module that calls it"
            )
            return False
        if not self._has_layer_before[call.index] or not self._has_layer_behind[call.index]:
            return False
        if self._is_gate(call):
            self._places.excluded.append("an activation is a gate: its result is multiplied with another signal")
            return False
        return True

    def _is_behind_layer(self, call: Call) -> bool:
        if call.name in ("pow", "__pow__") and not any(value > 1 for value in call.constants):
            return False
        while len(call.sources) == 1 and call.sources[0] != INPUT:
            call = self._calls[call.sources[0]]
            if call.is_layer:
                return True
            if not passes(call):
                return False
        return False

    def _is_gate(self, call: Call) -> bool:
        """Whether a call's result is multiplied with another signal."""
        waiting, seen = [call], {call.index}
        while waiting:
            current = waiting.pop()
            for consumer in self._consumers.get(current.index, ()):
                if consumer.name in _PRODUCTS and len(consumer.sources) > 1:
                    others = [source for source in consumer.sources if source != current.index]
                    if call.name in _FRACTIONS or not all(self._is_free_of_weights(source) for source in others):
                        return True
                    is_masked = consumer.shape == current.shape
                else:
                    is_masked = False
                is_passed = is_masked or passes(consumer) or consumer.name in _PARTS
                if is_passed and consumer.index not in seen:
                    seen.add(consumer.index)
                    waiting.append(consumer)
        return False

    def _is_free_of_weights(self, index: int) -> bool:
        """Whether a signal is an input of the model, or is computed from inputs without weights, as a mask is."""
        if index == INPUT:
            return True
        call = self._calls[index]
        return not call.has_weights and all(self._is_free_of_weights(source) for source in call.sources)

    # --- layers -------------------------------------------------------------------------------------------------------

    def _find_places_of_layer(self, layer: Call, replaceable: Mapping[int, Place]) -> None:
        end = self._find_end(layer)
        if end is None or not self._has_layer_behind[layer.index]:
            return
        if not end.is_layer and end.index not in replaceable:
            return
        name = layer.owner
        if not self._is_normalized(layer, end):
            self._places.normalizable.append(name)
            is_convolution = not isinstance(self._modules[name], nn.Linear)
            if self._trace.module_calls[name] > 1 or (not is_convolution and len(layer.shape) != 2):
                self._places.over_time.add(name)
            elif layer.shape[0] < 2 and len(layer.shape) == 2:
                self._places.one_example.add(name)
        else:
            self._places.not_normalizable.append("the hidden layers are normalized already")
        self._find_block(layer, end, replaceable)

    def _find_block(self, layer: Call, end: Call, replaceable: Mapping[int, Place]) -> None:
        last = layer if end.is_layer else end
        if last.shape != layer.input_shape:
            self._places.not_blocks.append("no block returns the shape of its input")
            return
        if layer.is_recomputed != last.is_recomputed:
            return
        if self._trace.module_calls[layer.owner] > 1:
            self._places.not_blocks.append(f"{layer.owner} is called several times: it is a recurrence or shared")
            return
        if self._joins_another(last):
            self._places.not_blocks.append("the blocks have a residual connection already")
            return
        self._places.blocks.append(Block(layer.owner, replaceable.get(end.index)))

    def _find_end(self, layer: Call) -> Call | None:
        """Return the one activation or layer that uses the result of a layer; None if there are several or others."""
        call = layer
        while True:
            following = self._consumers.get(call.index, [])
            if len(following) != 1:
                return None
            (call,) = following
            if call.is_layer or call.name in ACTIVATIONS or call.name in MATH_FUNCTIONS:
                return call
            if call.name not in NORMS and not passes(call):
                return None

    def _is_normalized(self, layer: Call, end: Call) -> bool:
        """Whether there is a normalization between a layer and the layers before or behind it."""
        call = layer
        while len(call.sources) == 1 and call.sources[0] != INPUT:
            call = self._calls[call.sources[0]]
            if call.name in NORMS:
                return True
            if call.is_layer:
                break
        waiting = [layer]
        seen = {layer.index}
        while waiting:
            for consumer in self._consumers.get(waiting.pop().index, ()):
                if consumer.name in NORMS:
                    return True
                is_passed = passes(consumer) or consumer.index == end.index
                if is_passed and not consumer.is_layer and consumer.index not in seen:
                    seen.add(consumer.index)
                    waiting.append(consumer)
        return False

    def _joins_another(self, last: Call) -> bool:
        """Whether a block's result is added to another signal, as in a residual connection."""
        waiting, seen = [last], {last.index}
        while waiting:
            for consumer in self._consumers.get(waiting.pop().index, ()):
                if not consumer.is_layer and len(consumer.sources) > 1:
                    return True
                if (passes(consumer) or consumer.name in NORMS) and consumer.index not in seen:
                    seen.add(consumer.index)
                    waiting.append(consumer)
        return False

    # --- the graph of calls -------------------------------------------------------------------------------------------

    def _find_calls_behind_layers(self) -> list[bool]:
        """Return of each call whether there is a layer before it."""
        is_behind = [False] * len(self._calls)
        for call in self._calls:
            is_behind[call.index] = any(
                source != INPUT and (self._calls[source].is_layer or is_behind[source]) for source in call.sources
            )
        return is_behind

    def _find_calls_before_layers(self) -> list[bool]:
        """Return of each call whether there is a layer behind it."""
        is_before = [False] * len(self._calls)
        for call in reversed(self._calls):
            for source in call.sources:
                if source != INPUT and (call.is_layer or is_before[call.index]):
                    is_before[source] = True
        return is_before
