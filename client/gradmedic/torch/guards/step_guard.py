"""Decides on each step of the optimizers, before they change weights or their own state.

Hooks of the optimizers run after those of a `Watch`, so that statistics are those of the gradients as they came. A
step is left out by hiding the gradients from the optimizer until the step is over: then it changes nothing. Schedulers
and loss scalers see an ordinary step.

An error of a guard ends the guard, not the training.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradmedic.exceptions import UnhealthyRunError
from gradmedic.guard.policy import GuardPolicy
from gradmedic.guard.sentences import (
    describe_clipping,
    describe_nonfinite,
    describe_skipped_nonfinite,
    describe_spike,
    describe_standstill,
)
from gradmedic.guard.spike_rule import SpikeRule
from gradmedic.recording.action_draft import ActionDraft
from gradmedic.torch.clipping import limit_gradients
from gradmedic.torch.guards.consensus import Consensus
from gradmedic.torch.guards.gradient_norms import find_nonfinite
from gradmedic.torch.guards.norm_reader import NormReader, Reading, find_device
from gradmedic.torch.guards.running_statistics import RunningStatistics
from gradmedic.torch.hidden_gradients import HiddenGradients
from gradmedic.torch.lockstep import list_all_parameters
from gradmedic.torch.optimizer_hooks import NewArguments, OptimizerHooks

logger = logging.getLogger("gradmedic")

STANDSTILL = 50
"""Steps in a row with a non-finite gradient after which the guard reports that skipping does not help. They are still
skipped, because any of them would make the weights non-finite, but no longer listed one by one."""
MOST_ACTIONS = 500
"""Actions that are held between two calls of `log()`. A script that never logs makes more."""
MOST_WARNINGS = 3
"""Skipped steps of a training that are logged as warnings. The run's page lists all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a guard decided on a step of one optimizer. All processes of a training decide alike."""

    norm: float
    """L2 norm of the whole gradient, before clipping; NaN or infinite if an element is."""
    limit: float = math.inf
    """Norm above which the step is a spike; infinite while too few norms are known."""
    reason: str | None = None
    """Why the step is not taken (`GUARD_REASONS`); None if it is."""
    in_a_row: int = 0
    """Steps in a row that were not taken for this reason, this one included."""

    @property
    def is_skipped(self) -> bool:
        """Whether the step is not taken."""
        return self.reason is not None

    @property
    def is_trouble(self) -> bool:
        """Whether skipping did not help: spikes went on, or `STANDSTILL` steps in a row were not finite."""
        if self.reason == "nonfinite_gradient":
            return self.in_a_row == STANDSTILL
        return not self.is_skipped and self.in_a_row > 0


class Rewinder(Protocol):
    """Goes back to an earlier state of a training. A `StepGuard` calls it at the same steps in all processes."""

    def after_step(self, optimizer: Optimizer, decision: Decision | None) -> None:
        """Act after an optimizer's step, taken or not. The gradients are there.

        Args:
            optimizer: the optimizer.
            decision: decision on the step; None if it had no gradient, or if a loss scaler left it out.
        """

    def on_trouble(self, optimizer: Optimizer, decision: Decision) -> bool:
        """Act when skipping did not help, before the step; return whether the training went back.

        Then the step is not taken, because its gradient belongs to other weights.

        Args:
            optimizer: the optimizer.
            decision: a spike after as many in a row as are skipped, which is not skipped (`reason` is None), or the
                last one of `STANDSTILL` steps with a gradient that is not finite.
        """

    def on_signal(self, signal: float) -> bool:
        """Act on a number that the first process gave to `StepGuard.signal`; return whether the training went back.

        Then the step is not taken, and not judged.
        """


class StepObserver(Protocol):
    """Measures the steps that a guard decides on."""

    def after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        """Record that gradients were multiplied by `coefficient`."""


class StopSwitch(Protocol):
    """Ends a training."""

    def stop(self, reason: str) -> None:
        """Let the next `log()` raise `UnhealthyRunError`."""

    def is_stopping(self) -> bool:
        """Return whether the training is about to be stopped; raise the error if the script never calls `log()`."""


class StepGuard:
    """Guards the steps of some optimizers.

    Args:
        policy: what the guard may do.
        optimizers: the optimizers.
        list_names: function that returns the names of layers by the ids of their parameters, in the models' order.
        stop_switch: ends the training.
        models: the models whose running statistics a step that is not taken must not change.
        observer: measures the same steps; None in a process that does not measure.
        consensus: the common decisions of several processes; None if there is one process.
    """

    def __init__(
        self,
        policy: GuardPolicy,
        optimizers: Sequence[Optimizer],
        *,
        list_names: Callable[[], Mapping[int, str]],
        stop_switch: StopSwitch,
        models: Iterable[nn.Module] = (),
        observer: StepObserver | None = None,
        consensus: Consensus | None = None,
    ) -> None:
        self._policy, self._list_names, self._stop_switch = policy, list_names, stop_switch
        self._observer, self._consensus = observer, consensus
        self.optimizers = list(optimizers)
        """The optimizers whose steps are guarded."""
        self.rewinder: Rewinder | None = None
        """Acts after each step, and when skipping does not help."""
        self.is_over = False
        """Whether the guard does nothing any more."""
        self._rules = {id(optimizer): SpikeRule() for optimizer in optimizers}
        self._nonfinite_in_a_row = dict.fromkeys(self._rules, 0)
        self._max_norm = self._signal = 0.0
        needs_norms = policy.needs_norms or consensus is not None
        self._reader = NormReader(consensus) if needs_norms else None
        self._readings: dict[int, Reading | None] = {}
        self._decision: Decision | None = None
        self._skipping: Optimizer | None = None
        self._hidden = HiddenGradients()
        self._running_statistics = RunningStatistics(models if policy.needs_norms else ())
        self._versions = 0
        self._actions: list[ActionDraft] = []
        self._warnings_left = MOST_WARNINGS
        self._hooks = OptimizerHooks(optimizers, self._before_step, self._after_step)

    # --- called by the run, its watch and a rewinder ------------------------------------------------------------------

    @property
    def reads_norms(self) -> bool:
        """Whether `is_finite` may be called."""
        return self._reader is not None and self._consensus is None and not self.is_over

    def is_finite(self, optimizer: Optimizer) -> bool:
        """Return whether the gradient of the step that an optimizer begins is finite. Waits for a device, once."""
        try:
            reading = self._readings[id(optimizer)] = self._read(optimizer)
        except Exception as error:
            self._fail(repr(error))
            return True
        return reading is None or math.isfinite(reading.norm)

    def has_skipped(self, optimizer: Optimizer) -> bool:
        """Whether the step that an optimizer makes now is not taken."""
        return self._skipping is optimizer

    def take_actions(self) -> Sequence[ActionDraft]:
        """Return what guards did since the last call."""
        actions: list[ActionDraft] = []
        if self._actions:
            actions, self._actions = self._actions, actions
        return actions

    def add_action(self, action: ActionDraft) -> None:
        """Add what a guard did in this step of the run."""
        if len(self._actions) < MOST_ACTIONS:
            self._actions.append(action)

    def clip(self, max_norm: float) -> None:
        """Limit the norm of each optimizer's gradients from its next step on. That of the first process counts."""
        self._max_norm = max_norm
        self.add_action(
            ActionDraft(
                action="clip",
                reason="verdict",
                numbers={"max_norm": max_norm},
                explanation=describe_clipping(max_norm),
            )
        )

    def signal(self, signal: float) -> None:
        """Send a number other than 0 to the rewinders of all processes, at the next step. In the first process."""
        self._signal = signal

    def go_back(self) -> None:
        """Forget the last spikes: the training went back to before them."""
        for key, rule in self._rules.items():
            rule.go_back()
            self._nonfinite_in_a_row[key] = 0
        self._running_statistics.keep()

    def continue_from(self, other: StepGuard) -> None:
        """Take over what another guard has learnt about the same optimizers. Called at first."""
        for key in self._rules.keys() & other._rules.keys():
            self._rules[key] = other._rules[key]
        self._max_norm = other._max_norm
        self._actions = other._actions
        self.rewinder = other.rewinder

    def close(self) -> None:
        """Decide no more. Other processes learn it in the next step."""
        if self.is_over:
            return
        self.is_over = True
        if self._reader is not None:
            with suppress(Exception):  # perhaps it is what has failed
                self._reader.close()
        if self._consensus is None or self._consensus.is_over:
            self._hooks.close()
        else:
            self._consensus.withdraw()

    # --- hooks of the optimizers --------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NewArguments:
        self._hidden.show()  # after a step that raised
        self._decision = self._skipping = None
        closures = [value for value in (*args[1:], *kwargs.values()) if callable(value)]
        if not closures:
            self._decide_safely(optimizer)
            return None
        closure = closures[0]
        wrapped = self._wrap_closure(optimizer, closure)
        args = (args[0], *(wrapped if value is closure else value for value in args[1:]))
        return args, {name: wrapped if value is closure else value for name, value in kwargs.items()}

    def _wrap_closure(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return a closure after whose first call the step is decided. Later calls belong to a search along a line."""
        is_decided = False

        def wrapped() -> Any:
            nonlocal is_decided
            self._hidden.show()
            loss = closure()
            if not is_decided:
                is_decided = True
                self._decide_safely(optimizer)
            elif self._skipping is optimizer:
                self._hidden.hide(list_all_parameters(optimizer))
            return loss

        return wrapped

    def _after_step(self, optimizer: Optimizer) -> None:
        try:
            self._end_step(optimizer)
        except Exception as error:
            self._fail(repr(error))

    def _end_step(self, optimizer: Optimizer) -> None:
        if self._skipping is optimizer:
            parameters = self._hidden.parameters
            self._hidden.show()
            self._skipping = None
            self._running_statistics.restore()
            if _sum_versions(parameters) != self._versions:
                self._fail(f"{type(optimizer).__name__} changes weights that have no gradient")
        elif not self.is_over:
            self._running_statistics.keep()
        if self.rewinder is not None and not self.is_over:
            try:
                self.rewinder.after_step(optimizer, self._decision)
            except Exception as error:
                self._drop_rewinder(error)

    # --- decisions ----------------------------------------------------------------------------------------------------

    def _decide_safely(self, optimizer: Optimizer) -> None:
        try:
            self._decide(optimizer)
        except UnhealthyRunError:
            raise
        except Exception as error:
            self._fail(repr(error))

    def _decide(self, optimizer: Optimizer) -> None:
        if self.is_over:
            self._leave(optimizer)
            return
        key = id(optimizer)
        reading = self._readings.pop(key) if key in self._readings else self._read(optimizer)
        if self._stop_switch.is_stopping():
            self._skip(optimizer)
        if reading is None or reading.is_left_out or self._skipping is optimizer:
            return
        if reading.signal and self._follow_signal(reading.signal):
            self._skip(optimizer)
            return
        self._decision = decision = self._judge(optimizer, reading.norm)
        if decision.is_skipped:
            self._skip(optimizer)
            self._report_skip(optimizer, decision)
        if decision.is_trouble and self._has_rewound(optimizer, decision):
            self._skip(optimizer)
        max_norm = self._max_norm if self._consensus is None else reading.max_norm
        if max_norm and self._skipping is not optimizer:
            self._clip(optimizer, max_norm, reading.norm)

    def _read(self, optimizer: Optimizer) -> Reading | None:
        if self._reader is None:
            return Reading(math.nan, is_left_out=False)
        if self._consensus is None:
            return self._reader.read(optimizer)
        signal, self._signal = self._signal, 0.0
        reading = self._reader.read_together(self._consensus, optimizer, max_norm=self._max_norm, signal=signal)
        if self._consensus.is_over:
            self.close()
        return reading

    def _judge(self, optimizer: Optimizer, norm: float) -> Decision:
        if not self._policy.needs_norms:
            return Decision(norm=norm)
        key, rule = id(optimizer), self._rules[id(optimizer)]
        if not math.isfinite(norm) and (self._consensus is not None or find_nonfinite(list_all_parameters(optimizer))):
            self._nonfinite_in_a_row[key] += 1
            return Decision(norm=norm, reason="nonfinite_gradient", in_a_row=self._nonfinite_in_a_row[key])
        self._nonfinite_in_a_row[key] = 0
        if not self._policy.skips_spikes:
            return Decision(norm=norm)
        if rule.is_spike(norm):
            if not rule.is_exhausted:
                rule.note_skipped(norm)
                return Decision(norm=norm, limit=rule.limit, reason="gradient_spike", in_a_row=rule.skipped_in_a_row)
            decision = Decision(norm=norm, limit=rule.limit, in_a_row=rule.skipped_in_a_row)
        else:
            decision = Decision(norm=norm, limit=rule.limit)
        rule.note_taken(norm)
        return decision

    def _has_rewound(self, optimizer: Optimizer, decision: Decision) -> bool:
        if self.rewinder is None:
            return False
        try:
            return self.rewinder.on_trouble(optimizer, decision)
        except Exception as error:
            self._drop_rewinder(error)
            return False

    def _follow_signal(self, signal: float) -> bool:
        if self.rewinder is None or self.is_over:
            return False
        try:
            return self.rewinder.on_signal(signal)
        except Exception as error:
            self._drop_rewinder(error)
            return False

    # --- what follows from a decision ---------------------------------------------------------------------------------

    def _skip(self, optimizer: Optimizer) -> None:
        """Leave the step out."""
        self._skipping = optimizer
        self._hidden.hide(list_all_parameters(optimizer))
        self._versions = _sum_versions(self._hidden.parameters)

    def _report_skip(self, optimizer: Optimizer, decision: Decision) -> None:
        if decision.reason == "gradient_spike":
            numbers = {"grad_norm": decision.norm, "limit": decision.limit, "in_a_row": float(decision.in_a_row)}
            numbers = {name: number for name, number in numbers.items() if math.isfinite(number)}
            self._report("skip", decision, numbers, describe_spike(decision.norm, decision.limit))
            return
        if decision.in_a_row > STANDSTILL and not self._policy.stops_at_nonfinite:
            return
        self._hidden.show()
        names, layers = self._name_nonfinite(optimizer)
        self._hidden.hide(list_all_parameters(optimizer))
        numbers = {"layers": float(layers), "in_a_row": float(decision.in_a_row)}
        if names:
            numbers["nonfinite_layers"] = float(len(names))
        is_stop = self._policy.stops_at_nonfinite
        explanation = describe_skipped_nonfinite(names, layers)
        self._report("stop" if is_stop else "skip", decision, numbers, explanation)
        if is_stop:
            self._stop_switch.stop(describe_nonfinite(names, layers))
        elif decision.in_a_row == STANDSTILL:
            self._warnings_left += 1
            self._report("give_up", decision, {"in_a_row": float(STANDSTILL)}, describe_standstill(STANDSTILL))

    def _report(self, action: str, decision: Decision, numbers: Mapping[str, float], explanation: str) -> None:
        self.add_action(
            ActionDraft(action=action, reason=decision.reason or "", numbers=numbers, explanation=explanation)
        )
        if self._warnings_left > 0 and (self._consensus is None or self._consensus.is_first):
            self._warnings_left -= 1
            logger.warning("gradmedic: %s", explanation)

    def _name_nonfinite(self, optimizer: Optimizer) -> tuple[list[str], int]:
        """Return the layers with a non-finite gradient, in the order of the models, and the number with a gradient."""
        parameters = [parameter for parameter in list_all_parameters(optimizer) if parameter.grad is not None]
        found = {id(parameter) for parameter in find_nonfinite(parameters)}
        named = [name for key, name in self._list_names().items() if key in found]
        return named or ["parameter"] * len(found), len(parameters)

    def _clip(self, optimizer: Optimizer, max_norm: float, norm: float) -> None:
        parameters = [parameter for parameter in list_all_parameters(optimizer) if parameter.grad is not None]
        with torch.no_grad():
            coefficient = limit_gradients(optimizer, max_norm, None if self._consensus is None else norm)
        if self._observer is not None and coefficient is not None:
            self._observer.after_clipping(parameters, coefficient)

    # --- the end of a guard -------------------------------------------------------------------------------------------

    def _fail(self, reason: str) -> None:
        """End the guard because of an error of its own."""
        logger.warning("gradmedic: this training is no longer guarded: %s", reason)
        self._hidden.show()
        self._skipping = None
        self.close()

    def _leave(self, optimizer: Optimizer) -> None:
        """Tell the other processes that this one no longer guards."""
        if self._consensus is not None and self._consensus.begin_step():
            self._consensus.leave(find_device(optimizer))
        if self._consensus is None or self._consensus.is_over:
            self._hooks.close()

    def _drop_rewinder(self, error: Exception) -> None:
        self.rewinder = None
        logger.warning("gradmedic: this training is no longer rewound: %r", error)


def _sum_versions(parameters: Sequence[Tensor]) -> int:
    """Return a number that grows when one of these parameters is changed in place."""
    return sum(parameter._version for parameter in parameters if not parameter.is_inference())
