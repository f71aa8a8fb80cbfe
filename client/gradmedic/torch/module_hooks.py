"""Attaches forward hooks to modules, so that `torch.jit.script` still takes the modules.

TorchScript compiles the hooks of a module, and fails at those here. So while there are such hooks, the function that
makes a scripted module is wrapped: it sees the module without them. A scripted module takes no hooks at all.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.jit import _recursive
from torch.jit._script import RecursiveScriptModule
from torch.utils.hooks import RemovableHandle

FAST_PATH_MODULES = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
"""Modules that compute differently in `eval()` while they or their parts have hooks."""

_attached: dict[int, AttachedHook] = {}
"""All attached hooks by the id of the hook's handle."""
_originals: list[Callable[..., Any]] = []
"""The function of torch that is wrapped; empty if there are no hooks."""


class AttachedHook:
    """A hook that is attached to a module, until it is removed."""

    def __init__(self, handle: RemovableHandle) -> None:
        self._handle = handle
        _attached[handle.id] = self
        if not _originals:
            _originals.append(_recursive.create_script_module)
            _recursive.create_script_module = _hide_hooks(_originals[0])

    def remove(self) -> None:
        """Remove the hook from its module. After the last one, torch's function is the original again."""
        self._handle.remove()
        _attached.pop(self._handle.id, None)
        if not _attached and _originals:
            _recursive.create_script_module = _originals.pop()


def list_fast_parts(model: nn.Module) -> set[int]:
    """Return the ids of the modules in a model whose hooks would change what is computed, and of their parts.

    In `eval()`, torch computes these by a faster path with kernels of its own, unless there is a hook.
    """
    fast = (module for module in model.modules() if isinstance(module, FAST_PATH_MODULES) and not module.training)
    return {id(part) for module in fast for part in module.modules()}


def attach_forward_hook(
    module: nn.Module, hook: Callable[..., None], *, always_call: bool = False
) -> AttachedHook | None:
    """Call `hook(module, arguments, output)` after each call of a module; return None if it is a scripted module.

    With `always_call`, also after a call that raises: the output is None then.
    """
    if _is_scripted(module):
        return None
    return AttachedHook(module.register_forward_hook(hook, always_call=always_call))


def attach_forward_pre_hook(
    module: nn.Module, hook: Callable[..., None], *, is_first: bool = False
) -> AttachedHook | None:
    """Call `hook(module, arguments, named arguments)` before each call of a module; None if it is a scripted module.

    With `is_first`, before the other hooks, which may change the arguments.
    """
    if _is_scripted(module):
        return None
    return AttachedHook(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=is_first))


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, RecursiveScriptModule)


def _hide_hooks(create: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create)
    def create_without_hooks(nn_module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for module in nn_module.modules():
                for hooks in (module._forward_hooks, module._forward_pre_hooks):
                    if not _attached.keys().isdisjoint(hooks):
                        stack.enter_context(_without_attached(hooks))
            return create(nn_module, *args, **kwargs)

    return create_without_hooks


@contextlib.contextmanager
def _without_attached(hooks: dict[int, Any]) -> Iterator[None]:
    kept = dict(hooks)
    for identity in _attached.keys() & kept.keys():
        del hooks[identity]
    try:
        yield
    finally:
        hooks.clear()
        hooks.update(kept)  # in the order that they had
