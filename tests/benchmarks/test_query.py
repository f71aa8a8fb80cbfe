"""The benchmark of reads: latencies are judged beside an empty endpoint, where the machine has a free core."""

from __future__ import annotations

import time
from uuid import uuid4

import psutil
import pytest
from benchmarks.comparison import Outcome
from benchmarks.query import QUERIES, Reads
from benchmarks.servers import cpu_clock


def reads(heatmap: float, computing: float) -> Reads:
    """Make measurements of two runs: a heatmap takes `heatmap` ms, a share `computing` of it on a core."""
    made = Reads("http://127.0.0.1:1", psutil.Process(), "http://127.0.0.1:1", {1_000: uuid4(), 1_000_000: uuid4()})
    for query, length in made.samples:
        taken = heatmap if query == "heatmap" else 2.0
        made.samples[query, length] = [[taken] * 100] * 20
        made.empty[query, length] = [[1.0] * 100] * 20
        made.computing[query, length] = [taken * computing] * 2_000
    return made


@pytest.mark.parametrize(
    ("heatmap", "computing", "outcome"),
    [(20.0, 0.9, Outcome.MET), (30.0, 0.9, Outcome.MISSED), (30.0, 0.3, Outcome.CANNOT_TELL)],
)
def test_latencies_are_judged_where_a_core_is_free(heatmap: float, computing: float, outcome: Outcome) -> None:
    """Medians and tails are judged by the empty endpoint's; requests that mostly waited tell nothing."""
    checks = reads(heatmap, computing).checks()
    latencies = [check for check in checks if check.name.startswith("heatmap") and "empty endpoint" in check.name]
    assert len(latencies) == 4  # of two lengths, the median and the 99th percentile
    assert {check.judge() for check in latencies} == {outcome}


def test_growth_is_judged_on_a_busy_machine_too() -> None:
    """Both runs wait alike, so their ratio holds."""
    growth = [check for check in reads(30.0, 0.3).checks() if "empty endpoint" not in check.name]
    assert len(growth) == sum(query.target_growth is not None for query in QUERIES.values())
    assert {check.judge() for check in growth} == {Outcome.MET}


def test_the_clock_of_a_process_is_its_cpu_time() -> None:
    """The clock of this process goes with its CPU time, also while another thread computes."""
    clock = cpu_clock(psutil.Process())
    before = time.clock_gettime(clock), time.process_time()
    sum(range(200_000))
    after = time.clock_gettime(clock), time.process_time()
    assert after[0] > before[0]
    assert before[0] <= before[1] <= after[0] <= after[1]
