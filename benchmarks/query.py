"""Measures reads of runs with a thousand to a million steps of 100 layers x 8 statistics.

One client reads the diagnosis, one series, and the heatmap of every layer, 500 buckets each, over HTTP. The service
runs on SQLite in a process of its own. Each request is followed by one to an endpoint with nothing behind it
(`benchmarks.empty_service`); medians and 99th percentiles are judged by their ratio to those of that endpoint, and the
growth by the ratio of the longest run's median to the shortest run's (`benchmarks.comparison`). The table has
wall-clock milliseconds, which depend on the machine and are not judged.

A request that computes for long is interrupted on a busy machine, and a short one is not, so that their ratio would
measure the machine. If the heatmaps waited for more than a third of their time, latencies are not judged.

The runs do not change, so that each reading of a diagnosis but the first finds the cached one, as an open page of a
finished run does. Of a run that grows, each is computed anew.

The heatmap is read as the page of a run reads it: one number of each bucket, as msgpack and gzip. The first reads, of
each statistic, and the same heatmap with all numbers as JSON are in the table, too.

    python -m benchmarks.query [--quick]
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID

import numpy as np
import psutil
from pydantic import SecretStr, TypeAdapter

from benchmarks.comparison import Check, Interval, ratio_of_quantiles, repeat_until_decided, report
from benchmarks.empty_service import READ_PATH, empty_service
from benchmarks.recorded_values import LAYERS, NAMES, RECORDED_STEPS, Blocks
from benchmarks.senders import NO_HEADERS, Sender
from benchmarks.servers import cpu_clock, gradmedic
from gradmedic.protocol.runs import RunCreate
from gradmedic.protocol.service import API_PATH, MSGPACK_MEDIA_TYPE
from gradmedic_diagnosis import StepSeries
from gradmedic_service.access.principal import OPERATOR
from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database
from gradmedic_service.runs import service as runs
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry.appending import append
from gradmedic_service.telemetry.decoding import ReceivedBlock
from gradmedic_service.telemetry.run_cache import RunCache

LENGTHS: Final = (1_000, 100_000, 1_000_000)
LONGEST_READING: Final = 24_000
"""Steps of the run with the most to read: its rollups have a few buckets less than a heatmap, so that every step is
read. Its first readings are printed."""
BUCKETS: Final = 500
AS_THE_PAGE: Final = {"Accept": MSGPACK_MEDIA_TYPE, "Accept-Encoding": "gzip"}
"""Headers of the page's requests."""
REQUESTS: Final = 100
"""Requests of each judged kind in a round."""
ROUNDS: Final = 20
"""Fewest rounds: a 99th percentile of 2,000 samples has 20 samples above it."""
LEAST_COMPUTING: Final = 2 / 3
"""Smallest share of computing in the time of the heatmaps, by client and service, at which latencies are judged."""
SECONDS: Final = 1_200.0
"""Bound of the time in which the checks must be decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A request whose duration is measured.

    Attributes:
        path: below the run's, with the place of a statistic's name as `{statistic}`.
        headers: of the request.
        target: largest ratio of its median, and of its 99th percentile, to the empty endpoint's; None: not judged.
        target_growth: largest ratio of the longest run's median to that of the shortest; None: not judged.
        every: measured in each so many turns only.
    """

    path: str
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    target: float | None = None
    target_growth: float | None = None
    every: int = 1


HEATMAP: Final = f"steps?statistic={{statistic}}&field=mean&max_points={BUCKETS}"
QUERIES: Final = {
    "diagnosis": Query(path="diagnosis", target=3.0, target_growth=1.5),
    "heatmap": Query(path=HEATMAP, headers=AS_THE_PAGE, target=25.0, target_growth=1.5),
    "one series": Query(
        path=f"steps?statistic={{statistic}}&layer=layer0.weight&max_points={BUCKETS}", target_growth=1.5, every=5
    ),
    "heatmap, JSON": Query(path=f"steps?statistic={{statistic}}&max_points={BUCKETS}", every=10),
}
QUANTILES: Final = {"median": 0.5, "p99": 0.99}


def fill(database: Database, length: int) -> UUID:
    """Create a run with `length` steps, and return its id."""
    blocks = Blocks()
    all_true = np.ones(RECORDED_STEPS, dtype=np.bool_)
    present = np.ones((RECORDED_STEPS, LAYERS), dtype=np.bool_)
    matrices = {name: np.ascontiguousarray(blocks.values[:, :, at]) for at, name in enumerate(NAMES)}
    facts, run_cache = FactsCache(), RunCache()
    with database.writing() as session:
        run, _ = runs.create(session, OPERATOR, TypeAdapter(RunCreate).validate_json(blocks.run()), Settings().limits())
    for first in range(0, length, RECORDED_STEPS):
        count = min(RECORDED_STEPS, length - first)
        received = ReceivedBlock(
            generation=None,
            steps=np.arange(first, first + count),
            sampled=all_true[:count],
            skipped=~all_true[:count],
            series={"loss": StepSeries(blocks.loss[:count], all_true[:count])},
            metrics={},
            statistics={name: matrix[:count] for name, matrix in matrices.items()},
            present=present[:count],
        )
        with database.writing_rows() as connection:
            cached_run = append(connection, OPERATOR, facts, run_cache, run.id, received).cached
        if cached_run is not None:
            run_cache.add(cached_run)
    return run.id


class Reads:
    """Milliseconds of requests to runs of several lengths, each beside a request to the empty endpoint."""

    def __init__(self, address: str, process: psutil.Process, empty_address: str, run_ids: Mapping[int, UUID]) -> None:
        self._sender, self._empty = Sender(address), Sender(empty_address)
        self._clock = cpu_clock(process)
        self._run_ids = run_ids
        self._lengths = [length for length in run_ids if length in LENGTHS]
        kinds = [(query, length) for query in QUERIES for length in self._lengths]
        self.samples: dict[tuple[str, int], list[list[float]]] = {kind: [] for kind in kinds}
        """Of each round, by query and length."""
        self.empty: dict[tuple[str, int], list[list[float]]] = {kind: [] for kind in kinds}
        """Of the requests to the empty endpoint beside them."""
        self.computing: dict[tuple[str, int], list[float]] = {kind: [] for kind in kinds}
        """Milliseconds of CPU of client and service, of each request."""

    @property
    def share_of_computing(self) -> float:
        """Share of the heatmaps' time in which client or service computed."""
        kinds = [kind for kind in self.samples if kind[0] == "heatmap"]
        taken = sum(sample for kind in kinds for part in self.samples[kind] for sample in part)
        return sum(sum(self.computing[kind]) for kind in kinds) / taken

    def read_first(self) -> dict[int, float]:
        """Return the median milliseconds of the first heatmap of each statistic, by the run's length."""
        return {
            length: statistics.median(self._time("heatmap", length, statistic) for statistic in NAMES)
            for length in self._run_ids
        }

    def take_round(self) -> None:
        """Measure a round, with the kinds of requests in turn; each second turn in reverse order."""
        kinds = list(self.samples)
        for kind in kinds:
            self.samples[kind].append([])
            self.empty[kind].append([])
        for turn in range(REQUESTS):
            for query, length in reversed(kinds) if turn % 2 else kinds:
                if turn % QUERIES[query].every == 0:
                    computed = self._cpu_milliseconds()
                    taken = self._time(query, length, NAMES[0])
                    self.samples[query, length][-1].append(taken)
                    self.computing[query, length].append(self._cpu_milliseconds() - computed)
                    self.empty[query, length][-1].append(self._empty.time_get(READ_PATH))

    def checks(self) -> list[Check]:
        """Return the checks of every query."""
        shortest, longest = self._lengths[0], self._lengths[-1]
        checks = [
            Check(
                name=f"{query}, {length:,} steps, {name} / empty endpoint",
                estimate=partial(self._beside_empty, (query, length), quantile),
                limit=QUERIES[query].target or 0.0,
            )
            for query, length in self.samples
            for name, quantile in QUANTILES.items()
            if QUERIES[query].target is not None
        ]
        checks += [
            Check(
                name=f"{query}, {longest:,} steps / {shortest:,} steps, median",
                estimate=partial(
                    ratio_of_quantiles,
                    self.samples[query, longest],
                    self.samples[query, shortest],
                    QUANTILES["median"],
                ),
                limit=declared.target_growth,
            )
            for query, declared in QUERIES.items()
            if declared.target_growth is not None
        ]
        return checks

    def print_table(self) -> None:
        """Print milliseconds by query and length."""
        print(f"\n{'milliseconds':16} {'steps':>10} {'p50':>8} {'p99':>8} {'CPU, p50':>8} {'samples':>8}")
        for kind, rounds in self.samples.items():
            samples = [sample for part in rounds for sample in part]
            _print_row(kind[0], f"{kind[1]:,}", samples, f"{statistics.median(self.computing[kind]):.2f}")
        empty = [sample for rounds in self.empty.values() for part in rounds for sample in part]
        _print_row("empty endpoint", "", empty, "")
        share = self.share_of_computing
        print(f"computing: {share:.0%} of the heatmaps' time (latencies are judged from {LEAST_COMPUTING:.0%})")

    def _beside_empty(self, kind: tuple[str, int], quantile: float) -> Interval:
        ratio = ratio_of_quantiles(self.samples[kind], self.empty[kind], quantile)
        return ratio if self.share_of_computing >= LEAST_COMPUTING else Interval(ratio.estimate, -math.inf, math.inf)

    def _cpu_milliseconds(self) -> float:
        return (time.thread_time() + time.clock_gettime(self._clock)) * 1e3

    def _time(self, query: str, length: int, statistic: str) -> float:
        path = f"{API_PATH}/runs/{self._run_ids[length]}/{QUERIES[query].path.format(statistic=statistic)}"
        return self._sender.time_get(path, QUERIES[query].headers)


def _print_row(name: str, length: str, samples: list[float], computing: str) -> None:
    p50, p99 = np.quantile(samples, (0.5, 0.99))
    print(f"{name:16} {length:>10} {p50:8.2f} {p99:8.2f} {computing:>8} {len(samples):8,}", flush=True)


def main() -> int:
    """Create the runs, measure, print the table and the verdicts.

    Return 1 if a target is missed, and 2 if one could not be decided.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="up to a hundred thousand steps")
    lengths = LENGTHS[:-1] if parser.parse_args().quick else LENGTHS
    with tempfile.TemporaryDirectory(prefix="gradmedic-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        url = f"sqlite:///{folder / 'query.db'}"
        schema.upgrade(url)
        database = Database(Settings(database_url=SecretStr(url)))
        run_ids = {}
        for length in (*lengths, LONGEST_READING):
            print(f"(writing {length:,} steps, {length * LAYERS * len(NAMES):,} values ...)", flush=True)
            run_ids[length] = fill(database, length)
        database.close()
        with gradmedic(url, folder) as (address, process), empty_service(folder) as (empty_address, _):
            reads = Reads(address, process, empty_address, run_ids)
            for length, milliseconds in reads.read_first().items():
                print(f"first heatmap of a statistic, {length:,} steps: {milliseconds:.1f} ms (median of {len(NAMES)})")
            checks = reads.checks()
            repeat_until_decided(reads.take_round, checks, SECONDS, ROUNDS)
        reads.print_table()
    return report("bench-query", checks)


if __name__ == "__main__":
    sys.exit(main())
