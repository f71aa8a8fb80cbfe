"""The table of probes and their names as metrics."""

from __future__ import annotations

import itertools

import pytest

from gradmedic.protocol.names import name_error
from gradmedic.protocol.probes import PREFIX, PROBES, choose_subjects, name_metric, parse_metric


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("subject", ["", "encoder.layers.0", "a/b"])
def test_a_probe_is_found_by_the_name_of_its_metric(probe: str, subject: str) -> None:
    """The name of the metric has the prefix, is allowed, and gives back probe and subject."""
    name = name_metric(probe, subject)
    assert name.startswith(PREFIX)
    assert name_error(name) is None
    assert parse_metric(name) == (probe, subject)


def test_a_metric_of_the_user_is_no_probe() -> None:
    """A metric without the prefix has no probe."""
    assert parse_metric("val/accuracy") is None


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 40, 1000])
def test_the_chosen_subjects_lie_evenly_apart(count: int) -> None:
    """There are at most 16, in order, the first and the last among them, and their distances differ by one at most."""
    chosen = choose_subjects(range(count))
    assert len(chosen) == min(count, 16)
    assert chosen == sorted(set(chosen))
    if count:
        assert (chosen[0], chosen[-1]) == (0, count - 1)
    distances = {after - before for before, after in itertools.pairwise(chosen)}
    assert not distances or max(distances) - min(distances) <= 1
