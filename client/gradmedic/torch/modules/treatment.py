"""Applies remedies to the modules of watched models, in a fixed order, and says where.

One idea: two moments. At `watch()` what needs no run is done: cells, initialization, weight normalization, and the
conditions are checked. At a model's first call a copy of it is traced and the rest is placed: activations,
normalization, residual connections. After the first step everything must have found a place; what has not makes the
remedies not applicable, all of them: what is raced is what was asked for.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradmedic.torch.loss_scaling import LossScale, scale_losses
from gradmedic.torch.modules.calls import NAMES, AddInput, Calls, Change
from gradmedic.torch.modules.initialization import reinitialize, why_trained
from gradmedic.torch.modules.normalization import Normalize
from gradmedic.torch.modules.plan import Plan, make_plan
from gradmedic.torch.modules.recurrence import CellStates, replace_cells
from gradmedic.torch.modules.standardization import StandardizeInputs, StandardizeTargets
from gradmedic.torch.modules.trace import trace
from gradmedic.torch.modules.weight_normalization import normalize_weights
from gradmedic.torch.remedies import NotApplicable
from gradmedic.wire import Remedy

logger = logging.getLogger("gradmedic")

AT_WATCH = ("replace_recurrent_cell", "reinitialize", "weight_normalization")
AT_FIRST_CALL = ("replace_activation", "insert_normalization", "add_residual")
AT_THE_EDGES = ("standardize_inputs", "standardize_targets")
NEW_SHAPES = ("replace_recurrent_cell", "weight_normalization")
"""Remedies that change which numbers the parameters hold, or how many parameters there are."""

_treated: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def is_treated(model: nn.Module) -> bool:
    """Whether remedies are applied to a model."""
    return unwrapped(model) in _treated


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that `torch.compile` and data parallelism wrap."""
    return _unwrap(model)[0]


def _unwrap(model: nn.Module) -> tuple[nn.Module, set[str]]:
    wrappers = set()
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            wrappers.add("DistributedDataParallel")
            model = model.module
        elif isinstance(model, nn.DataParallel):
            wrappers.add("DataParallel")
            model = model.module
        elif isinstance(original := getattr(model, "_orig_mod", None), nn.Module):
            model = original
        else:
            return model, wrappers


class ModelTreatment:
    """The remedies of the modules of some models.

    Args:
        models: that are watched, by name.
        optimizers: that update them.
        remedies: of tier 2; others are ignored.
        seed: of the trial.

    Raises:
        NotApplicable: what can be said before the models are called.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], optimizers: Sequence[Optimizer], remedies: Sequence[Remedy], seed: int
    ) -> None:
        self._remedies = {remedy.id: remedy.parameters for remedy in remedies}
        self._optimizers = list(optimizers)
        self._seed = seed
        self._models: dict[str, nn.Module] = {}
        self._again: dict[str, nn.Module] = {}
        """Models that are treated already, and now watched with another optimizer: its weights are new."""
        for name, model in models.items():
            inner, wrappers = _unwrap(model)
            _check_wrappers(self._remedies, wrappers)
            _check_modules(self._remedies, inner)
            (self._again if inner in _treated else self._models)[name] = inner
        self._handles: list[RemovableHandle] = []
        self._places: dict[str, list[str]] = {id: [] for id in self._remedies}
        self._reasons: dict[str, list[str]] = {id: [] for id in self._remedies}
        self._depths: dict[str, int] = dict.fromkeys(self._models, 0)
        self._called: dict[str, set[str]] = {name: set() for name in self._models}
        """Of each model the parts that the script itself called, by path; the model itself is the part `""`."""
        self._changed: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        """Modules that have their remedies, from a call of a part of the model."""
        self._states = CellStates()
        self._inputs: list[StandardizeInputs] = []
        self._targets: list[StandardizeTargets] = []
        self._stance: Any = None
        self.loss_scale: LossScale | None = None

    @property
    def places(self) -> dict[str, list[str]]:
        """Where each remedy was applied, by its id."""
        return self._places

    def apply(self) -> None:
        """Do what needs no call of the models, and prepare the rest.

        Raises:
            NotApplicable: a remedy has no place.
        """
        for name, model in {**self._models, **self._again}.items():
            self._change_weights(name, model)
        for id in self._remedies:
            if id in AT_WATCH and not self._places[id] and not self._again:
                raise NotApplicable(f"{id}: {'; '.join(dict.fromkeys(self._reasons[id]))}")
        if any(id in self._remedies for id in (*AT_FIRST_CALL, *AT_THE_EDGES)):
            # What hooks and modes change must not be compiled away, and a trial need not be fast.
            self._stance = torch.compiler.set_stance("force_eager")
        if "scale_loss" in self._remedies:
            self.loss_scale = scale_losses(self._optimizers)
        for name, model in self._models.items():
            _treated.add(model)
            self._wait_for_call(name, model)

    def reason_to_end(self, *, is_step_over: bool) -> str | None:
        """Say which remedy cannot be applied after all, and why; None as long as nothing is known against one.

        Args:
            is_step_over: an optimizer has made a step since `watch()`.
        """
        if self._states.reason is not None:
            return f"replace_recurrent_cell: {self._states.reason}"
        if not is_step_over:
            return None
        late = [id for id in self._remedies if id in (*AT_FIRST_CALL, *AT_THE_EDGES)] if self._models else []
        if late and not any(self._called.values()):
            return f"{late[0]}: the script computes past the model"
        for id in late:
            if not self._places[id] and id in AT_THE_EDGES:
                self._settle(id)
            if not self._places[id] and all(self._called.values()):
                return f"{id}: {'; '.join(dict.fromkeys(self._reasons[id]))}"
        if self.loss_scale is not None and not self.loss_scale.sees_half:
            return "scale_loss: nothing is computed in float16"
        return None

    def close(self) -> None:
        """Let the models be; weights, classes and places that were changed stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._called.clear()
        for hook in self._targets:
            hook.finish()
        if self.loss_scale is not None:
            self.loss_scale.close()
        if self._stance is not None:
            torch.compiler.set_stance("default")
            self._stance = None

    # --- at watch() ---------------------------------------------------------------------------------------------------

    def _change_weights(self, name: str, model: nn.Module) -> None:
        if (cell := self._remedies.get("replace_recurrent_cell")) is not None:
            found = replace_cells(model, str(cell["cell"]), self._seed, self._optimizers, self._states)
            self._note("replace_recurrent_cell", name, found, "the model has no plain recurrent module")
        if (start := self._remedies.get("reinitialize")) is not None:
            reason = why_trained(model, self._optimizers)
            if reason is not None:
                raise NotApplicable(f"reinitialize: {reason}")
            updated = {id(p) for o in self._optimizers for group in o.param_groups for p in group["params"]}
            found = reinitialize(model, str(start["scheme"]), self._seed, updated)
            why = "the model has no linear, convolutional, recurrent or attention module that is trained"
            self._note("reinitialize", name, found, why)
        if "weight_normalization" in self._remedies:
            found = normalize_weights(model, self._optimizers)
            self._note("weight_normalization", name, found, "the model has no linear layer or convolution of its own")

    # --- at the first call --------------------------------------------------------------------------------------------

    def _wait_for_call(self, name: str, model: nn.Module) -> None:
        if not any(id in self._remedies for id in (*AT_FIRST_CALL, *AT_THE_EDGES, "scale_loss")):
            return
        # A script may call the model, or one part of it after the other, as many a `training_step` does.
        for path, module in model.named_modules():
            self._handles.append(module.register_forward_pre_hook(_Begin(self, name, path), with_kwargs=True))
            self._handles.append(module.register_forward_hook(_End(self, name), always_call=True))
        # These are part of the model, and so stay when the treatment is over and come along with a copy.
        if "standardize_inputs" in self._remedies:
            inputs = StandardizeInputs(channel=_channel_of(model))
            self._inputs.append(inputs)
            model.register_forward_pre_hook(inputs, with_kwargs=True)
        if "standardize_targets" in self._remedies:
            targets = StandardizeTargets()
            self._targets.append(targets)
            model.register_forward_hook(targets)

    def begin(self, name: str, path: str, part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A part of a model is called; the first time that the script itself calls it, place what needs a trace."""
        self._depths[name] += 1
        if self._depths[name] > 1:
            return
        if self.loss_scale is not None and _computes_in_half(part):
            self.loss_scale.sees_half = True
        called = self._called[name]
        if any(path == other or other == "" or path.startswith(f"{other}.") for other in called):
            return  # also what a checkpoint calls again
        called.add(path)
        if not any(id in self._remedies for id in AT_FIRST_CALL):
            return
        try:
            plan = make_plan(part, trace(part, args, kwargs)).without(
                {each for each, module in part.named_modules() if module in self._changed}
            )
        except NotApplicable as reason:
            for id in AT_FIRST_CALL:
                if id in self._remedies:
                    self._reasons[id].append(str(reason))
            return
        self._place(".".join(each for each in (name, path) if each), part, plan)

    def end(self, name: str) -> None:
        """It has returned, or raised."""
        self._depths[name] -= 1

    def _place(self, name: str, model: nn.Module, plan: Plan) -> None:
        modules = dict(model.named_modules())
        changes: list[Change] = []
        if (wanted := self._remedies.get("replace_activation")) is not None:
            activation = str(wanted["activation"])
            old = [place for place, function in plan.activations if function != NAMES[activation]]
            changes += [Change(place, activation=activation) for place in old]
            why = f"every hidden activation is {activation} already" if plan.activations else "no hidden activation"
            found = [place.owner or "forward" for place in old]
            self._note("replace_activation", name, found, why if plan.activations else plan.why_nothing(why))
        if (wanted := self._remedies.get("insert_normalization")) is not None:
            kind = str(wanted["kind"])
            layers, why = plan.normalizable, plan.why_nothing("no hidden layer that goes to one activation or layer")
            if kind == "BatchNorm" and layers:
                layers = [layer for layer in layers if layer not in plan.over_time | plan.single]
                why = "moments over a batch of time steps would show the future, and of one example there are none"
            for layer in layers:
                modules[layer].register_forward_hook(Normalize(kind))
            self._note("insert_normalization", name, layers, why)
        if "add_residual" in self._remedies:
            for block in plan.blocks:
                if block.end is None:
                    modules[block.layer].register_forward_hook(AddInput())
                else:
                    changes.append(Change(block.end, layer=block.layer))
            blocks = [block.layer for block in plan.blocks]
            self._note(
                "add_residual", name, blocks, plan.why_nothing("no hidden layer that goes to one activation or layer")
            )
        owners = [change.place.owner for change in changes]
        self._changed.update(modules[each] for each in {*owners, *plan.normalizable, *(b.layer for b in plan.blocks)})
        if changes:
            calls = Calls(changes)
            if calls.install(model):
                calls.enter("")  # this call of the model is under way already; its hook behind is yet to come

    def _note(self, id: str, model: str, found: Iterable[str], why_nothing: str) -> None:
        named = [f"{model}.{place}" if model else place for place in found]
        self._places[id] += named
        if not named:
            self._reasons[id].append(why_nothing)

    def _settle(self, id: str) -> None:
        hooks: Sequence[StandardizeInputs | StandardizeTargets] = (
            self._inputs if id == "standardize_inputs" else self._targets
        )
        for (name, called), hook in zip(self._called.items(), hooks, strict=True):
            if isinstance(hook, StandardizeTargets):
                hook.settle()
            if hook.is_applied:
                self._places[id].append(name or "the model")
            elif called and "" not in called:
                self._reasons[id].append("the script calls parts of the model, never the model itself")
            elif hook.reason is not None:
                self._reasons[id].append(hook.reason)


class _Begin:
    """Forward pre-hook of each part of a watched model; in a copy of the model, nothing."""

    def __init__(self, treatment: ModelTreatment | None, name: str, path: str) -> None:
        self._treatment, self._name, self._path = treatment, name, path

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell the treatment."""
        if self._treatment is not None:
            self._treatment.begin(self._name, self._path, module, args, kwargs)

    def __reduce__(self) -> tuple[type[_Begin], tuple[None, str, str]]:
        return _Begin, (None, self._name, self._path)


class _End:
    """Forward hook of each part of a watched model; in a copy of the model, nothing."""

    def __init__(self, treatment: ModelTreatment | None, name: str) -> None:
        self._treatment, self._name = treatment, name

    def __call__(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Tell the treatment."""
        if self._treatment is not None:
            self._treatment.end(self._name)

    def __reduce__(self) -> tuple[type[_End], tuple[None, str]]:
        return _End, (None, self._name)


def _check_wrappers(remedies: Iterable[str], wrappers: set[str]) -> None:
    for id in remedies:
        if "DataParallel" in wrappers and id != "reinitialize":
            raise NotApplicable(f"{id}: DataParallel computes with copies of the modules")
        if "DistributedDataParallel" in wrappers and id in NEW_SHAPES:
            raise NotApplicable(f"{id}: DistributedDataParallel has laid out the parameters already")


def _check_modules(remedies: Iterable[str], model: nn.Module) -> None:
    has_scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    parameters = list(model.parameters())
    for id in remedies:
        if has_scripted:
            raise NotApplicable(f"{id}: the model is scripted: its code is no longer Python's")
        if any(hasattr(p, "device_mesh") for p in parameters) and id not in AT_THE_EDGES:
            raise NotApplicable(f"{id}: the parameters are sharded")
        if any(is_lazy(p) for p in parameters) and id in (*AT_WATCH, "scale_loss"):
            raise NotApplicable(f"{id}: parameters are built at the first call only")


def _channel_of(model: nn.Module) -> int | None:
    """Return the dimension of the channels where a model begins with a convolution; its shape alone does not tell."""
    first = next(
        (module for module in model.modules() if next(module.parameters(recurse=False), None) is not None), None
    )
    return 1 if isinstance(first, nn.modules.conv._ConvNd) else None


def _computes_in_half(model: nn.Module) -> bool:
    parameter = next(model.parameters(), None)
    if parameter is None:
        return False
    device = parameter.device.type
    is_cast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return is_cast or parameter.dtype == torch.float16
