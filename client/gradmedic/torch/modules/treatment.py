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

from gradmedic.protocol.remedies import Remedy
from gradmedic.torch.loss_scaling import LossScale, scale_losses
from gradmedic.torch.modules.calls import NAMES, AddInput, Calls, Change, Enter, Remember
from gradmedic.torch.modules.initialization import reinitialize, why_trained
from gradmedic.torch.modules.normalization import Normalize
from gradmedic.torch.modules.plan import Plan, make_plan
from gradmedic.torch.modules.recurrence import CellStates, replace_cells
from gradmedic.torch.modules.standardization import StandardizeInputs, StandardizeTargets
from gradmedic.torch.modules.trace import trace
from gradmedic.torch.modules.weight_normalization import normalize_weights
from gradmedic.torch.remedies import NotApplicable

logger = logging.getLogger("gradmedic")

AT_WATCH = ("replace_recurrent_cell", "reinitialize", "weight_normalization")
AT_FIRST_CALL = ("replace_activation", "insert_normalization", "add_residual")
AT_THE_EDGES = ("standardize_inputs", "standardize_targets")
NEW_SHAPES = ("replace_recurrent_cell", "weight_normalization")
"""Remedies that change which numbers the parameters hold, or how many parameters there are."""

_NO_LAYER = "no hidden layer that goes to one activation or layer"

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


class ModuleRemedies:
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
        self._awaited = {name: _Awaited(self, name) for name in self._models}
        self._is_closed = False
        self._states = CellStates()
        self._inputs: list[StandardizeInputs] = []
        self._targets: list[StandardizeTargets] = []
        self._normalizations: list[Normalize] = []
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
        if any(id in self._remedies for id in (*AT_FIRST_CALL, *AT_THE_EDGES, "replace_recurrent_cell")):
            # What hooks, modes and kept cell states change must not be compiled away, and a trial need not be fast.
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
        for normalize in self._normalizations:
            if normalize.reason is not None:
                return f"insert_normalization: {normalize.reason}"
        if not is_step_over:
            return None
        late = [id for id in self._remedies if id in (*AT_FIRST_CALL, *AT_THE_EDGES)] if self._models else []
        if late and not any(awaited.called for awaited in self._awaited.values()):
            return f"{late[0]}: the script computes past the model"
        for id in late:
            if not self._places[id] and id in AT_THE_EDGES:
                self._settle(id)
            if not self._places[id] and all(awaited.called for awaited in self._awaited.values()):
                return f"{id}: {'; '.join(dict.fromkeys(self._reasons[id]))}"
        if self.loss_scale is not None and not self.loss_scale.sees_half:
            return "scale_loss: nothing is computed in float16"
        return None

    def close(self) -> None:
        """Let the models be; weights, classes and places that were changed stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._is_closed = True
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
        awaited = self._awaited[name]
        for path, module in model.named_modules():
            self._handles.append(module.register_forward_pre_hook(_Begin(awaited, path), with_kwargs=True))
            self._handles.append(module.register_forward_hook(_End(awaited), always_call=True))
        # These are part of the model, and so stay when the treatment is over and come along with a copy.
        if "standardize_inputs" in self._remedies:
            inputs = StandardizeInputs(channel=_channel_of(model))
            self._inputs.append(inputs)
            model.register_forward_pre_hook(inputs, with_kwargs=True)
        if "standardize_targets" in self._remedies:
            targets = StandardizeTargets()
            self._targets.append(targets)
            model.register_forward_hook(targets)

    def begin(
        self, awaited: _Awaited, path: str, part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """The script itself calls a part of a model: if it is the first time, place what needs a trace."""
        if self._is_closed:
            return
        if self.loss_scale is not None and _computes_in_half(part):
            self.loss_scale.sees_half = True
        if any(path == other or other == "" or path.startswith(f"{other}.") for other in awaited.called):
            return  # also what a checkpoint calls again
        awaited.called.add(path)
        if not any(id in self._remedies for id in AT_FIRST_CALL):
            return
        try:
            plan = make_plan(part, trace(part, args, kwargs)).without(
                {each for each, module in part.named_modules() if _is_changed(module)}
            )
        except NotApplicable as reason:
            for id in AT_FIRST_CALL:
                if id in self._remedies and not awaited.is_copy:
                    self._reasons[id].append(str(reason))
            return
        self._place(awaited, path, part, plan)

    def _place(self, awaited: _Awaited, path: str, part: nn.Module, plan: Plan) -> None:
        modules = dict(part.named_modules())
        changes: list[Change] = []
        found: dict[str, tuple[list[str], str]] = {}
        if (wanted := self._remedies.get("replace_activation")) is not None:
            activation = str(wanted["activation"])
            old = [place for place, function in plan.activations if function != NAMES[activation]]
            changes += [Change(place, activation=activation) for place in old]
            why = f"every hidden activation is {activation} already" if plan.activations else "no hidden activation"
            why = why if plan.activations else plan.why_nothing(why)
            found["replace_activation"] = [place.owner or "forward" for place in old], why
        if (wanted := self._remedies.get("insert_normalization")) is not None:
            kind = str(wanted["kind"])
            layers, why = plan.normalizable, plan.why_nothing(_NO_LAYER, plan.not_normalizable)
            if kind == "BatchNorm" and layers:
                # A lone example without gradients may be there for the shapes; one that is trained on is noticed later.
                single = plan.single if torch.is_grad_enabled() else set()
                layers = [layer for layer in layers if layer not in plan.over_time | single]
                why = "moments over a batch of time steps would show the future, and of one example there are none"
            for layer in layers:
                normalize = Normalize(kind)
                normalize.attach(modules[layer])
                if not awaited.is_copy:
                    self._normalizations.append(normalize)
            found["insert_normalization"] = layers, why
        if "add_residual" in self._remedies:
            for block in plan.blocks:
                if block.end is None:
                    modules[block.layer].register_forward_hook(AddInput())
                else:
                    changes.append(Change(block.end, layer=block.layer))
            why = plan.why_nothing(_NO_LAYER, plan.not_blocks)
            found["add_residual"] = [block.layer for block in plan.blocks], why
        if not awaited.is_copy:
            for id, (places, why) in found.items():
                self._note(id, ".".join(each for each in (awaited.name, path) if each), places, why)
        if changes:
            calls = Calls(changes)
            if calls.install(part, plan.callers):
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
        for (name, awaited), hook in zip(self._awaited.items(), hooks, strict=True):
            if isinstance(hook, StandardizeTargets):
                hook.settle()
            if hook.is_applied:
                self._places[id].append(name or "the model")
            elif awaited.called and "" not in awaited.called:
                self._reasons[id].append("the script calls parts of the model, never the model itself")
            elif hook.reason is not None:
                self._reasons[id].append(hook.reason)


class _Awaited:
    """A model whose calls are waited for.

    A copy of the model is waited for by itself: an average of the weights, or a target network, that is made before the
    first call has its remedies too. A model that comes from a file is not waited for.
    """

    def __init__(
        self, treatment: ModuleRemedies | None, name: str, called: Iterable[str] = (), *, is_copy: bool = False
    ) -> None:
        self.treatment, self.name, self.is_copy = treatment, name, is_copy
        self.called = set(called)
        """The parts that the script itself called, by path; the model itself is the part `""`."""
        self.depth = 0
        """How many calls of its modules are under way, one inside the other."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Awaited:
        return _Awaited(self.treatment, self.name, self.called, is_copy=True)

    def __reduce__(self) -> tuple[type[_Awaited], tuple[None, str]]:
        return _Awaited, (None, self.name)


class _Begin:
    """Forward pre-hook of each part of a model that is waited for."""

    def __init__(self, awaited: _Awaited, path: str) -> None:
        self._awaited, self._path = awaited, path

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell the treatment if the script itself calls the part."""
        self._awaited.depth += 1
        if self._awaited.depth == 1 and self._awaited.treatment is not None:
            self._awaited.treatment.begin(self._awaited, self._path, module, args, kwargs)


class _End:
    """Forward hook of each part of a model that is waited for."""

    def __init__(self, awaited: _Awaited) -> None:
        self._awaited = awaited

    def __call__(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Note that the call has returned, or raised."""
        self._awaited.depth -= 1


def _is_changed(module: nn.Module) -> bool:
    """Whether a module has its remedies already, from a call of a part of the model."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(
        isinstance(hook, (Normalize, AddInput, Remember)) or (isinstance(hook, Enter) and hook.has_changes)
        for hook in hooks
    )


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
