"""Processes that agree on a step, in every order in which they may come to it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore

from gradmedic.torch.agreement import ATTEMPTS, Agreement, identify_model

STEPS = 3 * ATTEMPTS


class Member:
    """A process that makes steps, and looks for the agreement from the step on at which it begins to watch."""

    def __init__(self, store: HashStore, size: int, first_step: int | None, last_step: int | None) -> None:
        self._store, self._size = PrefixStore("model", store), size
        self._first_step, self._last_step = first_step, last_step
        self._agreement: Agreement | None = None
        self.step = self.collectives = 0
        self.outcome: bool | None = None
        self.started_at: int | None = None

    def make_step(self) -> None:
        """Make a step."""
        if self.step == self._first_step:
            self._agreement = Agreement(self._store, self._size, lambda: self.collectives)
        self.collectives += 2
        if self._agreement is not None and self.outcome is None:
            if self.step == self._last_step:
                self._agreement.withdraw()
            self.outcome = self._agreement.decide()
            if self.outcome:
                self.started_at = self.step
        self.step += 1


FIRST_STEPS = st.one_of(st.none(), st.just(0), st.integers(0, 2 * ATTEMPTS))


@settings(deadline=None)
@given(st.data(), st.lists(st.tuples(FIRST_STEPS, st.one_of(st.none(), st.integers(0, STEPS))), min_size=1, max_size=4))
def test_all_processes_start_at_one_step_or_none_does(
    data: st.DataObject, moments: list[tuple[int | None, int | None]]
) -> None:
    """Whenever processes begin or stop to watch, and however far they are apart, all start at the same step or none."""
    store = HashStore()
    members = [Member(store, len(moments), first, last) for first, last in moments]
    while unfinished := [member for member in members if member.step < STEPS]:
        data.draw(st.sampled_from(unfinished)).make_step()
        starts = {member.started_at for member in members if member.started_at is not None}
        assert len(starts) <= 1
        for start in starts:  # who has passed the step has started, so that no one waits
            assert all(member.started_at == start for member in members if member.step > start)
    assert len({member.outcome for member in members if member.outcome is not None}) <= 1
    if any(first is None for first, _ in moments):
        assert not any(member.outcome for member in members)


def test_processes_that_watch_before_their_first_step_start_soon() -> None:
    """A process that is some steps ahead waits with its statistics until the others watch too."""
    store = HashStore()
    ahead, behind = Member(store, 2, 0, None), Member(store, 2, 0, None)
    for _ in range(3):
        ahead.make_step()
    for _ in range(5):
        behind.make_step()
        ahead.make_step()
    assert ahead.started_at == behind.started_at == 3


def test_models_are_told_apart() -> None:
    """Other layers, other shapes and other statistics are other models."""
    layers = [("0.weight", (2, 3)), ("0.bias", (2,))]
    same = identify_model(layers, ["grad_norm"])
    assert identify_model([(name, list(shape)) for name, shape in layers], ("grad_norm",)) == same
    assert identify_model(layers[:1], ["grad_norm"]) != same
    assert identify_model([("0.weight", (3, 2)), layers[1]], ["grad_norm"]) != same
    assert identify_model(layers, ["grad_norm", "update_norm"]) != same
