"""The parameters that a `Watch` observes, each of which is a layer of the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.runs import Layer
from gradmedic.recording.layers import LayerRegistry
from gradmedic.torch.execution import read_execution
from gradmedic.torch.first_forward import FirstForward
from gradmedic.torch.followers import Follower
from gradmedic.torch.statistics import MeasuredArray, local_part
from gradmedic.torch.structure import OwnedParameter, describe_layers, list_modules, list_parameters

logger = logging.getLogger("gradmedic")


class UnclippedGradient:
    """The statistics of a gradient that were measured before it was clipped."""

    __slots__ = ("array", "gradient", "row", "version")

    def __init__(self, array: MeasuredArray, row: int, gradient: Tensor) -> None:
        self.array = array
        """Statistics of several gradients, `[gradient, statistic]`."""
        self.row = row
        self.gradient = gradient
        self.version = gradient._version
        """Version counter of the gradient after the last clipping."""


class WatchedParameter:
    """A parameter under observation."""

    __slots__ = ("parameter", "position", "unclipped")

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.position = -1
        """Position of the layer in the run, -1 until the layer is described."""
        self.unclipped: UnclippedGradient | None = None

    def has_valid_unclipped(self) -> bool:
        """Whether the gradient was measured before clipping, and nothing but clipping has changed it since."""
        unclipped = self.unclipped
        return (
            unclipped is not None
            and unclipped.gradient is self.parameter.grad
            and unclipped.version == unclipped.gradient._version
        )

    def gradient(self) -> Tensor:
        """Return the gradient.

        Raises:
            RuntimeError: there is none.
        """
        gradient = self.parameter.grad
        if gradient is None:
            raise RuntimeError("a gradient disappeared while it was measured")
        return gradient


class WatchedLayers:
    """The parameters of some models, and of their optimizers.

    Args:
        models: by name.
        optimizers: optimizers that update the models.
        prefix: text in front of the names of the layers.

    Raises:
        ConfigurationError: there is no parameter, or the optimizers update none.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], optimizers: Sequence[torch.optim.Optimizer], prefix: str
    ) -> None:
        self._models = models
        self._optimizers = optimizers
        self._prefix = prefix
        self.owned = self._list_owned()
        if not self.owned:
            raise ConfigurationError("watch() needs a model with parameters")
        self.by_id = {id(owned.parameter): WatchedParameter(owned.parameter) for owned in self.owned}
        """Watched parameters by the id of the tensor."""
        if not self.by_id.keys() & self._list_updated():
            raise ConfigurationError("the optimizer updates no parameter of the model: was the model replaced since?")
        self._first_passes: list[FirstForward] = []
        self.layer_order: str | None = None
        """Source of the layers' depth (`LAYER_ORDERS`); None until the layers are described."""

    def begin(self, registry: LayerRegistry, after_first_pass: Callable[[], None]) -> None:
        """Reserve the names of the layers, and begin to observe the first forward passes of the models.

        Args:
            registry: registry of the run's layers.
            after_first_pass: function that is called after the first forward pass of a model.

        Raises:
            ConfigurationError: another watched model has layers of these names.
        """
        registry.reserve(owned.name for owned in self.owned)
        self._registry = registry
        self._first_passes = [FirstForward(model, after_first_pass) for model in self._models.values()]

    def release(self) -> None:
        """Let another watch of the model have these layers, and remove the hooks."""
        for forward in self._first_passes:
            forward.close()
        positions = [watched.position for watched in self.by_id.values() if watched.position >= 0]
        self._registry.release((owned.name for owned in self.owned), positions)

    def describe(self) -> None:
        """Add the layers to the registry, as they are now."""
        layers = self._describe(self.owned, self._list_updated())
        for owned, layer in zip(self.owned, layers, strict=True):
            self.by_id[id(owned.parameter)].position = self._registry.add(layer)

    def find_follower(self, parameter: int) -> Follower | None:
        """Return what follows a parameter, as far as a first forward pass has shown it, by the parameter's id."""
        uses = (forward.uses.get(parameter) for forward in self._first_passes)
        return next((use.follower for use in uses if use is not None), None)

    def list_unregistered(self) -> list[Tensor]:
        """Return the parameters that the models compute with and do not register, as far as first passes show them."""
        alive = (reference() for forward in self._first_passes for reference in forward.unregistered)
        return [parameter for parameter in alive if parameter is not None and id(parameter) not in self.by_id]

    def list_built(self) -> list[Tensor]:
        """Return the parameters of the models that have a shape; those of lazy modules get theirs at the first call."""
        return [owned.parameter for owned in self.owned if not is_lazy(owned.parameter)]

    def list_touched(
        self, optimizer: torch.optim.Optimizer, *, needs_gradient: bool
    ) -> tuple[list[WatchedParameter], dict[int, Mapping[str, Any]]]:
        """Return the parameters that an optimizer is about to update, and the optimizer's group of each.

        Args:
            optimizer: optimizer that is about to step.
            needs_gradient: whether only parameters with a gradient count; a closure may compute gradients later.

        Returns:
            Watched parameters, and groups by the ids of these objects.
        """
        touched: list[WatchedParameter] = []
        groups: dict[int, Mapping[str, Any]] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                watched = self.by_id.get(id(parameter)) or self._add(parameter)
                if parameter.grad is not None or (parameter.requires_grad and not needs_gradient):
                    touched.append(watched)
                    groups[id(watched)] = group
        return touched, groups

    def _add(self, parameter: Tensor) -> WatchedParameter:
        """Add a parameter that came into the optimizer after `watch()`, or that no model has."""
        unnamed = OwnedParameter(f"{self._prefix}parameter", parameter, None, "parameter")
        owned = next((owned for owned in self._list_owned() if owned.parameter is parameter), unnamed)
        self.owned.append(owned)
        watched = self.by_id[id(parameter)] = WatchedParameter(parameter)
        watched.position = self._registry.add(self._describe([owned], {id(parameter)})[0])
        return watched

    def _describe(self, owned: list[OwnedParameter], updated: set[int]) -> list[Layer]:
        try:
            module_names = {
                id(module): module_name
                for name, model in self._models.items()
                for module_name, module in list_modules(model, self._prefix + (f"{name}." if name else ""))
            }
            models = list(self._models.values())
            execution = read_execution(models, self._first_passes, self.owned)
            self.layer_order = self.layer_order or execution.layer_order
            return describe_layers(owned, models, updated, execution, module_names)
        except Exception as error:  # a model with tensors of a kind of its own
            logger.warning("gradmedic: of the layers, only names and shapes are recorded: %r", error)
            return [Layer(name=layer.name, shape=_read_shape(layer.parameter)) for layer in owned]

    def _list_owned(self) -> list[OwnedParameter]:
        return [
            owned
            for name, model in self._models.items()
            for owned in list_parameters(model, self._prefix + (f"{name}." if name else ""))
        ]

    def _list_updated(self) -> set[int]:
        """Return the ids of the parameters that the optimizers update."""
        return {id(p) for optimizer in self._optimizers for group in optimizer.param_groups for p in group["params"]}


def _read_shape(parameter: Tensor) -> list[int] | None:
    return None if is_lazy(parameter) else list(parameter.shape)


def group_by_device(watched: Sequence[WatchedParameter]) -> Iterable[list[WatchedParameter]]:
    """Return the parameters of each device."""
    groups: dict[torch.device, list[WatchedParameter]] = {}
    for parameter in watched:
        groups.setdefault(local_part(parameter.parameter).device, []).append(parameter)
    return groups.values()
