"""Measures reads of runs with a thousand, a hundred thousand and a million steps of 100 layers x 8 statistics.

One client reads the diagnosis, one series, and the heatmap of every layer, 500 buckets each, over HTTP. The service
runs on SQLite in a process of its own. The table has wall-clock milliseconds.

    python -m benchmarks.query [--quick]
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np
from pydantic import SecretStr, TypeAdapter

from benchmarks.recorded_values import LAYERS, NAMES, RECORDED_STEPS, Blocks
from benchmarks.servers import gradmedic
from gradmedic.protocol.runs import RunCreate
from gradmedic.protocol.service import API_PATH
from gradmedic_diagnosis import StepSeries
from gradmedic_service.access.principal import OPERATOR
from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database
from gradmedic_service.runs import service as runs
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry import service as telemetry
from gradmedic_service.telemetry.decoding import ReceivedBlock
from gradmedic_service.telemetry.run_cache import RunCache

LENGTHS: Final = (1_000, 100_000, 1_000_000)
BUCKETS: Final = 500
QUERIES: Final = {
    "diagnosis": ("diagnosis", 200),
    "one series": (f"steps?statistic=grad_norm&layer=layer0.weight&max_points={BUCKETS}", 100),
    "heatmap": (f"steps?statistic=grad_norm&max_points={BUCKETS}", 50),
}
"""Path and number of repetitions, by query."""
TARGET_DIAGNOSIS_P99: Final = 10.0
TARGET_HEATMAP_P99: Final = 100.0
TARGET_GROWTH: Final = 2.0


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
            _, cached_run = telemetry.append(connection, OPERATOR, facts, run_cache, run.id, received)
        if cached_run is not None:
            run_cache.add(cached_run)
    return run.id


def measure_milliseconds(address: str, path: str, repeats: int) -> list[float]:
    """Return the milliseconds of each repetition of a request, over one connection."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        connection.request("GET", path)
        response = connection.getresponse()
        content = response.read()
        times.append((time.perf_counter() - started) * 1e3)
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{response.status}: {content[:500]!r}")
    connection.close()
    return times[2:]


def main() -> int:
    """Create the runs, measure, print the table and the verdicts; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="up to a hundred thousand steps")
    lengths = LENGTHS[:-1] if parser.parse_args().quick else LENGTHS
    percentiles: dict[tuple[str, int], tuple[float, float]] = {}
    with tempfile.TemporaryDirectory(prefix="gradmedic-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        url = f"sqlite:///{folder / 'query.db'}"
        schema.upgrade(url)
        database = Database(Settings(database_url=SecretStr(url)))
        run_ids = {}
        for length in lengths:
            print(f"(writing {length:,} steps, {length * LAYERS * len(NAMES):,} values ...)", flush=True)
            run_ids[length] = fill(database, length)
        database.close()
        print(f"\n{'milliseconds':16} {'steps':>10} {'p50':>8} {'p99':>8}")
        with gradmedic(url, folder) as (address, _):
            for query, (path, repeats) in QUERIES.items():
                for length, run_id in run_ids.items():
                    times = measure_milliseconds(address, f"{API_PATH}/runs/{run_id}/{path}", repeats)
                    p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
                    percentiles[query, length] = statistics.median(times), p99
                    print(f"{query:16} {length:10,} {percentiles[query, length][0]:8.1f} {p99:8.1f}", flush=True)
    shortest, longest = lengths[0], lengths[-1]
    checks = [
        ("diagnosis_p99_ms", max(percentiles["diagnosis", length][1] for length in lengths), TARGET_DIAGNOSIS_P99),
        ("heatmap_p99_ms", max(percentiles["heatmap", length][1] for length in lengths), TARGET_HEATMAP_P99),
        (
            "growth_with_length",
            max(percentiles[query, longest][0] / percentiles[query, shortest][0] for query in QUERIES),
            TARGET_GROWTH,
        ),
    ]
    print()
    for metric, value, target in checks:
        print(f"{metric}: {value:.2f} (target <= {target:g}) {'PASS' if value <= target else 'FAIL'}")
    missed = sum(value > target for _, value, target in checks)
    print(f"query_targets_missed: {missed} (target 0) {'PASS' if not missed else 'FAIL'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
