"""The base of hooks by which remedies change a module."""

from __future__ import annotations

from torch import nn


class RemedyHook:
    """A forward hook, or forward pre-hook, by which a remedy changes one module."""

    @property
    def changes_module(self) -> bool:
        """Whether the module of the hook is changed."""
        return True


def is_changed(module: nn.Module) -> bool:
    """Whether a remedy changes a module already, so that it must not be changed once more."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(isinstance(hook, RemedyHook) and hook.changes_module for hook in hooks)
