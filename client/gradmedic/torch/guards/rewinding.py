"""Goes back to an earlier state of a training when skipping a step does not help.

PaLM restarted from a checkpoint about 100 steps before a spike of the loss, and skipped 200 to 500 batches (Chowdhery
et al. 2022, section 5.1). The rewinder does the same without a restart: it writes the newest state from before the
onset into the training. The script's loop goes on with the batches that come next, so those in between are skipped.

If trouble comes again in the same stretch, an older state than the last one is taken, and the learning rate is halved
until the stretch is over. After `MOST_REWINDS` of them the rewinder gives up.

One process goes back at the end of `log()`. Several processes do so right before an optimizer's step: the first one,
which hears from the service and logs, sends the step to go back to, with the message by which all decide on the step.
In the same way it sends when a state is kept. So all of them have states of the same steps.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.optim import Optimizer

from gradmedic.configuration import Configuration
from gradmedic.protocol.guards import GuardAction
from gradmedic.recording.action_draft import ActionDraft
from gradmedic.recording.events import VerdictEvent
from gradmedic.torch.guards.rewinding_rate import LoweredRate
from gradmedic.torch.guards.rewinding_signs import Signs, Trouble
from gradmedic.torch.guards.snapshots import CannotRestore, TrainingState
from gradmedic.torch.guards.snapshots_ring import KeptState, SnapshotRing
from gradmedic.torch.guards.snapshots_room import SnapshotFolder
from gradmedic.torch.statistics import PendingScalar, start_reading

if TYPE_CHECKING:
    from gradmedic.torch.guards.step_guard import Decision, StepGuard
    from gradmedic.torch.watch import Watch

logger = logging.getLogger("gradmedic")

MOST_REWINDS = 5
"""Rewinds in one stretch after which the rewinder gives up."""
STRETCH = 100
"""Steps beyond the trouble at which a stretch is over: what comes later is another trouble."""
MARGIN = 20
"""Steps before the onset from which a state is taken where a gradient, a loss or a verdict shows the trouble. What
causes it, as a learning rate that jumps, begins some steps earlier."""
CURABLE_VERDICT = "exploding"
"""The verdict on which the training goes back. Vanishing gradients come from the structure, the initialization or units
that died little by little: other batches from an earlier state on lead there again, and the steps are lost."""
_LATE_REASONS = ("gradient_spike", "loss_spike", "verdict")
RATE_FACTOR = 0.5
"""Factor of the learning rate for each further rewind in a stretch."""


def begin_rewinder(
    configuration: Configuration,
    go_back: Callable[[int, GuardAction], None],
    callbacks: list[Callable[[int], object]],
) -> Rewinder:
    """Return the rewinder of a run.

    Args:
        configuration: the arguments of `gradmedic.init()`.
        go_back: function that lets the run go on behind a step; it takes the step and the guard's action.
        callbacks: functions that are called with the step after each rewind; the list may grow.
    """
    folder = SnapshotFolder(configuration.dir, f"{configuration.id}-{os.getpid()}")
    return Rewinder(folder, go_back, callbacks)


class Rewinder:
    """Keeps states of a training and goes back to one of them. One rewinder serves all watches of a run.

    Args:
        folder: folder for states that do not fit into memory.
        go_back: function that lets the run go on behind a step; it takes the step and the guard's action.
        callbacks: functions that are called with the step after each rewind; the list may grow.
        interval: steps between two states; by default a share of the time decides.
    """

    def __init__(
        self,
        folder: SnapshotFolder,
        go_back: Callable[[int, GuardAction], None],
        callbacks: list[Callable[[int], object]],
        *,
        interval: int | None = None,
    ) -> None:
        self._folder, self._go_back, self._callbacks, self._interval = folder, go_back, callbacks, interval
        self._watches: list[Watch] = []
        self._guards: list[StepGuard] = []
        self._rate = LoweredRate()
        self._losses: list[tuple[int, float | PendingScalar]] = []
        self._steps = 0
        self._last_step = -1
        self._stretch_ends = -1  # in steps of this process
        self._rewinds = 0  # in the present stretch
        self._last_target = -1
        self._pending: tuple[KeptState, Trouble] | None = None  # sent to the other processes
        self._is_at_target = False
        self._refused: Trouble | None = None  # a process could not restore the state that was chosen
        self._warned: set[str] = set()
        self.is_over = False
        """Whether the rewinder has given up."""
        self._begin()

    # --- called by the run's guards -----------------------------------------------------------------------------------

    def watch(self, watch: Watch, guard: StepGuard) -> None:
        """Keep states of the models and optimizers of a watch, too. Earlier states lack them and are dropped."""
        mine = {id(optimizer) for optimizer in watch.optimizers}
        kept = [
            (old, its_guard)
            for old, its_guard in zip(self._watches, self._guards, strict=True)
            if not mine & {id(optimizer) for optimizer in old.optimizers}
        ]
        self._watches = [*(old for old, _ in kept), watch]
        self._guards = [*(its_guard for _, its_guard in kept), guard]
        guard.rewinder = self
        self._ring.drop_after(-2)
        self._rate.close()
        self._begin()

    def note_verdict(self, event: VerdictEvent) -> None:
        """Note that the service's verdict has become unhealthy."""
        if event.verdict == CURABLE_VERDICT:
            self._signs.note_verdict(event.verdict, event.since_step)

    def end_step(self, step: int, loss: Any) -> None:
        """End a step of the run, after it was recorded. Go back if there is reason to, else perhaps keep the state.

        Args:
            step: number of the step.
            loss: what `log()` was given as the loss.
        """
        if self.is_over or not self._guards or self._watches[0].is_follower:
            return
        is_new = step != self._last_step
        self._last_step = step
        if self._is_at_target and self._pending is not None:  # all processes went back right before this step
            (kept, trouble), self._pending = self._pending, None
            self._is_at_target = False
            self._finish(kept, trouble, step)
            return
        if not is_new:
            return
        self._steps += 1
        losses = self._read_losses(step, loss)
        if self._pending is not None:
            return
        found = self._signs.end_step(step, losses) or self._refused
        if found is not None:
            self._refused = None
            self._react(found, step)
        elif self._ring.end_step() and not self._signs.is_suspicious:
            if self._has_others:
                self._guards[0].signal(step + 1.0)
            else:
                self._ring.take(step)
        if self._steps == self._stretch_ends and self._rate.factor != 1.0:
            self._rate.close()

    def forget_after(self, step: int) -> None:
        """Forget what is known of the steps after this one, and their states."""
        self._ring.drop_after(step)
        self._signs.begin_anew()
        for guard in self._guards:
            guard.go_back()

    def close(self) -> None:
        """Forget all states, and leave the optimizers their own learning rates."""
        self.is_over = True
        self._rate.close()
        self._ring.close()

    # --- called by the guards of the optimizers -----------------------------------------------------------------------

    def after_step(self, optimizer: Optimizer, decision: Decision | None) -> None:
        """Note what the decision on a step and its learning rate show."""
        rates = [rate for group in optimizer.param_groups if isinstance(rate := group.get("lr"), float | int)]
        if rates and (decision is None or not decision.is_skipped):
            self._signs.note_rate(id(optimizer), float(max(rates)))
        if decision is not None and decision.reason == "nonfinite_gradient":
            self._signs.note_nonfinite_gradient()
        elif decision is not None and (decision.is_skipped or decision.is_trouble):
            self._signs.note_spike(is_lasting=decision.is_trouble)

    def on_trouble(self, _optimizer: Optimizer, _decision: Decision) -> bool:
        """Return that the training does not go back now: it does so when the step has been logged."""
        return False

    def on_signal(self, signal: float) -> bool:
        """Keep the state of the step that the first process has logged, or go back; return whether it went back.

        Args:
            signal: the step plus one to keep the state, or minus the step that is gone back to minus two.
        """
        if signal > 0:
            self._ring.take(round(signal) - 1)
            return False
        target = -round(signal) - 2
        if not self._restore_together(target):
            return False
        self.forget_after(target)
        self._is_at_target = self._pending is not None
        if not self._is_at_target:  # the first process calls them when it has logged the step
            self._call_back(target)
        return True

    # --- going back ---------------------------------------------------------------------------------------------------

    @property
    def _has_others(self) -> bool:
        return self._watches[0].has_others

    def _begin(self) -> None:
        """Begin to keep states of all that is watched."""
        models = list(dict.fromkeys(model for watch in self._watches for model in watch.models.values()))
        self._optimizers = list(dict.fromkeys(each for watch in self._watches for each in watch.optimizers))
        scaler = next((watch.scaler for watch in self._watches if watch.scaler is not None), None)
        self._models = models
        self._state = TrainingState(models, self._optimizers, scaler)
        processes = dist.get_world_size() if self._watches and self._has_others else 1
        self._ring = SnapshotRing(self._state, self._folder, processes=processes, interval=self._interval)
        self._signs = Signs(self._state.is_finite_now)

    def _read_losses(self, step: int, loss: Any) -> list[tuple[int, float]]:
        """Return the losses that are on the host by now. One on a device is read a step later, without waiting."""
        known = [(number, each if isinstance(each, float) else each.read()) for number, each in self._losses]
        self._losses.clear()
        is_on_device = isinstance(loss, Tensor) and not loss.is_cpu
        number: Any = start_reading(loss) if is_on_device else loss
        if isinstance(number, PendingScalar):
            self._losses.append((step, number))
        elif number is not None:
            with suppress(TypeError, ValueError, RuntimeError):  # something that is no number
                known.append((step, float(number.detach() if isinstance(number, Tensor) else number)))
        return known

    def _react(self, trouble: Trouble, step: int) -> None:
        if self._steps > self._stretch_ends:
            self._rewinds = 0
        if self._rewinds >= MOST_REWINDS:
            self._give_up(trouble, f"{MOST_REWINDS} rewinds did not help")
            return
        candidates = self._ring.list_before(trouble.onset)
        if not candidates:
            self._warn(trouble, f"no state from before step {trouble.onset} is kept")
            return
        if trouble.reason in _LATE_REASONS:
            candidates = [kept for kept in candidates if kept.step < trouble.onset - MARGIN] or candidates[-1:]
        if self._rewinds:  # in this stretch: what was kept since then is as bad as what it began from
            candidates = [kept for kept in candidates if kept.step < self._last_target] or candidates[-1:]
        if self._has_others:
            self._pending = (candidates[0], trouble)
            self._guards[0].signal(-(candidates[0].step + 2.0))
            return
        for kept in candidates:
            try:
                self._state.restore(self._ring.load(kept))
            except CannotRestore as reason:
                refusal = str(reason)
                continue
            self.forget_after(kept.step)
            self._finish(kept, trouble, step)
            return
        self._warn(trouble, refusal)

    def _restore_together(self, step: int) -> bool:
        """Restore the state after a step if every process can. Each of them comes here, whatever happens to it."""
        kept = next((each for each in self._ring.list_before(step + 1) if each.step == step), None)
        snapshot, refusal = None, ""
        try:
            snapshot = None if kept is None else self._ring.load(kept)
        except Exception as reason:
            refusal = str(reason)
        sharding, (_, parameter) = self._watches[0].sharding, self._watches[0].list_layers()[0]
        refusals = torch.tensor(float(snapshot is None), device=parameter.device)
        dist.all_reduce(refusals, group=None if sharding is None else sharding.group)
        if snapshot is not None and not float(refusals):
            self._state.restore(snapshot)
            return True
        if kept is not None:
            self._ring.drop(kept)
        if self._pending is not None:  # this is the first process, which chooses an older state at its next step
            (_, self._refused), self._pending = self._pending, None
            logger.info(
                "gradmedic: the state after step %d is not restored: %s", step, refusal or "elsewhere it cannot be"
            )
        return False

    def _finish(self, kept: KeptState, trouble: Trouble, step: int) -> None:
        """Tell the service and the script that the training went back."""
        self._rewinds += 1
        self._last_target = kept.step
        self._stretch_ends = self._steps + max(0, step - kept.step) + STRETCH
        numbers = {"onset": float(trouble.onset), "to_step": float(kept.step), "rewinds": float(self._rewinds)}
        explanation = f"{trouble.sentence}: the training went back to its state after step {kept.step}."
        logger.warning("gradmedic: %s", explanation)
        action = GuardAction(
            step=step,
            action="rewind",
            reason=trouble.reason,
            numbers=_keep_finite({**trouble.numbers, **numbers}),
            explanation=explanation,
        )
        self._losses.clear()
        self._go_back(kept.step, action)
        self._last_step = kept.step
        if self._rewinds > 1:
            self._lower_rate(trouble)
        self._call_back(kept.step)

    def _lower_rate(self, trouble: Trouble) -> None:
        factor = RATE_FACTOR ** (self._rewinds - 1)
        if not self._rate.set(factor, self._optimizers, self._models):
            return
        self._add_action("lower_rate", trouble, {"factor": factor}, (
            f"Trouble came again in the same stretch, so the learning rate is multiplied by {factor:.4g} until the "
            "stretch is over."
        ))  # fmt: skip

    def _give_up(self, trouble: Trouble, reason: str) -> None:
        explanation = f"{trouble.sentence}: {reason}, so the guard does not go back any more."
        logger.warning("gradmedic: %s", explanation)
        self._add_action("give_up", trouble, {"rewinds": float(self._rewinds)}, explanation)
        self.is_over = True
        self._ring.close()

    def _add_action(self, action: str, trouble: Trouble, numbers: dict[str, float], explanation: str) -> None:
        """Add an action to the next step that is logged: the present one was recorded already."""
        self._guards[0].add_action(
            ActionDraft(action=action, reason=trouble.reason, numbers=numbers, explanation=explanation)
        )

    def _warn(self, trouble: Trouble, reason: str) -> None:
        """Log once for each kind of trouble that the training cannot go back."""
        if trouble.reason not in self._warned:
            self._warned.add(trouble.reason)
            logger.warning("gradmedic: %s, but the training cannot go back: %s (logged once)", trouble.sentence, reason)

    def _call_back(self, step: int) -> None:
        for callback in self._callbacks:
            try:
                callback(step)
            except Exception:
                logger.exception("gradmedic: a callback of on_rewind() failed")


def _keep_finite(numbers: dict[str, float]) -> dict[str, float]:
    return {name: number for name, number in numbers.items() if math.isfinite(number)}
