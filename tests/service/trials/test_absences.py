"""The times in which a process answered no request."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from gradmedic_service.trials.absences import Absences

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
LEASE = 5.0


def record(seconds: Sequence[float], lease: float = LEASE) -> list[float]:
    """Return the grace after each run of the due work, at these seconds."""
    absences = Absences(interval=1.0, lease=lease)
    return [absences.record_work(NOON + timedelta(seconds=second)).total_seconds() for second in seconds]


def test_a_start_counts_as_an_absence_for_the_length_of_a_lease() -> None:
    """After its start a process takes no lease as expired for a while, and after a lease it judges as always."""
    assert record(range(8)) == [LEASE] * 6 + [0.0, 0.0]
    assert record([0], lease=3600.0) == [15.0]


@pytest.mark.parametrize("late", [2.5, 19.0, 3600.0])
def test_late_work_extends_leases_by_as_much(late: float) -> None:
    """A lease that had three seconds left when the service was suspended has three seconds left when it goes on."""
    back = 10.0 + 1.0 + late
    grace, *later = record([*range(11), *(back + second for second in range(8))])[11:]
    expires_at = 10.0 + 4.0
    assert (grace, expires_at + grace - back) == (late, 3.0)  # the second after the last work did pass
    assert later == [late] * 5 + [0.0, 0.0]


def test_small_delays_and_a_clock_that_goes_backwards_do_not_count() -> None:
    """Work that is late by less than its interval, or that seems to be early, extends no lease."""
    assert record([*range(8), 8.9, 10.8, 3.0, 4.0])[8:] == [0.0] * 4
