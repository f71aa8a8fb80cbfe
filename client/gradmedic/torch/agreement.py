"""Lets processes agree on the step at which all of them begin to reduce statistics.

A collective waits until every process calls it. So no process may begin one before it knows that all others watch the
same model and begin at the same step. They find out through the key-value store of their process group, and none waits:

1. `watch()` stores the last step that was passed unwatched, if it is later than that of others, and adds one to the
   number of members.
2. At each later step, each member looks whether all processes are members. The first one that sees it opens the
   agreement. One that has looked `ATTEMPTS` times, or no longer watches, closes it. Only one of the two is possible,
   because the store sets a key once. So while the agreement is open, every process looks at every step.
3. Each step has a key of its own. The first member that comes to the step sets it: to "start" if it has seen that the
   agreement is open, and no process has passed the step unwatched; else to "wait". The others read it there. So all of
   them start at the same step, although some may be ahead of others: on CUDA, a process does not wait for a collective
   that it has begun.

A step is named by the number of collectives that the group has begun until then. This number is the same in all
processes, whenever they began to watch. Where it is not known, only the first step after `watch()` can be agreed on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from torch import distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore, Store

ATTEMPTS: Final = 20
"""Steps after which a process no longer waits for the others."""

_OPEN, _CLOSED, _START, _WAIT = "open", "closed", "start", "wait"
_PASSED = "passed"
"""Key of the last step that a process passed unwatched."""

_watched: Counter[str] = Counter()
"""How often this process began to watch each model, by `identify_model`. All processes count alike."""


class Agreement:
    """Whether all processes of a group begin to reduce statistics, and at which step.

    Args:
        store: what the processes share; nothing else may use its keys.
        size: number of the processes.
        count_collectives: function that returns the number of collectives so far, which grows with each step; None if
            it is not known.
    """

    def __init__(self, store: Store, size: int, count_collectives: Callable[[], int | None]) -> None:
        self._store, self._size, self._count_collectives = store, size, count_collectives
        self._attempts_left = ATTEMPTS
        self._store_passed(count_collectives() or 0)
        self.members = store.add("members", 1)
        """Processes that watch, as far as this one has seen."""
        self.outcome: bool | None = None
        """Whether the processes reduce statistics; None until it is decided."""

    def decide(self) -> bool | None:
        """Return whether statistics are reduced from this step on. To be called at each step, until it is not None."""
        if self.outcome is not None:
            return self.outcome
        counted = self._count_collectives()
        is_first = self._attempts_left == ATTEMPTS
        step = int(is_first) if counted is None else counted
        self._attempts_left -= 1
        self.members = self._store.add("members", 0)
        is_new = self.members >= self._size and step > int(self._store.get(_PASSED))
        if is_new:
            state: str | None = self._set_once("state", _OPEN)
        elif self._attempts_left <= 0:
            state = self._set_once("state", _CLOSED)
        else:
            state = self._store.get("state").decode() if self._store.check(["state"]) else None
        if state == _CLOSED:
            self.outcome = False
        elif self._set_once(f"step/{step}", _START if is_new else _WAIT) == _START:
            self.outcome = True
        return self.outcome

    @property
    def is_stuck(self) -> bool:
        """Whether the processes should have agreed long ago; true only once."""
        return self.outcome is None and self._attempts_left == -ATTEMPTS

    def withdraw(self) -> None:
        """Close the agreement at the next step, unless it is open by then."""
        self._attempts_left = 0

    def _store_passed(self, step: int) -> None:
        held = self._set_once(_PASSED, str(step))
        while int(held) < step:
            held = self._store.compare_set(_PASSED, held, str(step)).decode()

    def _set_once(self, key: str, value: str) -> str:
        """Set a key that is not set yet, and return what it is."""
        return self._store.compare_set(key, "", value).decode()


def open_store(group: dist.ProcessGroup, model: str) -> Store:
    """Return what the processes of a group share for one watch of a model, as `identify_model` returns it.

    Raises:
        Exception: there is no store; each kind of group fails in its own way.
    """
    _watched[model] += 1
    if hasattr(group, "get_group_store"):  # since torch 2.8
        store = group.get_group_store()
    else:
        store = distributed_c10d._get_process_group_store(group)
    return PrefixStore(f"gradmedic/{model}/{_watched[model]}", store)


def find_step_groups(groups: Iterable[dist.ProcessGroup]) -> list[dist.ProcessGroup]:
    """Return all groups with the same members as one of some groups: equal meshes have groups of their own."""
    members = {tuple(dist.get_process_group_ranks(group)) for group in groups}
    known = list(distributed_c10d._world.pg_map)
    return [group for group in known if tuple(dist.get_process_group_ranks(group)) in members]


def count_collectives(groups: Iterable[dist.ProcessGroup]) -> int | None:
    """Return the number of collectives that this process has begun in some groups; None if a group does not count."""
    try:
        return sum(group._get_sequence_number_for_group() for group in groups)  # type: ignore[attr-defined]
    except RuntimeError:
        return None


def identify_model(layers: Iterable[tuple[str, Sequence[int]]], statistics: Sequence[str]) -> str:
    """Return a short text that is the same in all processes that watch the same layers in the same way.

    Args:
        layers: names and shapes of the layers.
        statistics: names of the statistics.
    """
    described = [(name, *shape) for name, shape in layers], *statistics
    return hashlib.sha256(repr(described).encode()).hexdigest()[:16]
