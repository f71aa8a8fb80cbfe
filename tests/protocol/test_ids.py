"""Ids of runs."""

from __future__ import annotations

import random
import time

from gradmedic.protocol.ids import new_id


def test_an_id_is_a_uuid_of_version_7_with_the_time_in_front() -> None:
    """Version and variant are those of RFC 9562; the first 48 bits are milliseconds since the epoch."""
    before = time.time_ns() // 1_000_000
    run_id = new_id()
    after = time.time_ns() // 1_000_000
    assert run_id.version == 7
    assert run_id.variant == "specified in RFC 4122"
    assert before <= run_id.int >> 80 <= after


def test_ids_differ_and_leave_the_random_generator_alone() -> None:
    """A thousand ids are different, and `random` goes on as if none had been made."""
    random.seed(1)
    expected = random.random()
    random.seed(1)
    assert len({new_id() for _ in range(1000)}) == 1000
    assert random.random() == expected
