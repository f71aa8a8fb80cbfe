"""Keeps the collectives of a watch in step with those of the other processes.

The statistics of sharded parameters are reduced by a collective, at sampled steps of the optimizers. Every process must
call it at the same steps, or the training waits for ever. So nothing decides on it that may differ between processes:
neither the time, nor `log()`, which many scripts call in one process only. The processes agree on the first step, and
then count the steps of each optimizer up to the next sampled one, which the first process chooses.

A process that no longer watches, because of an error or of `finish()`, takes part once more and sends that it leaves.
Then all of them end before the next sampled step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradmedic.recording.sampler import Sampler
from gradmedic.torch.agreement import Agreement, count_collectives, find_step_groups, open_store
from gradmedic.torch.distributed import ReducedTable, Sharding
from gradmedic.torch.optimizer_hooks import OptimizerHooks

logger = logging.getLogger("gradmedic")


class Lockstep:
    """Decides at which steps of the optimizers the statistics of sharded parameters are reduced.

    Its hooks must be registered around those of the watch: call `begin`, register those, then call `follow_steps`.

    Args:
        sharding: how the parameters are sharded.
        sampler: sampler of the run; that of the first process chooses the intervals.
        model: what is watched, as `identify_model` returns it.
    """

    def __init__(self, sharding: Sharding, sampler: Sampler, model: str) -> None:
        self._sharding, self._sampler, self._model = sharding, sampler, model
        self._agreement: Agreement | None = None
        self._hooks: list[OptimizerHooks] = []
        self._is_over = False
        self._is_leaving = False
        self._has_started = False
        self._has_reduced = False
        self._last: ReducedTable | None = None
        self._second_to_last: ReducedTable | None = None
        self._steps_left: dict[int, int] = {}  # to the next sampled step, by the id of an optimizer
        self.is_due = False
        """Whether the optimizer step that is being made is sampled."""

    @property
    def is_sampling(self) -> bool:
        """Whether the next step of an optimizer may be sampled."""
        return not self._is_over and not (self._has_started and all(self._steps_left.values()))

    def begin(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Announce that this process watches, and register what runs before the watch's own hooks."""
        self._sampler.follow(self)
        try:
            store = open_store(self._sharding.group, self._model)
            groups = find_step_groups(self._sharding.step_groups)
            self._agreement = Agreement(store, self._sharding.size, lambda: count_collectives(groups))
        except Exception as error:  # whatever a store raises must not reach the script
            self._end(f"the processes cannot agree on the steps ({error!r})")
        else:
            self._hooks.append(OptimizerHooks(optimizers, before=self._begin_step))

    def follow_steps(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Register what runs after the watch's own hooks."""
        if not self._is_over:
            self._hooks.append(OptimizerHooks(optimizers, after=self._end_step))

    def leave(self) -> None:
        """Take part in no more than one reduction, which tells the others."""
        self._is_leaving = True
        if self._is_over:
            self._end("")
            return
        if self._agreement is not None:
            self._agreement.withdraw()
        self._sampler.unfollow(self)

    def reduce(
        self, table: Tensor, rows: Sequence[int], parameters: Sequence[Tensor], *, is_known: bool
    ) -> ReducedTable:
        """Compute the statistics of whole layers, together with the other processes.

        Args:
            table: `[layer, statistic]` of the parts that this process holds.
            rows: place of each layer of the table among the parameters.
            parameters: all parameters of the optimizer.
            is_known: whether the table may be used.
        """
        interval = self._sampler.choose_interval()
        message = self._sharding.make_message(table, rows, parameters, interval=interval, has_failed=not is_known)
        return self._send(message, rows, table.shape[1])

    def _begin_step(self, optimizer: torch.optim.Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        self.is_due = self._has_reduced = False
        self._call_safely(self._choose, optimizer)

    def _end_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._call_safely(self._finish_step, optimizer)

    def _choose(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._has_started:
            if self._agreement is None:
                return
            outcome = self._agreement.decide()
            if self._agreement.is_stuck and not self._is_leaving:
                logger.warning("gradmedic: no statistics are taken: the processes have not agreed on a step yet")
            if outcome is None:
                return
            if not outcome:
                self._end(self._explain(self._agreement.members))
                return
            self._has_started = True
        if self._steps_left.get(id(optimizer), 0) > 0:
            return
        if self._last is not None and self._last.has_left():
            self._end("another process has stopped watching this model, which is sharded")
        else:
            self.is_due = True

    def _finish_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._has_started:
            return
        if not self.is_due:
            self._steps_left[id(optimizer)] = max(0, self._steps_left.get(id(optimizer), 0) - 1)
            return
        self.is_due = False
        if not self._has_reduced:  # the watch was closed, perhaps in this step
            self._is_leaving = True
            self._send(self._sharding.make_farewell(list_all_parameters(optimizer)), [], 0)
            self._end("")
            return
        # The interval of the second-to-last sampled step is used, because the last one may not have arrived yet.
        interval = 1 if self._second_to_last is None else self._second_to_last.read_interval()
        self._steps_left[id(optimizer)] = max(1, interval) - 1

    def _send(self, message: Tensor, rows: Sequence[int], statistics: int) -> ReducedTable:
        self._has_reduced = True
        try:
            reduced = self._sharding.reduce(message, rows, statistics)
        except BaseException:
            self._is_over = True  # so that a collective which failed is not tried again
            raise
        self._second_to_last, self._last = self._last, reduced
        return reduced

    def _explain(self, members: int) -> str:
        """Return why statistics were not agreed on."""
        size = self._sharding.size
        if members < size:
            return (
                f"this model is sharded over {size} processes, and {members} of them watch it: call run.watch() with "
                "the same arguments on every one"
            )
        return "other processes stopped waiting for run.watch() in this one: call it before the first step"

    def _end(self, reason: str) -> None:
        self._is_over = True
        self._sampler.unfollow(self)
        for hooks in self._hooks:
            hooks.close()
        if not self._is_leaving:
            logger.warning("gradmedic: no statistics are taken: %s", reason)

    def _call_safely(self, function: Callable[[torch.optim.Optimizer], None], optimizer: torch.optim.Optimizer) -> None:
        try:
            function(optimizer)
        except Exception as error:
            self.is_due = False
            self._end(f"the processes cannot agree on the steps ({error!r})")


def list_all_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return all parameters of an optimizer, which are as many in all processes; those with gradients may not be."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
