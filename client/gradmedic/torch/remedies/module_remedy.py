"""The bases of remedies that change modules of a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradmedic.torch.remedies.base import TorchRemedy
from gradmedic.torch.remedies.modules.changed_calls import CallChange
from gradmedic.torch.remedies.modules.places import Places
from gradmedic.torch.remedies.modules.trace import Trace
from gradmedic.torch.remedies.step_remedy import StepRemedy


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleContext:
    """Facts about the script that all remedies of one `watch()` share."""

    optimizers: Sequence[Optimizer]
    """Optimizers that update the models."""
    seed: int
    """Seed of the trial."""


@dataclass(frozen=True, slots=True)
class AppliedPlaces:
    """The places in one model where a remedy was applied."""

    places: Sequence[str]
    """Names of modules, or of what they call."""
    reason: str
    """Why it was applied nowhere. It counts only if there are no places."""


class ModuleRemedy(TorchRemedy):
    """A remedy that changes modules. There is one instance for all models of one `watch()`.

    Args:
        parameters: parameters of the remedy, by name.
        context: facts about the script that the remedy needs.
    """

    accepts_data_parallel: ClassVar[bool] = False
    """Whether it works under `torch.nn.DataParallel`, which computes with copies of the modules."""
    accepts_sharded: ClassVar[bool] = False
    """Whether it works with parameters that are sharded over processes."""
    changes_parameters: ClassVar[bool] = False
    """Whether it adds parameters or gives some another shape."""
    needs_parameters: ClassVar[bool] = False
    """Whether it needs the parameters at `watch()`, when lazy modules have none yet."""
    needs_eager: ClassVar[bool] = False
    """Whether `torch.compile` would compile away what it does."""
    acts_at_calls: ClassVar[bool] = False
    """Whether it has to see the first call of each model."""
    scales_losses: ClassVar[bool] = False
    """Whether it excludes a loss scaler of the script."""

    def __init__(self, parameters: Mapping[str, Any], context: ModuleContext) -> None:
        super().__init__(parameters)
        self.context = context
        self.places: list[str] = []
        """Where it was applied, by names of modules."""
        self.reasons: list[str] = []
        """Why it was not applied elsewhere."""

    def reason_against(self, model: nn.Module, wrappers: set[str]) -> str | None:
        """Return why the remedy cannot be applied to a model, None if nothing is known against it.

        Args:
            model: without wrappers.
            wrappers: class names of the wrappers that were around it.
        """
        if "DataParallel" in wrappers and not self.accepts_data_parallel:
            return "DataParallel computes with copies of the modules"
        if "DistributedDataParallel" in wrappers and self.changes_parameters:
            return "DistributedDataParallel has laid out the parameters already"
        if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
            return "the model is scripted: its code is no longer Python's"
        parameters = list(model.parameters())
        if not self.accepts_sharded and any(hasattr(parameter, "device_mesh") for parameter in parameters):
            return "the parameters are sharded"
        if self.needs_parameters and any(is_lazy(parameter) for parameter in parameters):
            return "parameters are built at the first call only"
        return None

    def start(self) -> None:
        """Begin to act, once nothing is known against any remedy of the candidate."""

    def step_remedies(self, optimizer: Optimizer) -> Sequence[StepRemedy]:  # noqa: ARG002
        """Return what has to be done at each step of an optimizer for this remedy."""
        return ()

    def observe_call(self, part: nn.Module) -> None:
        """Act whenever the script itself calls a part of a model, if `acts_at_calls`."""

    @property
    def failure(self) -> str | None:
        """Reason why the remedy turned out not to be applicable, as soon as it is known."""
        return None

    @property
    def failure_after_step(self) -> str | None:
        """Reason that counts only after the first step."""
        return None

    def add_places(self, model: str, applied: AppliedPlaces) -> None:
        """Add the places in the model, or part of a model, of this name."""
        self.places += [f"{model}.{place}" if model else place for place in applied.places]
        if not applied.places:
            self.reasons.append(applied.reason)

    def join_reasons(self) -> str:
        """Return the reasons as one text, each once."""
        return "; ".join(dict.fromkeys(self.reasons))

    def close(self) -> None:
        """Stop acting; weights, classes and places that were changed stay as they are."""


class WeightRemedy(ModuleRemedy):
    """A remedy that changes parameters, or the gradients that reach them, at `watch()`, before any call."""

    needs_parameters = True

    def change_weights(self, model: nn.Module) -> AppliedPlaces:
        """Change the parameters of a model.

        Raises:
            NotApplicable: they must stay as they are.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstCall:
    """The first call of a part of a model by the script."""

    name: str
    """Name of the model and of the part in it. A copy of the model has the same."""
    args: tuple[Any, ...]
    """Positional arguments."""
    kwargs: Mapping[str, Any]
    """Named arguments."""
    trace: Trace
    """What a copy of the part computes from these arguments."""


class CallRemedy(ModuleRemedy):
    """A remedy that changes what a model computes, and finds its places in a trace of the first call."""

    needs_eager = True
    acts_at_calls = True

    def observe_first_call(self, call: FirstCall) -> None:
        """Receive the first call of a part of a model, before `change_calls`."""

    def change_calls(
        self, part: nn.Module, places: Places, *, is_copy: bool
    ) -> tuple[AppliedPlaces, Sequence[CallChange]]:
        """Change a part of a model.

        Args:
            part: part of a model that the script itself calls.
            places: where remedies may act in it.
            is_copy: whether the part belongs to a copy of the watched model.

        Returns:
            Where the remedy acts, and which function calls must be changed for it.
        """
        raise NotImplementedError


class EdgeHook(Protocol):
    """The hook of one model by which its inputs or outputs are changed."""

    reason: str | None
    """Why nothing is changed."""

    @property
    def is_applied(self) -> bool:
        """Whether something is changed."""

    def finish_step(self) -> None:
        """End a step, and set the reason if nothing is changed by then."""


Hook = TypeVar("Hook", bound=EdgeHook)


class EdgeRemedy(ModuleRemedy, Generic[Hook]):
    """A remedy that changes the inputs or outputs of whole models by hooks, which see the first batch.

    The hooks are part of the models: they stay at the end, and copies of the models have them too.
    """

    accepts_sharded = True
    needs_eager = True
    acts_at_calls = True

    def __init__(self, parameters: Mapping[str, Any], context: ModuleContext) -> None:
        super().__init__(parameters, context)
        self.hooks: dict[str, Hook] = {}
        """The hook of each model, by the model's name."""

    def add_hook(self, name: str, model: nn.Module) -> None:
        """Add the hook to the model of this name."""
        raise NotImplementedError

    def finish_step(self, called_parts: Mapping[str, Collection[str]]) -> None:
        """End a step. Fill in `places` and `reasons`, given the parts that the script has called of each model."""
        for hook in self.hooks.values():
            hook.finish_step()
        if self.places:
            return
        for name, hook in self.hooks.items():
            called = called_parts[name]
            if hook.is_applied:
                self.places.append(name or "the model")
            elif called and "" not in called:
                self.reasons.append("the script calls parts of the model, never the model itself")
            elif hook.reason is not None:
                self.reasons.append(hook.reason)
