"""Measures the cost of storing statistics: gradmedic, MLflow's server and trackio, on the same recorded values.

A block is 50 steps x 100 layers x 8 statistics. The figures of gradmedic include the diagnosis. CPU seconds are those
of the processes that receive and store, not of the clients (trackio has no server: there the process that logs counts).

What is judged is a ratio, measured in turn with its reference (`benchmarks.comparison`):

- a block: storage alone, which is SQLite in this process, with a durable transaction and a row of raw bytes a block;
- a step a request: an endpoint with nothing behind it that receives the same body (`benchmarks.empty_service`);
- other tools: gradmedic's blocks.

    python -m benchmarks.ingest [--quick]
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Final

import psutil
import psycopg

from benchmarks.comparison import Check, Interval, Turns, ratio_of_costs, repeat_until_decided, report
from benchmarks.empty_service import APPEND_ON_THREAD_PATH, APPEND_PATH, empty_service
from benchmarks.ingest_peers import MLFLOW, TRACKIO, measure_trackio, mlflow_server
from benchmarks.recorded_values import BLOCK_STEPS, LAYERS, NAMES, VALUES_PER_STEP, Blocks
from benchmarks.senders import Sender
from benchmarks.servers import cpu_seconds, gradmedic, postgres
from gradmedic.protocol.service import API_PATH, JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE
from gradmedic_service.database import schema

WARM_UP_BLOCKS: Final = 10
STAGE_SECONDS: Final = 600.0
"""Bound of the time in which a stage must be decided."""
STORAGE_BLOCKS, BINARY_BLOCKS, JSON_BLOCKS, SINGLE_STEPS, EMPTY_STEPS = 200, 80, 40, 150, 600
"""Requests of a turn."""
CLIENTS: Final = 4

BINARY_TARGET: Final = 11.0
POSTGRESQL_TARGET: Final = 14.0
JSON_TARGET: Final = 18.0
SINGLE_STEP_TARGET: Final = 5.0
BYTES_TARGET: Final = 2.6
MLFLOW_TARGET: Final = 1_500.0
TRACKIO_TARGET: Final = 30.0


class Stream:
    """A run at a service, to which one client appends blocks.

    Args:
        address: of the service.
        processes: those whose CPU time counts.
        media_type: form of the blocks.
        length: steps of a block.
    """

    def __init__(
        self, address: str, processes: Sequence[psutil.Process], media_type: str, length: int = BLOCK_STEPS
    ) -> None:
        self._blocks, self._processes = Blocks(), processes
        self._media_type, self._length = media_type, length
        self._sender = Sender(address)
        created = self._sender.post(f"{API_PATH}/runs", self._blocks.run())
        self._path = f"{API_PATH}/runs/{created['id']}/steps"
        self.block_count = 0
        """Number of blocks so far."""
        self.send(self.next_bodies(WARM_UP_BLOCKS))

    @property
    def value_count(self) -> int:
        """Number of values so far."""
        return self.block_count * self._length * VALUES_PER_STEP

    def next_bodies(self, number: int) -> list[bytes]:
        """Return the bodies of the next blocks."""
        first, self.block_count = self.block_count, self.block_count + number
        return [self._blocks.body(index, self._media_type, self._length) for index in range(first, self.block_count)]

    def send(self, bodies: Sequence[bytes]) -> None:
        """Append blocks."""
        for body in bodies:
            self._sender.post(self._path, body, self._media_type)

    def measure(self, number: int) -> float:
        """Append blocks; return the CPU seconds a value."""
        bodies = self.next_bodies(number)
        started = sum(map(cpu_seconds, self._processes))
        self.send(bodies)
        return (sum(map(cpu_seconds, self._processes)) - started) / (number * self._length * VALUES_PER_STEP)


def measure_clients(streams: Sequence[Stream], process: psutil.Process, number: int) -> float:
    """Append blocks to several runs at the same time; return the CPU seconds a value."""
    share = number // len(streams)
    parts = [stream.next_bodies(share) for stream in streams]
    threads = [threading.Thread(target=stream.send, args=(part,)) for stream, part in zip(streams, parts, strict=True)]
    started = cpu_seconds(process)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (cpu_seconds(process) - started) / (share * len(streams) * BLOCK_STEPS * VALUES_PER_STEP)


class EmptyStream:
    """A client of the service with nothing behind it, which receives the bodies of single steps."""

    def __init__(self, address: str, process: psutil.Process, path: str) -> None:
        self._sender, self._process, self._blocks = Sender(address), process, Blocks()
        self._path = path
        self._indices = count()
        self.measure(WARM_UP_BLOCKS)

    def measure(self, number: int) -> float:
        """Send single steps; return the CPU seconds a value."""
        bodies = [self._blocks.body(next(self._indices), MSGPACK_MEDIA_TYPE, 1) for _ in range(number)]
        started = cpu_seconds(self._process)
        for body in bodies:
            self._sender.post(self._path, body, MSGPACK_MEDIA_TYPE)
        return (cpu_seconds(self._process) - started) / (number * VALUES_PER_STEP)


class Storage:
    """SQLite alone: a row of raw bytes for each block, in a durable transaction of its own."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("CREATE TABLE blocks (id INTEGER PRIMARY KEY, data BLOB)")
        self._bodies = self._cycle(Blocks())
        self.measure(WARM_UP_BLOCKS)

    @staticmethod
    def _cycle(blocks: Blocks) -> Iterator[bytes]:
        return (blocks.part(index)[1].tobytes() for index in count())

    def measure(self, number: int) -> float:
        """Store blocks; return the CPU seconds a value."""
        bodies = [next(self._bodies) for _ in range(number)]
        started = time.process_time()
        for body in bodies:
            self._connection.execute("INSERT INTO blocks (data) VALUES (?)", (body,))
        return (time.process_time() - started) / (number * BLOCK_STEPS * VALUES_PER_STEP)


def ratio_check(name: str, turns: Turns[float], subject: str, reference: str, limit: float, **options: bool) -> Check:
    """Return the check of the ratio of two costs that are measured in turn."""

    def estimate() -> Interval:
        return ratio_of_costs(turns.results[subject], turns.results[reference])

    return Check(name=name, estimate=estimate, limit=limit, style="{:,.2f}x", **options)


def bytes_check(name: str, bytes_per_value: float) -> Check:
    """Return the check of the bytes on disk a value."""
    return Check(name=name, estimate=lambda: Interval.exact(bytes_per_value), limit=BYTES_TARGET, style="{:.2f}")


def measure_sqlite(folder: Path) -> list[Check]:
    """Measure gradmedic on SQLite beside storage alone and the endpoint with nothing behind; return the checks."""
    path, other_path = folder / "binary.db", folder / "others.db"
    with (
        gradmedic(f"sqlite:///{path}", folder) as (address, process),
        gradmedic(f"sqlite:///{other_path}", folder) as (other_address, other_process),
        empty_service(folder) as (empty_address, empty_process),
    ):
        binary = Stream(address, [process], MSGPACK_MEDIA_TYPE)
        in_json = Stream(other_address, [other_process], JSON_MEDIA_TYPE)
        singly = Stream(other_address, [other_process], MSGPACK_MEDIA_TYPE, length=1)
        several = [Stream(other_address, [other_process], MSGPACK_MEDIA_TYPE) for _ in range(CLIENTS)]
        empty = EmptyStream(empty_address, empty_process, APPEND_PATH)
        empty_on_thread = EmptyStream(empty_address, empty_process, APPEND_ON_THREAD_PATH)
        storage = Storage(folder / "raw.db")
        measures: dict[str, Callable[[], float]] = {
            "SQLite alone, a blob per block": lambda: storage.measure(STORAGE_BLOCKS),
            "binary": lambda: binary.measure(BINARY_BLOCKS),
            "JSON": lambda: in_json.measure(JSON_BLOCKS),
            f"binary, {CLIENTS} clients": lambda: measure_clients(several, other_process, BINARY_BLOCKS),
            "a step a request": lambda: singly.measure(SINGLE_STEPS),
            "empty endpoint, a step a request": lambda: empty.measure(EMPTY_STEPS),
            "the same on a thread": lambda: empty_on_thread.measure(EMPTY_STEPS),
        }
        turns = Turns(measures)
        alone = "SQLite alone, a blob per block"
        checks = [
            ratio_check("binary, SQLite / storage alone", turns, "binary", alone, BINARY_TARGET),
            ratio_check("JSON, SQLite / storage alone", turns, "JSON", alone, JSON_TARGET),
            ratio_check(
                "a step a request / empty endpoint",
                turns,
                "a step a request",
                "empty endpoint, a step a request",
                SINGLE_STEP_TARGET,
            ),
        ]
        rounds = repeat_until_decided(turns.take, checks, STAGE_SECONDS)
    print_costs(f"SQLite, {rounds} rounds", turns.results)
    return [*checks, bytes_check("bytes a value, SQLite", path.stat().st_size / binary.value_count)]


def measure_postgres(folder: Path) -> list[Check]:
    """Measure gradmedic on PostgreSQL, whose processes count, too, beside storage alone; return the checks."""
    with postgres(folder) as (url, server):
        schema.upgrade(url)
        before = _size(url)
        with gradmedic(url, folder) as (address, process):
            binary = Stream(address, [process, server], MSGPACK_MEDIA_TYPE)
            storage = Storage(folder / "raw-beside-postgresql.db")
            measures: dict[str, Callable[[], float]] = {
                "SQLite alone, a blob per block": lambda: storage.measure(STORAGE_BLOCKS),
                "binary, PostgreSQL's processes included": lambda: binary.measure(BINARY_BLOCKS),
            }
            turns = Turns(measures)
            alone, ours = measures
            checks = [ratio_check("binary, PostgreSQL / storage alone", turns, ours, alone, POSTGRESQL_TARGET)]
            rounds = repeat_until_decided(turns.take, checks, STAGE_SECONDS)
        size = (_size(url) - before) / binary.value_count
    print_costs(f"PostgreSQL, {rounds} rounds", turns.results)
    return [*checks, bytes_check("bytes a value, PostgreSQL", size)]


def measure_peers(folder: Path) -> list[Check]:
    """Measure MLflow's server and trackio beside gradmedic; return the checks."""
    mlflow_name, trackio_name = f"MLflow {MLFLOW[1]} server, SQLite", f"trackio {TRACKIO[1]}, local"
    with (
        gradmedic(f"sqlite:///{folder / 'beside-others.db'}", folder) as (address, process),
        mlflow_server(folder) as mlflow,
    ):
        binary = Stream(address, [process], MSGPACK_MEDIA_TYPE)
        measures: dict[str, Callable[[], float]] = {
            "binary": lambda: binary.measure(BINARY_BLOCKS),
            mlflow_name: mlflow.measure,
            trackio_name: lambda: measure_trackio(folder),
        }
        turns = Turns(measures)
        checks = [
            ratio_check("MLflow / binary", turns, mlflow_name, "binary", MLFLOW_TARGET, is_floor=True),
            ratio_check("trackio / binary", turns, trackio_name, "binary", TRACKIO_TARGET, is_floor=True),
        ]
        rounds = repeat_until_decided(turns.take, checks, STAGE_SECONDS)
    print_costs(f"other tools, {rounds} rounds", turns.results)
    return checks


def _size(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None
    return int(row[0])


def print_costs(title: str, costs: Mapping[str, Sequence[float]]) -> None:
    """Print the median CPU seconds per million values of each row. They depend on the machine and are not judged."""
    print(f"\n{title}: CPU seconds per million values (median)")
    for name, values in costs.items():
        print(f"  {name:40} {1e6 * statistics.median(values):12.4f}", flush=True)


def main() -> int:
    """Measure, print the tables and the verdicts; return 1 if a target is missed, 2 if one could not be decided."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="SQLite only, and no other tools")
    arguments = parser.parse_args()
    print(f"{BLOCK_STEPS} steps x {LAYERS} layers x {len(NAMES)} statistics a block, diagnosis included")
    with tempfile.TemporaryDirectory(prefix="gradmedic-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        checks = measure_sqlite(folder)
        if not arguments.quick:
            checks += measure_postgres(folder)
            checks += measure_peers(folder)
    return report("bench-ingest", checks)


if __name__ == "__main__":
    sys.exit(main())
