"""The bounded queue of steps."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from gradmedic.sender import StepQueue
from gradmedic.step import Step

SIZE = Step(number=0, time=0.0).nbytes


def fill(queue: StepQueue, losses: list[float]) -> None:
    """Append a step for each loss."""
    for number, loss in enumerate(losses):
        queue.append(Step(number=number, time=0.0, loss=loss))


def test_the_oldest_healthy_steps_are_dropped_first() -> None:
    """Of a queue that is full, what remains is every non-finite step and the newest healthy ones."""
    queue = StepQueue(SIZE * 20)
    fill(queue, [math.nan if i in (3, 10) else 1.0 for i in range(100)])
    numbers = [step.number for step in queue.front(100)]
    assert numbers[:2] == [3, 10]
    assert numbers[2:] == list(range(numbers[2], 100))
    assert queue.dropped == 100 - len(numbers)


@given(st.lists(st.sampled_from([1.0, math.nan])), st.integers(1, 30))
def test_the_queue_stays_within_its_bytes_and_counts_what_it_drops(losses: list[float], room: int) -> None:
    """Whatever comes, memory is bounded, order is kept, the newest step is there and none is lost uncounted."""
    queue = StepQueue(SIZE * room)
    fill(queue, losses)
    numbers = [step.number for step in queue.front(len(losses))]
    assert len(queue) <= room
    assert len(queue) + queue.dropped == len(losses)
    assert numbers == sorted(numbers)
    assert not losses or numbers[-1] == len(losses) - 1
    if losses.count(math.nan) < room * 7 // 8:
        kept = set(numbers)
        assert all(i in kept for i, loss in enumerate(losses) if math.isnan(loss))


def test_acknowledged_steps_leave_and_others_stay() -> None:
    """What was appended while a block was under way is not taken for acknowledged."""
    queue = StepQueue(SIZE * 100)
    fill(queue, [1.0] * 10)
    block = queue.front(4)
    queue.remove_until(block[-1].number)
    assert [step.number for step in queue.front(100)] == [4, 5, 6, 7, 8, 9]
