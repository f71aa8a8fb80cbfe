"""Begins to guard the optimizers of a watch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import distributed as dist

from gradmedic.guard.policy import GuardPolicy
from gradmedic.torch.agreement import identify_model
from gradmedic.torch.distributed import get_group_size
from gradmedic.torch.guards.consensus import Consensus
from gradmedic.torch.guards.step_guard import StepGuard, StopSwitch

if TYPE_CHECKING:
    from gradmedic.torch.watch import Watch


def begin_guard(policy: GuardPolicy, stop_switch: StopSwitch, watch: Watch) -> StepGuard:
    """Return the guard of a watch's optimizers. Several processes decide together.

    Args:
        policy: what the guard may do.
        stop_switch: ends the training.
        watch: the watch, which has begun to measure if this process does.
    """
    layers = watch.list_layers()
    consensus = None
    if get_group_size() > 1:
        model = identify_model([(name, tuple(parameter.shape)) for name, parameter in layers], ("guard", repr(policy)))
        if watch.sharding is None:
            consensus = Consensus(dist.group.WORLD, [dist.group.WORLD], model)  # type: ignore[arg-type, list-item]
        else:
            consensus = Consensus(watch.sharding.group, watch.sharding.step_groups, model)
    guard = StepGuard(
        policy,
        watch.optimizers,
        list_names=lambda: {id(parameter): name for name, parameter in watch.list_layers()},
        stop_switch=stop_switch,
        models=watch.models.values(),
        observer=watch if watch.is_needed else None,
        consensus=consensus,
    )
    watch.guard_steps(guard)
    return guard
