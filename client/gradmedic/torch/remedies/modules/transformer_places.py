"""Finds attention and residual branches in a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from gradmedic.torch.remedies.modules.trace import INPUT, Call, Trace

NORMS = frozenset({
    "layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize",
})  # fmt: skip
PASSING = frozenset({
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "t",
    "clone", "to", "float", "half", "bfloat16", "type", "dropout", "dropout1d", "dropout2d", "dropout3d",
    "alpha_dropout", "feature_alpha_dropout", "max_pool1d", "max_pool2d", "max_pool3d", "boolean_dispatch",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "interpolate", "__get__", "movedim", "swapaxes", "pad",
})  # fmt: skip
"""Functions that change the form of a signal, not its meaning."""
_SCALING = frozenset({
    "add", "__add__", "__radd__", "__iadd__", "sub", "__sub__", "__rsub__", "rsub", "mul", "__mul__", "__rmul__",
    "div", "__truediv__", "neg", "__neg__",
})  # fmt: skip
"""Functions of which the same holds if the other argument is a number or a parameter."""
_SUMS = frozenset({"add", "__add__", "__radd__", "__iadd__"})
"""Functions that join a residual branch with the path beside it."""
_ATTENTIONS = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})
"""Functions that compute attention as a whole."""
_QUERIES_AND_KEYS = 2
"""The first signals of an attention function."""


@dataclass(frozen=True, slots=True)
class Attention:
    """A call of a function that computes attention as a whole."""

    owner: str
    """Name of the module that calls it."""
    is_normalized: bool
    """Whether a normalization directly precedes its queries or keys."""
    is_recomputed: bool
    """Whether a checkpoint repeats it outside of its owner."""


def find_attentions(trace: Trace) -> Iterator[Attention]:
    """Iterate over the calls of attention functions."""
    for call in trace.calls:
        if call.name in _ATTENTIONS:
            is_normalized = not call.is_layer and any(
                _is_behind_normalization(trace, source) for source in call.sources[:_QUERIES_AND_KEYS]
            )
            yield Attention(call.owner, is_normalized, call.is_recomputed)


def find_residual_branches(trace: Trace, modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Iterate over the names of the modules whose layer ends a residual branch.

    A branch is a signal that is added to another one from which it was computed, through at least one layer. Between
    its last layer and the sum the signal is only passed on, or scaled by a number or a parameter; so may be the other
    one.
    """
    for call in trace.calls:
        if call.name not in _SUMS or len(call.sources) != 2 or INPUT in call.sources[1:]:
            continue
        for branch, path in (call.sources, call.sources[::-1]):
            layer = _find_last_layer(trace, branch)
            if layer is not None and layer.owner in modules and _depends_on(trace, layer, _find_start(trace, path)):
                yield layer.owner
                break


def _find_last_layer(trace: Trace, index: int) -> Call | None:
    """Return the layer that a signal comes from, if it is only passed on behind it."""
    while index != INPUT:
        call = trace.calls[index]
        if call.is_layer:
            return call
        if not passes(call):
            return None
        (index,) = call.sources
    return None


def _find_start(trace: Trace, index: int) -> int:
    """Return the call whose result is passed on, or scaled, up to this one."""
    while index != INPUT and passes(trace.calls[index]):
        (index,) = trace.calls[index].sources
    return index


def passes(call: Call) -> bool:
    """Whether a call that is no layer passes its one signal on, or scales it by a number or a parameter."""
    return len(call.sources) == 1 and not call.is_layer and (call.name in PASSING or call.name in _SCALING)


def _depends_on(trace: Trace, layer: Call, index: int) -> bool:
    """Whether the input of a layer was computed from a signal."""
    waiting, seen = list(layer.sources), set(layer.sources)
    while waiting:
        current = waiting.pop()
        if current == index:
            return True
        if current != INPUT:
            new = [source for source in trace.calls[current].sources if source not in seen and source >= index]
            seen.update(new)
            waiting += new
    return False


def _is_behind_normalization(trace: Trace, index: int) -> bool:
    """Whether there is a normalization between a signal and the layer it comes from."""
    waiting, seen = [index], {index}
    while waiting:
        current = waiting.pop()
        if current == INPUT or trace.calls[current].is_layer:
            continue
        if trace.calls[current].name in NORMS:
            return True
        new = [source for source in trace.calls[current].sources if source not in seen]
        seen.update(new)
        waiting += new
    return False
