"""The remedy that normalizes queries and keys before attention (Henry et al. 2020; Dehghani et al. 2023, section 2.1).

Each head's query and key get a root mean square of 1, without parameters. So no attention logit can grow beyond the
root of the head's size, however large the weights become.

Torch's own attention functions are changed: `scaled_dot_product_attention`, and `multi_head_attention_forward`, which
`nn.MultiheadAttention` calls. Attention that a script writes out itself is not found.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gradmedic.torch.remedies.module_remedy import AppliedPlaces, CallRemedy
from gradmedic.torch.remedies.modules.changed_calls import CallChange
from gradmedic.torch.remedies.modules.function_modes import leave_mode
from gradmedic.torch.remedies.modules.places import Places
from gradmedic.torch.remedies.modules.remedy_hook import RemedyHook
from gradmedic.torch.remedies.modules.trace import get_function_name

_MULTI_HEAD = inspect.signature(functional.multi_head_attention_forward)


class QkNorm(CallRemedy):
    """Normalizes queries and keys, head by head, in every module that calls an attention function."""

    id = "qk_norm"
    order = 15

    def change_calls(
        self,
        part: nn.Module,
        places: Places,
        *,
        is_copy: bool,  # noqa: ARG002
    ) -> tuple[AppliedPlaces, Sequence[CallChange]]:
        """Add hooks to the modules that call attention."""
        owners = list(dict.fromkeys(place.owner for place in places.attentions))
        for place in places.attentions:
            if place.is_recomputed:
                reason = "attention is recomputed by a checkpoint outside of the module that calls it"
                return AppliedPlaces([], reason), ()
            if place.is_normalized:
                return AppliedPlaces([], "queries or keys are normalized already"), ()
        if not owners:
            reason = "the model calls neither scaled_dot_product_attention nor MultiheadAttention"
            return AppliedPlaces([], reason), ()
        mode = NormalizedAttention()
        for owner in owners:
            module = part.get_submodule(owner)
            module.register_forward_pre_hook(EnterMode(mode), prepend=True)
            module.register_forward_hook(LeaveMode(mode), always_call=True)
        for module in part.modules():
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False  # changed functions do not accept nested tensors
        if "" in owners:
            mode.enter()  # this call has begun already; the hook at its end is yet to come
        return AppliedPlaces([owner or "forward" for owner in owners], ""), ()


class NormalizedAttention(TorchFunctionMode):
    """Normalizes queries and keys of attention functions that are called while a module of it runs."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def enter(self) -> None:
        """Begin the call of a module."""
        if self._depth == 0:
            self.__enter__()  # type: ignore[no-untyped-call]
        self._depth += 1

    def leave(self) -> None:
        """End the call of a module."""
        if self._depth:
            self._depth -= 1
            if self._depth == 0:
                leave_mode(self)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = get_function_name(func)
        if name == "scaled_dot_product_attention":
            named = dict(zip(("query", "key"), args, strict=False))
            others = {key: value for key, value in kwargs.items() if key not in ("query", "key")}
            query, key = (_normalize({**named, **kwargs}[each]) for each in ("query", "key"))
            return func(query, key, *args[2:], **others)
        if name == "multi_head_attention_forward":
            return _call_multi_head(func, args, kwargs)
        return func(*args, **kwargs)

    def __reduce__(self) -> tuple[type[NormalizedAttention], tuple[()]]:
        return NormalizedAttention, ()


class EnterMode(RemedyHook):
    """Forward pre-hook of a module that calls attention."""

    def __init__(self, mode: NormalizedAttention) -> None:
        self._mode = mode

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        """Begin the call of the module."""
        self._mode.enter()


class LeaveMode:
    """Forward hook of a module that calls attention; it also runs when the module raises."""

    def __init__(self, mode: NormalizedAttention) -> None:
        self._mode = mode

    def __call__(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """End the call of the module."""
        self._mode.leave()


def _normalize(signal: Tensor) -> Tensor:
    """Return a signal whose last dimension has a root mean square of 1."""
    return functional.rms_norm(signal, signal.shape[-1:]).to(signal.dtype)


def _call_multi_head(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call multi-head attention with queries and keys that are projected and normalized already.

    Their projections inside of the function are identities, which change nothing, to the bit.
    """
    arguments = _MULTI_HEAD.bind(*args, **kwargs).arguments
    size, heads = arguments["embed_dim_to_check"], arguments["num_heads"]
    if arguments.get("use_separate_proj_weight"):
        weights = [arguments[f"{name}_proj_weight"] for name in ("q", "k", "v")]
    else:
        weights = list(arguments["in_proj_weight"].chunk(3))
    bias = arguments["in_proj_bias"]
    biases = [None] * 3 if bias is None else list(bias.chunk(3))
    projected = {}
    for name, weight, part in zip(("query", "key"), weights, biases, strict=False):
        signal = functional.linear(arguments[name], weight, part)
        projected[name] = _normalize(signal.reshape(*signal.shape[:-1], heads, -1)).flatten(-2)
    identity = torch.eye(size, dtype=weights[2].dtype, device=weights[2].device)
    if bias is not None:
        arguments["in_proj_bias"] = torch.cat([torch.zeros_like(bias[: 2 * size]), bias[2 * size :]])
    arguments.update(
        projected,
        in_proj_weight=None,
        use_separate_proj_weight=True,
        q_proj_weight=identity,
        k_proj_weight=identity,
        v_proj_weight=weights[2],
    )
    return func(**arguments)
