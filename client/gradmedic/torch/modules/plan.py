"""Finds in a trace where each remedy has its place: which activations are hidden, which layers can be normalized.

One idea: a place is read from what flows where. An activation is hidden if a layer comes before it and another behind;
one whose result is multiplied with another signal is a gate and stays; the last one is the model's output and stays. A
layer can be normalized, or passed by, if its result goes to one such activation or layer and nowhere else.

A plan is data: names of modules and places in the code, so that it can be copied and stored with the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from gradmedic.torch.modules.trace import INPUT, Call, Site, Trace
from gradmedic.torch.modules.weight_normalization import NORMALIZED

ACTIVATIONS = frozenset({
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "expit", "tanh",
    "hardtanh", "hardsigmoid", "hardswish", "softplus", "softsign", "tanhshrink", "logsigmoid", "log_sigmoid",
})  # fmt: skip
"""Functions that are replaced; `prelu` and the like have parameters of their own and stay."""
GROWING = frozenset({"exp", "square", "pow", "__pow__"})
"""Functions that are activations only right behind a layer."""
_NORMS = frozenset({
    "layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize",
})  # fmt: skip
_PASSING = frozenset({
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "t",
    "clone", "to", "float", "half", "bfloat16", "type", "dropout", "dropout1d", "dropout2d", "dropout3d",
    "alpha_dropout", "feature_alpha_dropout", "max_pool1d", "max_pool2d", "max_pool3d", "boolean_dispatch",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "interpolate", "__get__", "movedim", "swapaxes", "pad",
})  # fmt: skip
"""Functions that a signal passes without becoming another one."""
_SCALING = frozenset({
    "add", "__add__", "__radd__", "__iadd__", "sub", "__sub__", "__rsub__", "rsub", "mul", "__mul__", "__rmul__",
    "div", "__truediv__", "neg", "__neg__",
})  # fmt: skip
"""Functions that are passed too where the other argument is a number or a parameter."""
_SHARES = frozenset({"sigmoid", "expit", "hardsigmoid"})
"""Activations between 0 and 1: multiplied with an input too, they are gates; others are masked by it."""
_PARTS = frozenset({"chunk", "split", "unbind", "__getitem__", "stack", "cat"})
_PRODUCTS = frozenset({
    "mul", "__mul__", "__rmul__", "__imul__", "multiply", "lerp", "addcmul", "matmul", "__matmul__", "bmm", "mm",
    "einsum", "baddbmm",
})  # fmt: skip
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Modules that remedies change, if they are of exactly these types: a subclass may compute what it likes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Calls of an activation inside one module: all at a site, or those with the ordinals given."""

    owner: str
    site: Site
    ordinals: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A layer and where its block ends: at an activation, or at itself."""

    layer: str
    end: Place | None
    """Where the activation is called; None where the layer is followed by the next one."""


@dataclass(slots=True)
class Plan:
    """Where remedies have their places."""

    activations: list[tuple[Place, str]] = field(default_factory=list)
    """With the function that stands there now."""
    callers: set[str] = field(default_factory=set)
    """Modules that call a function in one of these places of the code, whether it is replaced there or not."""
    normalizable: list[str] = field(default_factory=list)
    """Names of layers, in the order of their calls."""
    over_time: set[str] = field(default_factory=set)
    """Those whose rows are not independent examples: moments over the batch would mix time steps."""
    single: set[str] = field(default_factory=set)
    """Those that see one example at a time."""
    blocks: list[Block] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    """Reasons why activations were left out, and with them the layers before."""
    not_normalizable: list[str] = field(default_factory=list)
    """Reasons why further layers cannot be normalized."""
    not_blocks: list[str] = field(default_factory=list)
    """Reasons why further layers are no blocks."""

    def without(self, modules: set[str]) -> Plan:
        """Return the plan but for some modules: they have their remedies already."""
        return replace(
            self,
            activations=[(place, function) for place, function in self.activations if place.owner not in modules],
            normalizable=[layer for layer in self.normalizable if layer not in modules],
            blocks=[block for block in self.blocks if block.layer not in modules],
        )

    def why_nothing(self, otherwise: str, further: Sequence[str] = ()) -> str:
        """Say why there is no place: the reasons that were met, or the one given."""
        return "; ".join(dict.fromkeys([*further, *self.excluded])) or otherwise


def make_plan(model: nn.Module, trace: Trace) -> Plan:
    """Read the places from a trace."""
    return _Reader(model, trace).plan()


def _is_plain(module: nn.Module | None) -> bool:
    """Whether a module is a layer that computes what its type says."""
    if module is None:
        return False
    kind = type_before_parametrizations(module)
    kind = getattr(kind, "cls_to_become", None) or kind  # a lazy one becomes it at the first call
    return kind in LAYERS or isinstance(module, NORMALIZED)


class _Reader:
    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self._trace = trace
        self._calls = trace.calls
        self._consumers = trace.consumers()
        self._modules = dict(model.named_modules())
        self._has_layer_before = self._spread(forward=True)
        self._has_layer_behind = self._spread(forward=False)
        self._plan = Plan()

    def plan(self) -> Plan:
        replaceable = self._read_activations()
        sites = {place.site for place, _ in self._plan.activations}
        self._plan.callers = {call.owner for call in self._calls if call.site in sites}
        for call in self._calls:
            module = self._modules.get(call.owner)
            if call.is_layer and _is_plain(module) and call.turn == 0 and call.ordinal == 0:
                self._read_layer(call, replaceable)
        return self._plan

    # --- activations --------------------------------------------------------------------------------------------------

    def _read_activations(self) -> Mapping[int, Place]:
        """Fill in the activations; return the place of each call that is at one."""
        sites: dict[tuple[str, Site], list[Call]] = {}
        for call in self._calls:
            if call.name in ACTIVATIONS or (call.name in GROWING and self._is_behind_layer(call)):
                sites.setdefault((call.owner, call.site), []).append(call)
        places: dict[int, Place] = {}
        for (owner, site), calls in sites.items():
            by_ordinal: dict[int, bool] = {}
            for call in calls:
                may = self._may_be_replaced(call)
                by_ordinal[call.ordinal] = may and by_ordinal.get(call.ordinal, True)
            kept = frozenset(ordinal for ordinal, may in by_ordinal.items() if may)
            if not kept:
                if len({self._may_be_replaced(call) for call in calls}) > 1:
                    self._plan.excluded.append(f"{owner or 'the model'} uses one activation for several purposes")
                continue
            place = Place(owner, site, None if len(kept) == len(by_ordinal) else kept)
            self._plan.activations.append((place, calls[0].name))
            for call in calls:
                if call.ordinal in kept:
                    places[call.index] = place
        return places

    def _may_be_replaced(self, call: Call) -> bool:
        if call.is_recomputed:
            self._plan.excluded.append(
                "an activation is recomputed by a checkpoint outside of the module that calls it"
            )
            return False
        if not self._has_layer_before[call.index] or not self._has_layer_behind[call.index]:
            return False
        if self._is_gate(call):
            self._plan.excluded.append("an activation is a gate: its result is multiplied with another signal")
            return False
        return True

    def _is_behind_layer(self, call: Call) -> bool:
        if call.name in ("pow", "__pow__") and not any(value > 1 for value in call.constants):
            return False
        while len(call.sources) == 1 and call.sources[0] != INPUT:
            call = self._calls[call.sources[0]]
            if call.is_layer:
                return True
            if not self._passes(call):
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
                    if call.name in _SHARES or not all(self._is_given(source) for source in others):
                        return True
                    is_masked = consumer.shape == current.shape
                else:
                    is_masked = False
                is_passed = is_masked or self._passes(consumer) or consumer.name in _PARTS
                if is_passed and consumer.index not in seen:
                    seen.add(consumer.index)
                    waiting.append(consumer)
        return False

    def _is_given(self, index: int) -> bool:
        """Whether a signal is an input of the model, or made of inputs without any weights: a mask."""
        if index == INPUT:
            return True
        call = self._calls[index]
        return not call.has_weights and all(self._is_given(source) for source in call.sources)

    # --- layers -------------------------------------------------------------------------------------------------------

    def _read_layer(self, layer: Call, replaceable: Mapping[int, Place]) -> None:
        end = self._first_bend(layer)
        if end is None or not self._has_layer_behind[layer.index]:
            return
        if not end.is_layer and end.index not in replaceable:
            return
        name = layer.owner
        if not self._is_normalized(layer, end):
            self._plan.normalizable.append(name)
            is_convolution = not isinstance(self._modules[name], nn.Linear)
            if self._trace.turns[name] > 1 or (not is_convolution and len(layer.shape) != 2):
                self._plan.over_time.add(name)
            elif layer.shape[0] < 2 and len(layer.shape) == 2:
                self._plan.single.add(name)
        else:
            self._plan.not_normalizable.append("the hidden layers are normalized already")
        self._read_block(layer, end, replaceable)

    def _read_block(self, layer: Call, end: Call, replaceable: Mapping[int, Place]) -> None:
        last = layer if end.is_layer else end
        if last.shape != layer.input_shape:
            self._plan.not_blocks.append("no block gives back the shape that it was given")
            return
        if layer.is_recomputed != last.is_recomputed:
            return
        if self._trace.turns[layer.owner] > 1:
            self._plan.not_blocks.append(f"{layer.owner} is called several times: it is a recurrence or shared")
            return
        if self._joins_another(last):
            self._plan.not_blocks.append("the blocks have a residual connection already")
            return
        self._plan.blocks.append(Block(layer.owner, replaceable.get(end.index)))

    def _first_bend(self, layer: Call) -> Call | None:
        """Return the activation or layer that a layer's result goes to; None if it goes elsewhere, or to several."""
        call = layer
        while True:
            following = self._consumers.get(call.index, [])
            if len(following) != 1:
                return None
            (call,) = following
            if call.is_layer or call.name in ACTIVATIONS or call.name in GROWING:
                return call
            if call.name not in _NORMS and not self._passes(call):
                return None

    def _is_normalized(self, layer: Call, end: Call) -> bool:
        """Whether a normalization stands between a layer and the layers before or behind it."""
        call = layer
        while len(call.sources) == 1 and call.sources[0] != INPUT:
            call = self._calls[call.sources[0]]
            if call.name in _NORMS:
                return True
            if call.is_layer:
                break
        waiting = [layer]
        seen = {layer.index}
        while waiting:
            for consumer in self._consumers.get(waiting.pop().index, ()):
                if consumer.name in _NORMS:
                    return True
                is_passed = self._passes(consumer) or consumer.index == end.index
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
                if (self._passes(consumer) or consumer.name in _NORMS) and consumer.index not in seen:
                    seen.add(consumer.index)
                    waiting.append(consumer)
        return False

    # --- what flows where ---------------------------------------------------------------------------------------------

    def _passes(self, call: Call) -> bool:
        return len(call.sources) == 1 and not call.is_layer and (call.name in _PASSING or call.name in _SCALING)

    def _spread(self, *, forward: bool) -> list[bool]:
        """Say of each call whether a layer comes before it, or behind it."""
        found = [False] * len(self._calls)
        if forward:
            for call in self._calls:
                found[call.index] = any(
                    source != INPUT and (self._calls[source].is_layer or found[source]) for source in call.sources
                )
            return found
        for call in reversed(self._calls):
            for source in call.sources:
                if source != INPUT and (call.is_layer or found[call.index]):
                    found[source] = True
        return found
