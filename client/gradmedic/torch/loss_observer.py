"""Observes what the loss of a training means: its kind, its operations, its targets, and whether it is a surrogate.

It observes the first steps only, from one `log()` to the next. What it keeps are numbers and names: nothing of a graph
or a batch. Numbers of a device are copied without waiting, and are read by the thread of the recorder.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradmedic.protocol.runs import Loss
from gradmedic.torch.first_batch import tensors_in
from gradmedic.torch.graph import get_operation
from gradmedic.torch.loss_calls import REGRESSION_LOSSES, LossCall, copy_number, read_loss_call
from gradmedic.torch.loss_functions import (
    begin_observing,
    count_optimizers,
    end_observing,
    has_compiled,
    stop_observing,
)
from gradmedic.torch.loss_graph import KnownNodes, NodeId, identify, walk_loss
from gradmedic.torch.loss_summary import ObservedRoot, ObservedStep, summarize
from gradmedic.torch.module_hooks import attach_forward_hook
from gradmedic.torch.recorded_code import is_recorded
from gradmedic.torch.statistics import MeasuredArray, measure_norms, start_copy

logger = logging.getLogger("gradmedic")

_FEWEST_STEPS = 4
"""Steps that are observed at least: a batch may have one example, and losses may take turns."""
_MOST_STEPS = 20
"""Steps that are observed at most: as many as are sampled at the start of a run."""
_ENOUGH_TERMS = 256
"""Terms of the loss after which no more than `_FEWEST_STEPS` are needed: the entropy of ten classes is right to 2 %."""
_MOST_CALLS = 32
"""Calls of loss functions that are kept of one step: of a loop that accumulates more, the first ones."""
_MOST_CALLS_IN_ALL = 256
"""Calls after which nothing more is observed. A script that never calls `log()` costs no more than that."""
_MOST_NODES = 512
"""Outputs, and log-probabilities, that are kept of one step."""


@dataclass(slots=True)
class _CurrentStep:
    """What was observed since the last `log()`."""

    calls: list[LossCall] = field(default_factory=list)
    roots: list[ObservedRoot] = field(default_factory=list)
    outputs: dict[NodeId, Hashable] = field(default_factory=dict)
    log_probabilities: dict[NodeId, str] = field(default_factory=dict)
    own_samples: set[NodeId] = field(default_factory=set)
    has_inference: bool = False

    def known(self) -> KnownNodes:
        """Return the nodes that were seen."""
        losses = {call.node: call.kind for call in self.calls if call.node is not None}
        return KnownNodes(
            outputs=self.outputs,
            losses={**self.log_probabilities, **losses},
            log_probabilities=frozenset(self.log_probabilities),
            own_samples=frozenset(self.own_samples),
        )


class LossObserver:
    """Observes the loss of a training that a `Watch` observes.

    Args:
        models: the watched models.
        optimizers: number of the watched optimizers.
    """

    def __init__(self, models: Iterable[nn.Module], optimizers: int) -> None:
        self.target_rms: float | None = None
        """Root mean square of the targets of the first regression loss of the first step."""
        self.is_over = False
        """Whether nothing more will be observed."""
        self.optimizers = optimizers
        self._optimizers_in_all = optimizers
        self._steps: list[ObservedStep] = []
        self._current = _CurrentStep()
        self._steps_seen = 0
        self._calls_in_all = 0
        self._terms = 0
        self._summary: Loss | None = None
        self._is_summarized = False
        self._hooks = [_OutputHook(model, number, self) for number, model in enumerate(models)]
        begin_observing(self)

    # --- called by the watch --------------------------------------------------------------------------------------

    def finish_step(self, loss: Any) -> None:
        """Keep what was observed of a step.

        Args:
            loss: what the script logged as the loss, None if it logged none.
        """
        step, self._current = self._current, _CurrentStep()
        self._optimizers_in_all = max(self._optimizers_in_all, count_optimizers())
        try:
            graph = None
            if isinstance(loss, Tensor) and loss.grad_fn is not None and not is_recorded():
                graph = walk_loss(loss.grad_fn, step.known())[0]
            if graph is not None or step.calls or step.roots:
                self._steps.append(
                    ObservedStep(_copy_loss(loss), graph, tuple(step.calls), tuple(step.roots), step.has_inference)
                )
                self._terms += sum(call.count for call in step.calls)
        except Exception as error:  # must not reach the script
            self._give_up(error)
        self._steps_seen += 1
        is_enough = self._steps_seen >= _FEWEST_STEPS and self._terms >= _ENOUGH_TERMS
        if is_enough or self._steps_seen >= _MOST_STEPS:
            self._stop()

    def close(self) -> None:
        """Stop observing. After the last instance, torch's functions are the originals again."""
        self._stop()
        for hook in self._hooks:
            hook.close()
        end_observing(self)

    @property
    def revision(self) -> int:
        """A number that grows when `summary` may return more: after 1, 2, 4, 8 steps, and at the end."""
        return _MOST_STEPS if self.is_over else self._steps_seen.bit_length()

    def summary(self) -> Loss | None:
        """Return what is known of the loss, waiting for devices if needed. Called by the thread of the recorder."""
        is_last = self.is_over
        if not self._is_summarized:
            try:
                self._summary = summarize(self._steps.copy(), optimizers=self._optimizers_in_all)
            except Exception as error:  # must not reach the script
                self._give_up(error)
        if is_last:
            self._is_summarized = True
            self._steps.clear()
        return self._summary

    # --- called at the calls of torch's functions -------------------------------------------------------------------

    def note_loss(self, function: str, arguments: dict[str, Any], result: Tensor) -> None:
        """Keep a call of a loss function."""
        if function in REGRESSION_LOSSES and self._steps_seen == 0 and self.target_rms is None:
            self.target_rms = _measure_rms(arguments["target"])
        self._calls_in_all += 1
        if self._calls_in_all > _MOST_CALLS_IN_ALL:
            self._stop()
        elif len(self._current.calls) < _MOST_CALLS:
            self._current.calls.append(read_loss_call(function, arguments, result))

    def note_log_probability(self, kind: str, result: Tensor, *, is_own_sample: bool) -> None:
        """Keep the node of a log-probability."""
        step, node = self._current, identify(result.grad_fn)
        if node is None or len(step.log_probabilities) >= _MOST_NODES:
            return
        step.log_probabilities[node] = kind
        if is_own_sample:
            step.own_samples.add(node)

    def before_backward(self, roots: list[Tensor]) -> None:
        """Walk the graph of what gradients are computed of, and observe the gradients of log-probabilities."""
        known: KnownNodes | None = None
        for root in roots:
            if root.grad_fn is None or root.numel() != 1 or len(self._current.roots) >= _MOST_CALLS:
                continue
            known = known or self._current.known()
            graph, weighed = walk_loss(root.grad_fn, known)
            observed = ObservedRoot(copy_number(root), graph, [])
            for node in weighed:
                _observe_gradient(node, observed.policy_gradients)
            self._current.roots.append(observed)

    def note_inference(self) -> None:
        """Note that a model was called without gradients."""
        self._current.has_inference = True

    def note_output(self, model: int, output: Any) -> None:
        """Keep the nodes of an output of a model."""
        for place, tensor in enumerate(tensors_in(output)):
            node = identify(tensor.grad_fn)
            if node is not None and tensor.ndim and len(self._current.outputs) < _MOST_NODES:
                self._current.outputs[node] = (model, place)

    def _stop(self) -> None:
        self.is_over = True
        self._current = _CurrentStep()
        stop_observing(self)
        if not has_compiled():  # else the compiler would compile the model again
            for hook in self._hooks:
                hook.close()

    def _give_up(self, error: Exception) -> None:
        logger.warning("gradmedic: what the loss means could not be observed: %r", error)
        self._stop()


class _OutputHook:
    """Forward hook of a model that shows its outputs to an observer. In a copy of the model it does nothing."""

    def __init__(self, model: nn.Module | None, number: int, observer: LossObserver | None) -> None:
        self._number = number
        self._observer = observer
        self._hook = None if model is None else attach_forward_hook(model, self)

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Show an output."""
        if is_recorded() or self._hook is None or self._observer is None:  # in this order: the hook cannot be traced
            return
        if self._observer.is_over:
            return
        try:
            if torch.is_grad_enabled():
                self._observer.note_output(self._number, output)
            else:
                self._observer.note_inference()
        except Exception as error:  # must not reach the script
            self._observer._give_up(error)

    def close(self) -> None:
        """Remove the hook."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def __reduce__(self) -> tuple[type[_OutputHook], tuple[None, int, None]]:
        return _OutputHook, (None, 0, None)


def _copy_loss(loss: Any) -> MeasuredArray | float:
    """Return the logged loss, NaN if it is no number: the run warns of that."""
    if isinstance(loss, Tensor):
        return copy_number(loss)
    try:
        return math.nan if loss is None else float(loss.item() if hasattr(loss, "item") else loss)
    except (TypeError, ValueError):
        return math.nan


def _measure_rms(target: Any) -> float | None:
    if not isinstance(target, Tensor) or not target.is_floating_point() or not target.numel():
        return None
    with torch.no_grad():
        return float(measure_norms([target]).read()[0]) / math.sqrt(target.numel())


def _observe_gradient(node: Node, sums_of_signs: list[MeasuredArray]) -> None:
    """Copy the sums of the positive and of the negative gradients that reach a log-probability."""
    is_negative = get_operation(node).startswith("NllLoss")

    def observe(gradients: Sequence[Tensor | None]) -> None:
        if is_recorded() or not gradients or gradients[0] is None:
            return
        try:
            with torch.no_grad():
                gradient = -gradients[0].float() if is_negative else gradients[0].float()
                sums = torch.stack([gradient.clamp_min(0.0).sum(), gradient.clamp_max(0.0).sum()])
                sums_of_signs.append(start_copy(sums))
        except Exception as error:  # must not reach the script
            logger.warning("gradmedic: what the loss means could not be observed: %r", error)

    node.register_prehook(observe)
