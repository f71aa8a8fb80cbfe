"""Repeats a step on copies of the models, and finds the origin of what is not finite.

The random generators, the models, their gradients and buffers, and the tensors of the script stay as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradmedic.protocol.origins import Origin
from gradmedic.torch.origin.finder import OriginFinder
from gradmedic.torch.origin.generators import GeneratorState
from gradmedic.torch.origin.loss_tape import uses_compiler
from gradmedic.torch.origin.module_copies import CannotCopy, ModuleCopies, set_training
from gradmedic.torch.origin.numbers import are_finite, dense_part, has_nan, is_finite
from gradmedic.torch.origin.step_record import Given, Item, Made, StepRecord, tensors_of

_MOST_OPERATIONS = 16
"""Operations of the loss that are named where nothing else is known."""


class CannotRepeat(Exception):
    """The step cannot be repeated; the message names the reason."""


def find_origin(record: StepRecord, models: Mapping[str, nn.Module]) -> Origin:
    """Repeat a step, and return the origin of its first non-finite number, or the reason why there is none.

    Args:
        record: what the step computed.
        models: the watched models, without wrappers, in the order in which the record counts them.
    """
    generators = GeneratorState.capture()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            is_eager = uses_compiler()
            if is_eager:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            origin = _Replay(record, models).run()
        return dataclasses.replace(origin, is_eager=True) if is_eager and origin.operation is not None else origin
    except (CannotRepeat, CannotCopy) as error:
        return Origin(reason=str(error))
    except torch.OutOfMemoryError:
        return Origin(reason="there is not enough memory to repeat the step on a copy of the model")
    except Exception as error:  # the script's own code may raise anything when it runs twice
        return Origin(reason=f"the step could not be repeated: {type(error).__name__}: {str(error)[:200]}")
    finally:
        generators.restore()


class _Replay:
    """One repetition of a step."""

    def __init__(self, record: StepRecord, models: Mapping[str, nn.Module]) -> None:
        self._record = record
        if any(given.has_changed for given in record.given):
            raise CannotRepeat("a tensor that the step used was changed in place since")
        if not are_finite(given.tensor for given in record.given if given.is_computed):
            raise CannotRepeat(
                "the step used a tensor that was not finite already, computed outside of the watched models"
            )
        self._copies = ModuleCopies(models)
        if not are_finite(self._copies.parameters):
            raise CannotRepeat("the weights are not finite any more, so that no operation of this step is the origin")
        self._models = list(self._copies.models.values())
        self._finder = OriginFinder(self._copies.modules())
        self._made: dict[int, Tensor] = {}
        self._given: dict[int, Tensor] = {}

    def run(self) -> Origin:
        record = self._record
        for number, given in enumerate(record.given):
            self._given[number] = self._copy_given(given)
        with torch.enable_grad(), self._finder:
            for item in record.items:
                self._repeat(item)
        roots = [self._made[root.number] for root in record.roots if root.number is not None]
        is_whole = bool(roots) and len(roots) == len(record.roots)
        losses = [root.detach() for root in roots]
        is_loss_finite = all(map(is_finite, losses)) if is_whole else None
        origin = self._finder.explain(losses)
        if origin is None and (is_whole or are_finite(record.output_gradients.values())):
            with self._finder:
                self._run_backward(roots if is_whole else [])
            leaves = [*self._copies.parameters, *self._given.values()]
            origin = self._finder.explain([dense_part(leaf.grad) for leaf in leaves if leaf.grad is not None])
        if origin is None and not is_whole:  # a NaN in an output reaches the loss; an infinity may be a mask
            outputs = [self._made[number].detach() for item in record.items for number in item.outputs]
            origin = self._finder.explain([output for output in outputs if has_nan(output)])
        if self._finder.failure is not None:
            raise self._finder.failure
        if origin is None:
            return self._explain_nothing(is_whole=is_whole)
        return dataclasses.replace(origin, reproduced="1 of 1", is_loss_finite=is_loss_finite)

    def _repeat(self, item: Item) -> None:
        """Make a call again, from the line that made it."""
        self._finder.calls.outer = (item.place, None)
        args, kwargs = self._decode(item.args), self._decode(item.kwargs)
        with item.precision.apply(), torch.set_grad_enabled(item.records_gradient):
            if isinstance(item.function, int):
                model = self._models[item.function]
                self._finder.calls.outer = (item.place, "")
                if item.training is not None:
                    set_training(model, item.training)
                if item.generators is not None:
                    item.generators.restore()
                output = model(*args, **kwargs)
            else:
                output = item.function(*args, **kwargs)
        tensors = tensors_of(output)
        if len(tensors) != len(item.outputs):
            raise CannotRepeat("an operation returned other tensors when it was repeated")
        self._made.update(zip(item.outputs, tensors, strict=True))

    def _run_backward(self, roots: Sequence[Tensor]) -> None:
        """Compute the gradients: of the losses, or of the outputs whose gradients were kept."""
        if roots:
            seeds: list[Tensor | None] = [None] * len(roots)
        else:
            kept = self._record.output_gradients
            roots = [self._made[number] for number in kept if number in self._made]
            seeds = [kept[number] for number in kept if number in self._made]
        pairs = [(root, seed) for root, seed in zip(roots, seeds, strict=True) if root.requires_grad]
        if pairs:
            torch.autograd.backward([root for root, _ in pairs], [seed for _, seed in pairs])

    def _explain_nothing(self, *, is_whole: bool) -> Origin:
        operations = [name for root in self._record.roots for name in _list_operations(root.node)]
        if is_whole and any(given.is_computed for given in self._record.given):
            return Origin(reason="the loss also depends on what was computed outside of the watched models")
        if is_whole:
            return Origin(reproduced="0 of 1", reason="every number was finite when the step was repeated")
        if not self._record.roots and not self._record.output_gradients:
            reason = "the backward pass was not seen"
        else:
            reason = "the loss is computed outside of the watched model, by operations that were not recorded"
        return Origin(operations=operations, reason=reason)

    def _copy_given(self, given: Any) -> Tensor:
        own = self._copies.find(given.original)
        if own is not None:
            return own
        copied: Tensor = given.tensor.detach().clone()
        if given.requires_grad and (copied.is_floating_point() or copied.is_complex()):
            copied.requires_grad_()
        return copied

    def _decode(self, value: Any) -> Any:
        if isinstance(value, Made):
            if value.number not in self._made:
                raise CannotRepeat("an operation used a tensor that was not recorded")
            return self._made[value.number]
        if isinstance(value, Given):
            return self._given[value.number]
        if isinstance(value, list):
            return [self._decode(item) for item in value]
        if isinstance(value, tuple):
            items = [self._decode(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if isinstance(value, dict):
            copied = value.copy()
            copied.update((key, self._decode(item)) for key, item in value.items())
            return copied
        return value


def _list_operations(node: Any) -> list[str]:
    """Return the names of the first operations of a graph, from the loss backwards."""
    names: list[str] = []
    waiting, seen = [node], set[Any]()
    while waiting and len(names) < _MOST_OPERATIONS:
        current = waiting.pop(0)
        if current is None or current in seen:
            continue
        seen.add(current)
        names.append(current.name().removesuffix("0").removesuffix("Backward"))
        waiting.extend(follower for follower, _ in current.next_functions)
    return names
