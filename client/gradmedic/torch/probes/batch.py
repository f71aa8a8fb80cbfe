"""Looks at the batch of a step on which something is non-finite, or no gradient came: its inputs and its labels.

The newest batch is kept by reference until the end of its step. Earlier batches of the step, and tensors that an
operation computed, are known by weak references only, so that neither memory nor a graph is kept alive. Nothing is
computed on an ordinary step whose numbers are on the host. On a device, where it is not known yet whether the step is
ordinary, the counts are computed there and are dropped by the thread of the recorder.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradmedic.protocol.probes import name_metric
from gradmedic.torch.distributed import get_group_size
from gradmedic.torch.first_batch import tensors_in
from gradmedic.torch.loss_functions import begin_reading_labels, end_reading_labels
from gradmedic.torch.module_hooks import attach_forward_pre_hook
from gradmedic.torch.probes.meter import ProbeContext, ProbeMeter, ProbeValues
from gradmedic.torch.recorded_code import is_recorded
from gradmedic.torch.statistics import HostArray, PendingArray, local_part

logger = logging.getLogger("gradmedic")

INPUT_NONFINITE_COUNT = name_metric("input_nonfinite_count")
IGNORED_LABEL_SHARE = name_metric("ignored_label_share")
_MOST_INPUTS = 16
"""Input tensors of a step that are remembered: of more, the newest."""
_MOST_LABELS = 8
"""Targets of a step that are remembered: of more, the newest."""


class BatchMeter(ProbeMeter):
    """Counts the non-finite inputs and the ignored labels of a step that is out of the ordinary."""

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self._newest: tuple[Tensor, ...] = ()
        """The inputs of the newest call that no operation computed."""
        self._has_integers = False
        """Whether the model was called with integers, which are finite."""
        self._inputs: deque[tuple[weakref.ref[Tensor], int]] = deque(maxlen=_MOST_INPUTS)
        """Inputs of the step, with their version: one that has changed since is left out."""
        self._labels: deque[tuple[Tensor, int, int]] = deque(maxlen=_MOST_LABELS)
        """Integer targets of the step, with their version and the value that the loss ignores."""
        self._hooks = [_InputHook(model, self.note_inputs) for model in context.models]
        begin_reading_labels(self)

    def note_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the floating-point tensors that a model is called with."""
        if len(args) == 1 and not kwargs and type(args[0]) is Tensor:
            tensors = [args[0]]  # the usual case, and several times faster
        else:
            tensors = [tensor for value in (*args, *kwargs.values()) for tensor in tensors_in(value)]
        found = [tensor for tensor in tensors if _is_counted(tensor)]
        self._newest = tuple([tensor for tensor in found if tensor.grad_fn is None])
        self._inputs.extend([(weakref.ref(tensor), tensor._version) for tensor in found])
        if len(found) < len(tensors):
            self._has_integers = self._has_integers or any(not tensor.is_floating_point() for tensor in tensors)

    def note_labels(self, target: Tensor, ignore_index: int) -> None:
        """Remember the targets of a loss over classes."""
        if not target.is_floating_point() and target.numel() and not target.is_inference():
            self._labels.append((target, target._version, ignore_index))

    def examine(self) -> Sequence[ProbeValues]:
        """Count the non-finite inputs, and the share of the labels that are ignored: the largest of the step's calls.

        A count of zero is left out where it does not clear the whole input of the step: other processes have batches of
        their own, and earlier inputs may be gone.
        """
        inputs = [
            tensor
            for reference, version in self._inputs
            if (tensor := reference()) is not None and tensor._version == version
        ]
        counts = [_count_nonfinite(local_part(tensor.detach())) for tensor in inputs]
        shares = [
            (local_part(target) == ignored).float().mean()
            for target, version, ignored in self._labels
            if target._version == version
        ]
        is_whole = get_group_size() == 1 and len(inputs) == len(self._inputs) < _MOST_INPUTS
        if self._has_integers and not self._inputs:
            counts, is_whole = [torch.zeros(())], True
        return [
            *_read_together(INPUT_NONFINITE_COUNT, counts, torch.sum, skips_zero=not is_whole),
            *_read_together(IGNORED_LABEL_SHARE, shares, torch.max),
        ]

    def finish_step(self) -> Sequence[ProbeValues]:
        """Forget the batch."""
        self._newest = ()
        self._inputs.clear()
        self._has_integers = False
        self._labels.clear()
        return ()

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.close()
        end_reading_labels(self)
        self.finish_step()


class _InputHook:
    """Forward pre-hook of a model that shows its inputs. In a copy of the model it does nothing."""

    def __init__(self, model: nn.Module | None, note: Callable[[tuple[Any, ...], dict[str, Any]], None] | None) -> None:
        self._note = note
        self._hook = None if model is None else attach_forward_pre_hook(model, self)

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Show the arguments of a call that gradients are computed of."""
        if is_recorded() or self._note is None or not torch.is_grad_enabled():  # in this order: it cannot be traced
            return
        try:
            self._note(args, kwargs)
        except Exception as error:  # must not reach the script
            self.close()
            logger.warning("gradmedic: the inputs of the model are no longer seen: %r", error)

    def close(self) -> None:
        """Remove the hook."""
        self._note = None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def __reduce__(self) -> tuple[type[_InputHook], tuple[None, None]]:
        return _InputHook, (None, None)


def _is_counted(tensor: Tensor) -> bool:
    return (
        tensor.is_floating_point()
        and tensor.layout == torch.strided
        and tensor.numel() > 0
        and not tensor.is_inference()
    )


def _count_nonfinite(tensor: Tensor) -> Tensor:
    """Return the number of NaN and infinite elements: a finite number minus itself is zero, any other one is not."""
    return torch.count_nonzero(tensor - tensor)


def _read_together(
    name: str, numbers: Sequence[Tensor], join: Callable[[Tensor], Tensor], *, skips_zero: bool = False
) -> Iterator[ProbeValues]:
    """Iterate over at most one probe: the sum or the largest of some numbers, those of the newest tensor's device."""
    if not numbers:
        return
    device = numbers[-1].device
    joined = join(torch.stack([number for number in numbers if number.device == device]).double()).reshape(1)
    if device.type == "cpu":
        array: HostArray | PendingArray = HostArray(np.asarray(joined.tolist()))
    else:
        array = PendingArray(joined.float())
    yield ProbeValues((name,), array, skips_zero=skips_zero)
