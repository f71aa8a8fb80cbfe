"""Forward hooks of parts of models, which are there only while the models train.

In `eval()`, torch computes some modules, such as those of a transformer's encoder, by a faster path if they have no
hooks. So the hooks of the parts of a model are removed when the model is called in `eval()`, and attached again when it
is called in `train()`. Neither a compiler nor a tracer sees that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from gradmedic.torch.module_hooks import AttachedHook, attach_forward_hook, attach_forward_pre_hook
from gradmedic.torch.recorded_code import is_recorded
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

    def attach(self) -> None:
        """Attach the hook, unless it is or was removed for good."""
        if self._attached is None and not self._is_removed:
            self._attached = attach_forward_hook(self._module, self._hook)

    def detach(self) -> None:
        """Detach the hook for some time."""
        if self._attached is not None:
            self._attached.remove()
            self._attached = None

    def remove(self) -> None:
        """Detach the hook for good."""
        self._is_removed = True
        self.detach()


class PartHooks:
    """The forward hooks of the parts of some models.

    Args:
        models: the models, perhaps inside wrappers.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._models = [unwrap_model(model)[0] for model in models]
        self._hooks: dict[int, list[PartHook]] = {id(model): [] for model in self._models}
        self._is_training = {id(model): model.training for model in self._models}
        self._model_hooks: list[AttachedHook | None] = []

    def add(self, part: nn.Module, function: Callable[..., None]) -> PartHook:
        """Call `function(part, arguments, output)` after each call of a part while its model trains."""
        if not self._model_hooks:
            self._model_hooks = [attach_forward_pre_hook(model, ProbeHook(self._follow_mode)) for model in self._models]
        hook = PartHook(part, function)
        owner = next(model for model in self._models if any(module is part for module in model.modules()))
        self._hooks[id(owner)].append(hook)
        if self._is_training[id(owner)]:
            hook.attach()
        return hook

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
        """Attach or detach the hooks of a model that is being called, if its mode has changed."""
        if is_recorded() or self._is_training.get(id(model)) in (None, model.training):
            return
        self._is_training[id(model)] = model.training
        for hook in self._hooks[id(model)]:
            if model.training:
                hook.attach()
            else:
                hook.detach()
