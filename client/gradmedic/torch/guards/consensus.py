"""Lets all processes of a training decide alike on each step, by one small all-reduce.

Every process sends its part of the sum of squares of the gradient. So all of them get the same norm, of the whole
gradient, and the same rule takes the same decision. Only the first process hears from the service; what it was told
reaches the others in the same message.

The processes agree on the first such step as on the first reduction of statistics (`gradmedic.torch.agreement`), so
that none waits for one that does not guard. One that leaves sends that in its next step.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gradmedic.torch.agreement import Agreement, count_collectives, find_step_groups, open_store

logger = logging.getLogger("gradmedic")


class Sums(NamedTuple):
    """What the processes sent, added up."""

    squares: float
    """Sum of the squares of the gradient's elements."""
    found_inf: float
    """Above 0 if a loss scaler leaves the step out."""
    leaving: float
    """Number of processes that no longer guard."""
    max_norm: float
    """Norm to which the first process clips; 0 if it does not."""
    signal: float
    """Number that the first process has sent to the others' rewinders; 0 if none."""


class Consensus:
    """The common decisions of several processes.

    Args:
        group: group of the processes.
        step_groups: groups in which each training step has a collective.
        model: what is guarded, as `identify_model` returns it.
    """

    def __init__(self, group: dist.ProcessGroup, step_groups: Sequence[dist.ProcessGroup], model: str) -> None:
        self._group = group
        self.size = dist.get_world_size(group)
        """Number of the processes."""
        self.is_first = dist.get_rank(group) == 0
        """Whether this is the first process, which hears from the service."""
        self.is_over = False
        """Whether no process takes part any more."""
        self._has_started = False
        self._agreement: Agreement | None = None
        try:
            groups = find_step_groups(step_groups)
            self._agreement = Agreement(open_store(group, model), self.size, lambda: count_collectives(groups))
        except Exception as error:  # whatever a store raises must not reach the script
            self._end(f"the processes cannot agree on the steps ({error!r})")

    def begin_step(self) -> bool:
        """Return whether all processes decide on the step that an optimizer begins."""
        if self.is_over or self._has_started or self._agreement is None:
            return self._has_started and not self.is_over
        outcome = self._agreement.decide()
        if self._agreement.is_stuck:
            logger.warning("gradmedic: guards do not act yet: the processes have not agreed on a step")
        if outcome is False:
            members = self._agreement.members
            self._end(f"{members} of {self.size} processes call run.watch() with the same arguments and guards")
        self._has_started = outcome is True
        return self._has_started

    def reduce(self, parts: Tensor, found_inf: Tensor | None, *, max_norm: float, signal: float) -> Sums:
        """Return what all processes sent. Every process must call it, or `leave`, in the same steps.

        Args:
            parts: numbers whose squares add up to this process's part of the sum of squares.
            found_inf: what a loss scaler has set on the optimizer, if there is one.
            max_norm: norm to which the first process clips; 0 if it does not.
            signal: number for the rewinders of all processes; 0 if there is none.
        """
        said = [0.0, 0.0, 0.0, max_norm, signal] if self.is_first else [0.0] * 5
        message = torch.tensor(said, dtype=torch.float64).to(parts.device, non_blocking=True)
        message[0] = parts.double().square().sum()
        if found_inf is not None:
            message[1] = found_inf.reshape(()).to(parts.device)
        return self._send(message)

    def leave(self, device: torch.device) -> None:
        """Tell the others, in place of `reduce`, that this process no longer guards."""
        has_others = self._has_started and not self.is_over
        self.is_over = True
        if has_others:
            message = torch.zeros(5, dtype=torch.float64, device=device)
            message[2] = 1.0
            self._send(message)

    def withdraw(self) -> None:
        """End the agreement, if it has not begun yet."""
        if self._agreement is not None:
            self._agreement.withdraw()

    def _send(self, message: Tensor) -> Sums:
        try:
            dist.all_reduce(message, group=self._group)
        except BaseException:
            self.is_over = True  # so that a collective which failed is not tried again
            raise
        sums = Sums(*message.tolist())
        if sums.leaving:
            self._end("another process no longer guards this training")
        return sums

    def _end(self, reason: str) -> None:
        if not self.is_over:
            logger.warning("gradmedic: the guards of this training do not act: %s", reason)
        self.is_over = True
