"""Measures the service under load, and under more load than it can serve.

200 runs send a block of 50 steps x 100 layers x 8 statistics every five seconds for a minute, each over a connection of
its own and with a key; then four times as often for half a minute; then as before. Latency is counted from the moment a
block was due, so that it includes the time that a client waits. A refused client sends again after `Retry-After`
seconds. At the end, the benchmark checks that every acknowledged step is stored.

Then 50 of the runs go on for half a minute while a client with a key of its own attacks (`benchmarks.hostile`). At
last, 2,000 further runs send two blocks each, one every 50 seconds (`benchmarks.many_runs`).

Before the minute, each run gets between one and two rows of rollups, each run another number of blocks. The service
keeps in memory the buckets of the next row; if all runs began at once, this memory would grow and shrink in all of them
together. Memory is compared from two more blocks of each run at the usual rate on.

    python -m benchmarks.load [--quick] [--postgresql]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import psutil

from benchmarks.many_runs import report_seldom
from benchmarks.recorded_values import BLOCK_STEPS, Blocks
from benchmarks.servers import cpu_seconds, gradmedic, postgres
from gradmedic.protocol.service import API_PATH, JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE
from gradmedic_service.database import schema
from gradmedic_service.telemetry.rollups import ROLLUP_FACTOR

RUNS: Final = 200
PERIOD: Final = 5.0
SECONDS: Final = 60.0
OVERLOAD: Final = 4
OVERLOAD_SECONDS: Final = 30.0
AFTERWARDS_SECONDS: Final = 20.0
HOSTILE_SECONDS: Final = 30.0
HOSTILE_RUNS: Final = 50
ATTACKS: Final = ("bombs", "unread", "slow", "silent")
MEMORY_SECONDS: Final = 0.2
"""Seconds between two looks at the memory during the attacks."""
QUIET_RUNS: Final = 2_000
QUIET_PERIOD: Final = 50.0
QUIET_BLOCKS: Final = 2
TIMEOUT: Final = 60.0
REFUSALS: Final = (429, 503)

TARGETS: Final = {
    "lost_steps": 0,
    "unexpected_answers": 0,
    "p99_seconds": 1.0,
    "memory_growth_percent": 10.0,
    "overload_unexpected_answers": 0,
    "overload_without_retry_after": 0,
    "overload_lost_steps": 0,
    "recovery_seconds": 10.0,
    "hostile_p99_seconds": 2.0,
    "hostile_unexpected_answers": 0,
    "hostile_lost_steps": 0,
    "hostile_memory_mib": 600.0,
    "quiet_unexpected_answers": 0,
    "quiet_lost_steps": 0,
}


@dataclass(slots=True)
class Answer:
    """The answer to an attempt to send a block."""

    status: int
    """HTTP status; 0 if no answer came."""
    ended: float
    seconds: float
    """Seconds since the block was due."""
    has_retry_after: bool


@dataclass(slots=True)
class Phase:
    """A phase of the load: how often each run sends, and the answers."""

    name: str
    period: float
    seconds: float
    started: float = 0.0
    answers: list[Answer] = field(default_factory=list)

    def statuses(self) -> Counter[int]:
        """Count the answers by status."""
        return Counter(answer.status for answer in self.answers)

    def latencies(self) -> list[float]:
        """Seconds from a block's due moment to its acknowledgement."""
        return [answer.seconds for answer in self.answers if answer.status == 200] or [float("inf")]

    def unexpected(self, *expected: int) -> int:
        """Count the answers of other statuses."""
        return sum(count for status, count in self.statuses().items() if status not in expected)

    def __str__(self) -> str:
        p50, p99 = np.percentile(self.latencies(), [50, 99])
        statuses = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses().items()))
        rate = sum(answer.status == 200 for answer in self.answers) / self.seconds
        return f"{self.name:28} {rate:10.1f} {p50 * 1000:10.0f} {p99 * 1000:10.0f}   {statuses}"


class Job:
    """A training job: one run, one connection, blocks one after another."""

    def __init__(self, address: str, secret: str) -> None:
        self._address = urlsplit(address).netloc
        self._headers = {"Authorization": f"Bearer {secret}"}
        self._connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT)
        self.path = ""
        self.acknowledged = 0
        """Number of acknowledged blocks."""

    def register(self, blocks: Blocks) -> None:
        """Create the run."""
        status, _, body = self.request("POST", f"{API_PATH}/runs", blocks.run(), JSON_MEDIA_TYPE)
        if status != 201:
            raise RuntimeError(f"{status}: {body[:500]!r}")
        self.path = f"{API_PATH}/runs/{json.loads(body)['id']}"

    def reconnect(self) -> None:
        """Close the connection, because the service may have closed it. The next request opens a new one."""
        self._connection.close()

    def request(
        self, method: str, path: str, body: bytes | None = None, media_type: str = ""
    ) -> tuple[int, bool, bytes]:
        """Send a request once; return the status, whether the answer has `Retry-After`, and the body."""
        headers = self._headers | ({"Content-Type": media_type} if media_type else {})
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return 0, False, b""
        self._retry_after = float(response.headers.get("Retry-After", 1))
        return response.status, "Retry-After" in response.headers, content

    def send(self, bodies: Sequence[bytes]) -> tuple[int, bool]:
        """Send the next block once."""
        body = bodies[self.acknowledged]
        status, has_retry_after, _ = self.request("POST", f"{self.path}/steps", body, MSGPACK_MEDIA_TYPE)
        if status == 200:
            self.acknowledged += 1
        return status, has_retry_after

    def stream(self, phase: Phase, bodies: Sequence[bytes], offset: float) -> None:
        """Send each block when it is due, until the phase ends; after a refusal, wait as `Retry-After` demands."""
        due, end = phase.started + offset * phase.period, phase.started + phase.seconds
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            if time.monotonic() >= end:
                return
            status, has_retry_after = self.send(bodies)
            ended = time.monotonic()
            phase.answers.append(Answer(status, ended, ended - due, has_retry_after))
            due = due + phase.period if status == 200 else ended + self._retry_after

    def missing_steps(self) -> int:
        """Count the acknowledged steps that the service does not have."""
        status, body = 0, b""
        while status in (0, *REFUSALS):  # a refused read is repeated
            status, _, body = self.request("GET", f"{self.path}/steps?statistic=loss&max_points=10000")
        stored: int = sum(json.loads(body)["series"][0]["count"])
        return max(0, self.acknowledged * BLOCK_STEPS - stored)


def run_in_parallel(jobs: Sequence[Job], work: Any) -> None:
    """Call `work(index, job)` for every job, each on a thread of its own."""
    threads = [threading.Thread(target=work, args=(index, job)) for index, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def fill(jobs: Sequence[Job], bodies: Sequence[bytes], count: int) -> None:
    """Send the first blocks of every run, from `count` to nearly twice as many, a few runs at a time."""
    remaining = iter(enumerate(jobs))
    lock = threading.Lock()

    def work(_index: int, _job: Job) -> None:
        while True:
            with lock:
                index, job = next(remaining, (0, None))
            if job is None:
                return
            while job.acknowledged < count + index % count:
                job.send(bodies)

    run_in_parallel(jobs[:4], work)


def run_phase(phase: Phase, jobs: Sequence[Job], bodies: Sequence[bytes]) -> None:
    """Stream all runs during a phase; the runs send at different moments of the period."""
    phase.started = time.monotonic()
    run_in_parallel(jobs, lambda index, job: job.stream(phase, bodies, index / len(jobs)))


def recovery_seconds(overload: Phase, afterwards: Phase, bound: float) -> float:
    """Return the seconds from the end of the overload to the last answer that was a refusal, or late."""
    end = overload.started + overload.seconds
    late = [answer.ended - end for answer in afterwards.answers if answer.status != 200 or answer.seconds > bound]
    return max(late, default=0.0)


def run_under_attack(
    phase: Phase, jobs: Sequence[Job], bodies: Sequence[bytes], command: Sequence[str], process: psutil.Process
) -> int:
    """Stream runs while another process attacks; return the largest resident memory of the service."""
    attacker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if attacker.stdout is None or attacker.stdout.readline() != "ready\n":
            raise RuntimeError("the attacker did not start")
        is_over = threading.Event()
        largest = [0]

        def watch_memory() -> None:
            while not is_over.wait(MEMORY_SECONDS):
                largest.append(process.memory_info().rss)

        watching = threading.Thread(target=watch_memory)
        watching.start()
        run_phase(phase, jobs, bodies)
        is_over.set()
        watching.join()
        return max(largest)
    finally:
        attacker.kill()
        attacker.communicate()


@contextlib.contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of an empty database; a PostgreSQL database is migrated."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'load.db'}"
        return
    with postgres(folder) as (url, _):
        schema.upgrade(url)
        yield url


def new_secret(url: str, name: str) -> str:
    """Create an API key by the command line, and return its secret."""
    program = str(Path(sys.executable).parent / "gradmedic")
    make = [program, "api-key", "create", "--project", "bench", "--scope", "ingest", "--scope", "read", "--name", name]
    return subprocess.run([*make, "--database-url", url], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Run the benchmark; 0 only if every target is met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, as a test of the benchmark")
    parser.add_argument("--postgresql", action="store_true", help="on PostgreSQL instead of SQLite")
    parser.add_argument("--attacks", default=",".join(ATTACKS), help="attacks to carry out, separated by commas")
    args = parser.parse_args()
    share = 0.1 if args.quick else 1.0
    usual = Phase("every 5 s", PERIOD, max(PERIOD, SECONDS * share))
    overload = Phase(f"{OVERLOAD} times as often", PERIOD / OVERLOAD, max(PERIOD, OVERLOAD_SECONDS * share))
    afterwards = Phase("every 5 s again", PERIOD, max(2 * PERIOD, AFTERWARDS_SECONDS * share))
    hostile = Phase("50 runs, under attack", PERIOD, max(2 * PERIOD, HOSTILE_SECONDS * share))
    blocks = Blocks()
    prefill = 2 if args.quick else ROLLUP_FACTOR
    block_count = (
        2 * prefill + 10 + sum(int(phase.seconds / phase.period) for phase in (usual, overload, afterwards, hostile))
    )
    bodies = [blocks.body(index, MSGPACK_MEDIA_TYPE) for index in range(block_count)]
    with tempfile.TemporaryDirectory(prefix="gradmedic-load-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with database("postgresql" if args.postgresql else "sqlite", folder) as url:
            secret, attacker = new_secret(url, "jobs"), new_secret(url, "attacker")
            with gradmedic(url, folder, "--require-auth") as (address, process):
                jobs = [Job(address, secret) for _ in range(RUNS)]
                for job in jobs:
                    job.register(blocks)
                fill(jobs, bodies, prefill)
                for job in jobs:
                    job.reconnect()
                run_phase(Phase("warm-up", PERIOD, 2 * PERIOD), jobs, bodies)
                memory = [process.memory_info().rss]
                cpu = cpu_seconds(process)
                run_phase(usual, jobs, bodies)
                cpu = cpu_seconds(process) - cpu
                memory.append(process.memory_info().rss)
                lost = sum(job.missing_steps() for job in jobs)
                run_phase(overload, jobs, bodies)
                run_phase(afterwards, jobs, bodies)
                memory.append(process.memory_info().rss)
                overload_lost = sum(job.missing_steps() for job in jobs)
                attack = [sys.executable, "-m", "benchmarks.hostile", address, attacker, *args.attacks.split(",")]
                honest = jobs[:HOSTILE_RUNS]
                hostile_memory = run_under_attack(hostile, honest, bodies, attack, process)
                hostile_lost = sum(job.missing_steps() for job in honest)
                quiet_runs, quiet_lost = asyncio.run(
                    report_seldom(
                        address,
                        secret,
                        blocks.run(),
                        bodies[:QUIET_BLOCKS],
                        int(QUIET_RUNS * share),
                        QUIET_PERIOD * share,
                    )
                )
    refusals = [answer for answer in overload.answers if answer.status in REFUSALS]
    values = {
        "lost_steps": lost,
        "unexpected_answers": usual.unexpected(200),
        "p99_seconds": float(np.percentile(usual.latencies(), 99)),
        "memory_growth_percent": (memory[1] / memory[0] - 1) * 100,
        "overload_unexpected_answers": overload.unexpected(200, *REFUSALS) + afterwards.unexpected(200, *REFUSALS),
        "overload_without_retry_after": sum(not answer.has_retry_after for answer in refusals),
        "overload_lost_steps": overload_lost,
        "recovery_seconds": recovery_seconds(overload, afterwards, TARGETS["p99_seconds"]),
        "hostile_p99_seconds": float(np.percentile(hostile.latencies(), 99)),
        "hostile_unexpected_answers": sum(
            answer.status not in (200, 429, 503) or (answer.status != 200 and not answer.has_retry_after)
            for answer in hostile.answers
        ),
        "hostile_lost_steps": hostile_lost,
        "hostile_memory_mib": hostile_memory / 2**20,
        "quiet_unexpected_answers": sum(
            status not in (200, *REFUSALS) for run in quiet_runs for status in run.statuses
        ),
        "quiet_lost_steps": quiet_lost,
    }
    quiet = Phase(f"{len(quiet_runs)} runs every 50 s", QUIET_PERIOD, QUIET_BLOCKS * QUIET_PERIOD * share)
    quiet.answers = [
        Answer(200, 0.0, seconds, has_retry_after=False) for run in quiet_runs for seconds in run.latencies
    ]
    return report([usual, overload, afterwards, hostile, quiet], memory, cpu, usual.seconds, values)


def report(phases: Sequence[Phase], memory: Sequence[int], cpu: float, seconds: float, values: dict[str, float]) -> int:
    """Print the table and the verdict on each target; return the exit status."""
    print(f"\n{RUNS} runs, {psutil.cpu_count()} CPUs, load average {psutil.getloadavg()[0]:.1f}\n")
    print(f"{'':28} {'blocks/s':>10} {'p50 ms':>10} {'p99 ms':>10}   answers")
    for phase in phases:
        print(phase)
    print(f"\nCPU of the service in the minute: {cpu / seconds:.2f} of one core")
    sizes = ", ".join(f"{size / 2**20:.0f} MiB" for size in memory)
    print(f"resident memory: {sizes} (before the minute, after it, at the end)\n")
    is_met = {name: values[name] <= target for name, target in TARGETS.items()}
    for name, target in TARGETS.items():
        print(f"{name:32} {values[name]:10.2f}  (target <= {target:g}) {'PASS' if is_met[name] else 'FAIL'}")
    passed = sum(is_met.values())
    print(f"\nload: {passed} of {len(TARGETS)} (target {len(TARGETS)}) {'PASS' if passed == len(TARGETS) else 'FAIL'}")
    return 0 if passed == len(TARGETS) else 1


if __name__ == "__main__":
    sys.exit(main())
