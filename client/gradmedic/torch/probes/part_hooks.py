"""Forward hooks of parts of models, which are there only while model and part train.

In `eval()`, torch computes some modules, such as those of a transformer's encoder, by a faster path if they have no
hooks. So when a model is called, the hooks of its parts are removed if the model or the part is in `eval()`, and
attached if both are in `train()`. Neither a compiler nor a tracer sees that.

A call of a hook takes time on every step, so the hooks are there only while a probe is due. In a process that uses
`torch.compile`, they stay as they are: compiled code depends on which hooks there are, and would be compiled again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from gradmedic.torch.module_hooks import AttachedHook, attach_forward_hook, attach_forward_pre_hook
from gradmedic.torch.recorded_code import count_compiled_frames, is_recorded
from gradmedic.torch.structure import unwrap_model


class ProbeHook:
    """A hook of a module. A copy of the module, also a pickled one, gets a hook that does nothing."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> None:
        """Call the function."""
        self._function(*arguments)

    def __reduce__(self) -> tuple[type[_InertHook], tuple[()]]:
        return _InertHook, ()


class _InertHook:
    """Takes the place of a hook in a copy of the model, and does nothing."""

    def __call__(self, *_arguments: Any) -> None:
        pass


class PartHook:
    """A forward hook of one part. It is attached while `PartHooks` allows it, until it is removed."""

    def __init__(self, module: nn.Module, function: Callable[..., None]) -> None:
        self._module, self._hook = module, ProbeHook(function)
        self._attached: AttachedHook | None = None
        self._is_removed = False

    def switch(self, *, may_attach: bool) -> None:
        """Attach the hook if it may be and the part trains, else detach it."""
        should_attach = may_attach and self._module.training and not self._is_removed
        if should_attach and self._attached is None:
            self._attached = attach_forward_hook(self._module, self._hook)
        elif not should_attach:
            self._detach()

    def remove(self) -> None:
        """Detach the hook for good."""
        self._is_removed = True
        self._detach()

    def _detach(self) -> None:
        if self._attached is not None:
            self._attached.remove()
            self._attached = None


class PartHooks:
    """The forward hooks of the parts of some models.

    Args:
        models: the models, perhaps inside wrappers.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._models = [unwrap_model(model)[0] for model in models]
        self._hooks: dict[int, list[PartHook]] = {id(model): [] for model in self._models}
        self._model_hooks: list[AttachedHook | None] = []
        self._is_due = True

    def add(self, part: nn.Module, function: Callable[..., None]) -> PartHook:
        """Call `function(part, arguments, output)` after each call of a part while its model trains."""
        if not self._model_hooks:
            self._model_hooks = [attach_forward_pre_hook(model, ProbeHook(self._follow_mode)) for model in self._models]
        hook = PartHook(part, function)
        owner = next(model for model in self._models if any(module is part for module in model.modules()))
        self._hooks[id(owner)].append(hook)
        hook.switch(may_attach=self._is_due and owner.training)
        return hook

    def follow_schedule(self, *, is_due: bool) -> None:
        """Attach the hooks when a probe becomes due, and detach them after it."""
        if is_due == self._is_due or count_compiled_frames():
            return
        self._is_due = is_due
        for model in self._models:
            self._switch(model)

    def close(self) -> None:
        """Remove all hooks."""
        for hooks in self._hooks.values():
            for hook in hooks:
                hook.remove()
            hooks.clear()
        for model_hook in self._model_hooks:
            if model_hook is not None:
                model_hook.remove()
        self._model_hooks.clear()

    def _follow_mode(self, model: nn.Module, *_arguments: Any) -> None:
        """Attach or detach the hooks of a model that is being called, where a mode has changed."""
        if not is_recorded() and self._is_due:  # in this order: the second condition must not be compiled
            self._switch(model)

    def _switch(self, model: nn.Module) -> None:
        for hook in self._hooks.get(id(model), ()):
            hook.switch(may_attach=self._is_due and model.training)
