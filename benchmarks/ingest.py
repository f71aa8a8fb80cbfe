"""Measures the cost of storing statistics: gradmedic, MLflow's server, trackio, and SQLite alone, on the same values.

The figures of gradmedic include the diagnosis. CPU seconds are those of the processes that receive and store, not of
the clients (trackio has no server: there it is the process that logs). A block is 50 steps x 100 layers x 8 statistics.

    python -m benchmarks.ingest [--quick]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil
import psycopg
from tests.support.ports import free_port, is_listening

from benchmarks.recorded_values import BLOCK_STEPS, LAYERS, NAMES, VALUES_PER_BLOCK, VALUES_PER_STEP, Blocks
from benchmarks.servers import cpu_seconds, environment_of, gradmedic, postgres, wait_for
from gradmedic.protocol.service import API_PATH, JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE
from gradmedic_service.database import schema

MLFLOW: Final = ("mlflow", "3.17.2")
TRACKIO: Final = ("trackio", "0.43.0")
REPEATS: Final = 3
"""Number of repetitions of a judged measurement.

The smallest value counts: other load of the machine only adds time.
"""
WARM_UP_BLOCKS: Final = 10
BLOCKS: Final = 400
SINGLE_STEPS: Final = 20
"""Number of steps that MLflow stores (16,000 values)."""
TRACKIO_STEPS: Final = 400
MLFLOW_BATCH: Final = 1_000
"""Largest number of metrics in a request to MLflow's server."""

TARGETS: Final = {
    "sqlite_binary_cpu_s_per_million": 0.15,
    "postgresql_binary_cpu_s_per_million": 0.22,
    "sqlite_json_cpu_s_per_million": 0.38,
    "sqlite_bytes_per_value": 2.6,
    "postgresql_bytes_per_value": 2.6,
    "mlflow_ratio": 1_500,
    "trackio_ratio": 35,
}

TRACKIO_SCRIPT: Final = """
import json, resource, sys, time
import numpy
import trackio
values, names = numpy.load(sys.argv[1]), json.loads(sys.argv[2])
def cpu():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
trackio.init(project="bench", name="run", embed=False)
trackio.log({"x": 1.0})
started, wall = cpu(), time.perf_counter()
for row in values:
    trackio.log(dict(zip(names, row.tolist())))
trackio.finish()
print(json.dumps({"cpu": cpu() - started, "seconds": time.perf_counter() - wall}))
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """A row of the table."""

    name: str
    values: int
    seconds: float
    cpu: float
    bytes: float | None = None

    @property
    def cpu_per_million(self) -> float:
        """CPU seconds of the receiving side per million values."""
        return self.cpu / self.values * 1e6

    @property
    def bytes_per_value(self) -> float:
        """Bytes on disk; NaN if they were not measured."""
        return float("nan") if self.bytes is None else self.bytes / self.values

    def __str__(self) -> str:
        rate = f"{self.values / self.seconds:14,.0f}"
        return f"{self.name:44} {rate} {self.cpu_per_million:12.4f} {self.bytes_per_value:14.2f}"


class Sender:
    """A client that costs little: it sends prepared bodies over one connection."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc)

    def post(self, path: str, body: bytes, media_type: str = JSON_MEDIA_TYPE) -> Any:
        """Send a request and return its answer."""
        self._connection.request("POST", path, body, {"Content-Type": media_type})
        response = self._connection.getresponse()
        content = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{response.status}: {content[:500]!r}")
        return json.loads(content or b"null")


def measure_gradmedic(
    name: str,
    address: str,
    processes: list[psutil.Process],
    media_type: str,
    clients: int,
    count: int,
    length: int = BLOCK_STEPS,
) -> Measured:
    """Stream `count` blocks of `length` steps, shared by some clients, each of which has a run of its own."""
    blocks = Blocks()
    blocks_per_client = count // clients
    bodies = [blocks.body(index, media_type, length) for index in range(WARM_UP_BLOCKS + blocks_per_client)]
    senders = [Sender(address) for _ in range(clients)]
    paths = [f"{API_PATH}/runs/{sender.post(f'{API_PATH}/runs', blocks.run())['id']}" for sender in senders]

    def stream(sender: Sender, path: str, part: list[bytes]) -> None:
        for body in part:
            sender.post(f"{path}/steps", body, media_type)

    for sender, path in zip(senders, paths, strict=True):
        stream(sender, path, bodies[:WARM_UP_BLOCKS])
    threads = [
        threading.Thread(target=stream, args=(sender, path, bodies[WARM_UP_BLOCKS:]))
        for sender, path in zip(senders, paths, strict=True)
    ]
    started, wall = sum(map(cpu_seconds, processes)), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - wall
    values = blocks_per_client * clients * length * VALUES_PER_STEP
    return Measured(name, values, seconds, sum(map(cpu_seconds, processes)) - started)


def measure_sqlite(folder: Path, count: int) -> dict[str, Measured]:
    """Measure gradmedic on SQLite; of repeated measurements, return the one with the least CPU time."""
    measurements: dict[str, Measured] = {}
    for form, media_type, clients, share, length, times in (
        ("binary", MSGPACK_MEDIA_TYPE, 1, 1, BLOCK_STEPS, REPEATS),
        ("binary", MSGPACK_MEDIA_TYPE, 4, 2, BLOCK_STEPS, 1),
        ("JSON", JSON_MEDIA_TYPE, 1, 4, BLOCK_STEPS, REPEATS),
        ("a step a request", MSGPACK_MEDIA_TYPE, 1, 1, 1, 1),
    ):
        name = f"{form}, {_clients(clients)}"
        for repeat in range(times):
            path = folder / f"{form}-{clients}-{repeat}.db"
            with gradmedic(f"sqlite:///{path}", folder) as (address, process):
                measured = measure_gradmedic(
                    f"gradmedic, SQLite, {name}", address, [process], media_type, clients, count // share, length
                )
            size = path.stat().st_size / (measured.values + WARM_UP_BLOCKS * clients * length * VALUES_PER_STEP)
            measurements[name] = _cheaper(measurements.get(name), replace(measured, bytes=size * measured.values))
    return measurements


def measure_postgres(folder: Path, count: int) -> dict[str, Measured]:
    """Measure gradmedic on PostgreSQL, whose processes count, too; of repeated measurements, return the cheapest."""
    measurements: dict[str, Measured] = {}
    with postgres(folder) as (url, server):
        schema.upgrade(url)
        for form, media_type, clients, share, times in (
            ("binary", MSGPACK_MEDIA_TYPE, 1, 1, REPEATS),
            ("binary", MSGPACK_MEDIA_TYPE, 4, 2, 1),
            ("JSON", JSON_MEDIA_TYPE, 1, 4, 1),
        ):
            name = f"{form}, {_clients(clients)}"
            for _ in range(times):
                before = _size(url)
                with gradmedic(url, folder) as (address, process):
                    measured = measure_gradmedic(
                        f"gradmedic, PostgreSQL, {name}",
                        address,
                        [process, server],
                        media_type,
                        clients,
                        count // share,
                    )
                size = (_size(url) - before) / (measured.values + WARM_UP_BLOCKS * clients * VALUES_PER_BLOCK)
                measurements[name] = _cheaper(measurements.get(name), replace(measured, bytes=size * measured.values))
    return measurements


def _clients(count: int) -> str:
    return f"{count} client{'s' * (count > 1)}"


def _cheaper(before: Measured | None, measured: Measured) -> Measured:
    """Print a measurement, and return it or an earlier one, whichever took less CPU time."""
    print(measured, flush=True)
    return measured if before is None or measured.cpu_per_million < before.cpu_per_million else before


def _size(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None
    return int(row[0])


def measure_storage(folder: Path, count: int) -> Measured:
    """Measure SQLite alone: a row of raw bytes for each block, in a durable transaction of its own."""
    blocks = Blocks()
    bodies = [blocks.part(index)[1].tobytes() for index in range(count)]
    connection = sqlite3.connect(folder / "raw.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE blocks (id INTEGER PRIMARY KEY, data BLOB)")
    started, wall = time.process_time(), time.perf_counter()
    for body in bodies:
        connection.execute("INSERT INTO blocks (data) VALUES (?)", (body,))
    cpu, seconds = time.process_time() - started, time.perf_counter() - wall
    connection.close()
    size = (folder / "raw.db").stat().st_size
    measured = Measured("SQLite alone, a blob per block", count * VALUES_PER_BLOCK, seconds, cpu, size)
    print(measured, flush=True)
    return measured


def measure_mlflow(folder: Path) -> Measured:
    """Measure MLflow's server on SQLite, with requests of up to 1,000 metrics."""
    python = environment_of(*MLFLOW)
    path, port = folder / "mlflow.db", free_port()
    command = [str(python.parent / "mlflow"), "server", "--backend-store-uri", f"sqlite:///{path}", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--workers", "1", "--artifacts-destination", str(folder / "artifacts")]
    environment = {"PATH": f"{python.parent}:{os.environ['PATH']}", "HOME": str(folder)}
    with (folder / "mlflow.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, text=True, cwd=folder, env=environment)
    try:
        wait_for(lambda: is_listening(port), server)
        process, sender = psutil.Process(server.pid), Sender(f"http://127.0.0.1:{port}")
        api = "/api/2.0/mlflow"
        created = sender.post(f"{api}/runs/create", json.dumps({"experiment_id": "0"}).encode())
        run_id = created["run"]["info"]["run_id"]
        values = Blocks().values[: SINGLE_STEPS + 1].astype(float)
        batches = []
        for step, layers in enumerate(values):
            metrics = [
                {"key": f"layer{layer}.{name}", "value": layers[layer, at], "timestamp": step, "step": step}
                for layer in range(LAYERS)
                for at, name in enumerate(NAMES)
            ]
            batches.append(json.dumps({"run_id": run_id, "metrics": metrics[:MLFLOW_BATCH]}).encode())
        sender.post(f"{api}/runs/log-batch", batches[0])
        started, wall = cpu_seconds(process), time.perf_counter()
        for batch in batches[1:]:
            sender.post(f"{api}/runs/log-batch", batch)
        cpu, seconds = cpu_seconds(process) - started, time.perf_counter() - wall
    finally:
        for child in psutil.Process(server.pid).children(recursive=True):
            child.terminate()
        server.terminate()
        server.wait(timeout=60)
    count = SINGLE_STEPS * LAYERS * len(NAMES)
    measured = Measured(f"MLflow {MLFLOW[1]} server, SQLite, 1 client", count, seconds, cpu)
    print(measured, flush=True)
    return measured


def measure_trackio(folder: Path) -> Measured:
    """Measure trackio, which stores into SQLite in the process that logs, with one `trackio.log` for each step."""
    import numpy as np

    python = environment_of(*TRACKIO)
    values = Blocks().values[:TRACKIO_STEPS].reshape(TRACKIO_STEPS, -1)
    np.save(folder / "values.npy", values)
    names = json.dumps([f"layer{layer}.{name}" for layer in range(LAYERS) for name in NAMES])
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TRACKIO_DIR": str(folder / "trackio")}
    done = subprocess.run(
        [python, "-c", TRACKIO_SCRIPT, folder / "values.npy", names],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    answer = json.loads(done.stdout.splitlines()[-1])
    size = sum(file.stat().st_size for file in (folder / "trackio").rglob("*.db"))
    measured = Measured(f"trackio {TRACKIO[1]}, local", values.size, answer["seconds"], answer["cpu"], size)
    print(measured, flush=True)
    return measured


def main() -> int:
    """Measure, print the table and the verdicts; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tenth of the blocks, and no other tools")
    arguments = parser.parse_args()
    count = BLOCKS // 10 if arguments.quick else BLOCKS
    print(f"{BLOCK_STEPS} steps x {LAYERS} layers x {len(NAMES)} statistics a block, diagnosis included\n")
    print(f"{'':44} {'values/s':>14} {'CPU s/M':>12} {'bytes/value':>14}")
    with tempfile.TemporaryDirectory(prefix="gradmedic-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        storage = measure_storage(folder, count)
        on_sqlite, on_postgres = measure_sqlite(folder, count), measure_postgres(folder, count)
        sqlite_binary, sqlite_json = on_sqlite["binary, 1 client"], on_sqlite["JSON, 1 client"]
        postgres_binary = on_postgres["binary, 1 client"]
        metrics = {
            "sqlite_binary_cpu_s_per_million": sqlite_binary.cpu_per_million,
            "postgresql_binary_cpu_s_per_million": postgres_binary.cpu_per_million,
            "sqlite_json_cpu_s_per_million": sqlite_json.cpu_per_million,
            "sqlite_bytes_per_value": sqlite_binary.bytes_per_value,
            "postgresql_bytes_per_value": postgres_binary.bytes_per_value,
        }
        if not arguments.quick:
            metrics["mlflow_ratio"] = measure_mlflow(folder).cpu_per_million / sqlite_binary.cpu_per_million
            metrics["trackio_ratio"] = measure_trackio(folder).cpu_per_million / sqlite_binary.cpu_per_million
    print(f"\nCPU over that of the storage alone: {sqlite_binary.cpu_per_million / storage.cpu_per_million:.1f}x")
    missed = 0
    for metric, value in metrics.items():
        target = TARGETS[metric]
        is_met = value >= target if metric.endswith("_ratio") else value <= target
        missed += not is_met
        sign = ">=" if metric.endswith("_ratio") else "<="
        print(f"{metric}: {value:,.3f} (target {sign} {target:,}) {'PASS' if is_met else 'FAIL'}")
    passed = "PASS" if not missed else "FAIL"
    print(f"ingest_targets_missed: {missed} (target 0) {passed}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
