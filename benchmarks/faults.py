"""Injects faults into reruns: each part is killed with -9, frozen or disconnected during a trial, several times.

The service, the worker and the script are real, on SQLite and on PostgreSQL. On PostgreSQL there is also a real Ray
cluster, with a head that runs no jobs and a node that runs them. Leases are 2 seconds instead of 15; Ray has its
default settings. A trial is lost if its rerun does not end, and doubly published if more than one attempt at it has a
result. The recovery lasts from the fault to the next attempt at the trial, or to its end; it includes the restart of
the killed part. Restart and recovery are medians.

    python -m benchmarks.faults [--repeat 3] [--quick] [--executor local|ray]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
from tests.support.network_link import NetworkLink
from tests.support.ports import free_port, is_listening
from tests.support.postgres import PostgresServer
from tests.support.ray_cluster import RayCluster

import gradmedic
from benchmarks.servers import wait_for
from gradmedic.exceptions import GradmedicError
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.reruns import EXECUTORS, RerunDetail
from gradmedic_service.database import schema
from gradmedic_worker.executors.ray import ENTRYPOINT_MODULE

LEASE: Final = 2.0
STEPS: Final = 40
END_SECONDS: Final = 120.0
PUBLISHED: Final = ("done", "failed", "stopped", "not_applicable")
SCRIPT: Final = """
    import sys, time
    import gradmedic
    run = gradmedic.init(project="faults", config={"how": sys.argv[1]}, trainable="train")
    for step in range(40):
        bad = sys.argv[1] == "explode" and step >= 10
        norm = float("nan") if bad else 0.5 + 0.01 * (step % 3)
        loss = float("nan") if bad else 2.0 * 0.95 ** step
        run.log(loss=loss, statistics={name: {"grad_norm": norm} for name in ("a", "b")})
        time.sleep(0.04)
    run.finish()
"""
CONFIGURATION: Final = """
    [worker]
    executor = "{executor}"
    slots = 1
    scratch = "scratch"
    [trainables.train]
    command = ["python", "train.py", "{{how}}"]
    directory = "{directory}"
    preload = false
    [trainables.train.parameters]
    how = {{ type = "str", choices = ["explode", "learn"] }}
"""
RAY: Final = """
    [ray]
    address = "http://127.0.0.1:{port}"
    base_url = "{url}"
    token_file = "{token_file}"
    python = "{python}"
"""
CUT_SECONDS: Final = 3 * LEASE
LEARN: Final = [Remedy(id="set_parameter", parameters={"how": "learn"})]


@dataclass
class Tally:
    """Counts and durations of one row of the table."""

    killed: int = 0
    lost: int = 0
    doubly_published: int = 0
    attempts: int = 0
    restarting: list[float] = field(default_factory=list)
    """Seconds until the part had been started again."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of each recovery."""


class System:
    """A service, a worker, a database and possibly a Ray cluster, each of which can be killed and started again."""

    def __init__(self, folder: Path, kind: str, executor: str) -> None:
        self.folder, self.kind = folder, kind
        self.port = free_port()
        (folder / "train.py").write_text(textwrap.dedent(SCRIPT))
        self.url = self.url_of_worker = f"http://127.0.0.1:{self.port}"
        self.cluster: RayCluster | None = None
        self.links: list[NetworkLink] = []
        configuration = CONFIGURATION.format(directory=folder, executor=executor)
        configuration += self._make_ray() if executor == "ray" else ""
        (folder / "worker.toml").write_text(textwrap.dedent(configuration))
        self.database_url = f"sqlite:///{folder / 'gradmedic.db'}"
        self.database: PostgresServer | None = None
        if kind == "postgresql":
            folder.chmod(0o755)
            (folder / "postgres").mkdir()
            self.database = PostgresServer(folder / "postgres")
            self.database.start()
            self.database_url = self.database.url
        schema.upgrade(self.database_url)
        if self.cluster is not None:
            self.cluster.start_head()
            self.cluster.start_node("node", 2)
        self.start_api()
        self.start_worker()

    def _start(self, command: list[str], **environment: str) -> subprocess.Popen[str]:
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [str(Path(sys.executable).parent / "gradmedic"), *command],
                stdout=log,
                stderr=log,
                text=True,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], **environment},
            )

    def start_api(self) -> None:
        """Start the service, always at the same port."""
        command = ["serve", "--port", str(self.port), "--database-url", self.database_url]
        self.api = self._start(command, GRADMEDIC_TRIAL_LEASE=str(LEASE))
        wait_for(lambda: is_listening(self.port), self.api)

    def start_worker(self) -> None:
        """Start a worker."""
        self.worker = self._start(["worker", "--base-url", self.url_of_worker])

    def _make_ray(self) -> str:
        """Make the cluster and the links to it and to the service; return the part of `worker.toml` about them."""
        self.cluster = RayCluster(self.folder / "worker.toml", cpus=0)
        self.links = [NetworkLink(int(self.cluster.address.rpartition(":")[2])), NetworkLink(self.port)]
        self.url_of_worker = f"http://127.0.0.1:{self.links[1].port}"
        token_file = self.cluster.token_file
        return RAY.format(port=self.links[0].port, url=self.url, token_file=token_file, python=sys.executable)

    def close(self) -> None:
        """End all processes."""
        for link in self.links:
            link.mend()
        if self.cluster is not None:
            self.cluster.close()
        for process in (self.worker, self.api):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        if self.database is not None:
            self.database.stop(signal.SIGINT)

    # --- faults -------------------------------------------------------------------------------------------------------

    def kill_api(self) -> None:
        """Kill the service and start it again."""
        self.api.kill()
        self.api.wait()
        self.start_api()

    def kill_worker(self) -> None:
        """Kill the worker and start another."""
        self.worker.kill()
        self.worker.wait()
        self.start_worker()

    def kill_head(self) -> None:
        """Kill Ray's head, wait for a while, and start head and node again: two clusters do not fit one machine."""
        assert self.cluster is not None
        self.cluster.kill("head")
        time.sleep(LEASE)
        self.cluster.kill("node")
        self.cluster.start_head()
        self.cluster.start_node("node", 2)

    def kill_node(self) -> None:
        """Kill the Ray node that runs the trial, and start another."""
        assert self.cluster is not None
        self.cluster.kill("node")
        self.cluster.start_node("node", 2)

    def cut_from_ray(self) -> None:
        """Cut the worker off from Ray for a while."""
        self._cut(self.links[0])

    def cut_from_service(self) -> None:
        """Cut the worker off from the service for a while."""
        self._cut(self.links[1])

    def _cut(self, link: NetworkLink) -> None:
        link.cut()
        time.sleep(CUT_SECONDS)
        link.mend()

    def kill_entrypoint(self) -> None:
        """Kill the process that Ray has started for the trial on the node."""
        self._kill_first(ENTRYPOINT_MODULE, list(psutil.process_iter()))

    def kill_launcher(self) -> None:
        """Kill the process that starts the script for the worker."""
        self._kill_child_of_worker("gradmedic_worker.attempt")

    def kill_script(self) -> None:
        """Kill the script."""
        self._kill_child_of_worker("train.py")

    def kill_database(self) -> None:
        """Kill every process of PostgreSQL and start it again."""
        if self.database is not None:
            self.database.stop(signal.SIGKILL)
            self.database.start()

    def freeze_worker(self) -> None:
        """Freeze the worker, start another, and let the first one continue after its lease has expired."""
        frozen = self.worker
        frozen.send_signal(signal.SIGSTOP)
        self.start_worker()
        time.sleep(2 * LEASE)
        frozen.send_signal(signal.SIGCONT)
        frozen.send_signal(signal.SIGINT)
        frozen.wait(timeout=60)

    def _kill_child_of_worker(self, word: str) -> None:
        self._kill_first(word, psutil.Process(self.worker.pid).children(recursive=True))

    def _kill_first(self, word: str, processes: list[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                is_shell = bool(words) and words[0] == "/bin/sh"  # Ray has one between itself and the entrypoint
                if not is_shell and any(word in argument for argument in words):
                    process.kill()
                    return


@contextmanager
def running_system(kind: str, executor: str) -> Iterator[System]:
    """Start a system and yield it; end it after the block."""
    with tempfile.TemporaryDirectory(prefix="gradmedic-faults-", ignore_cleanup_errors=True) as folder:
        system = System(Path(folder), kind, executor)
        try:
            yield system
        finally:
            system.close()


def stream_exploding_run(client: gradmedic.Client, url: str) -> str:
    """Stream a run that explodes, and return its id."""
    run = gradmedic.init(project="faults", config={"how": "explode"}, trainable="train", base_url=url, silent=True)
    for step in range(20):
        norm = float("nan") if step >= 10 else 0.5
        run.log(loss=norm, statistics={name: {"grad_norm": norm} for name in ("a", "b")})
    run.finish()
    assert client.runs.get(run.id).verdict == "exploding"
    return str(run.id)


def read_with_retries(read: Callable[[], RerunDetail]) -> RerunDetail:
    """Read a rerun again and again until the service answers: the service, or its database, may be down."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        try:
            return read()
        except GradmedicError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def inject_fault(system: System, fault: Callable[[], None], tally: Tally, generator: random.Random) -> None:
    """Inject a fault at a random moment of a trial, wait for the end of the rerun, and count the results."""
    with gradmedic.Client(system.url) as client:
        deadline = time.monotonic() + END_SECONDS
        while not client.work.trainables() and time.monotonic() < deadline:
            time.sleep(0.05)
        run_id = stream_exploding_run(client, system.url)
        rerun = client.reruns.create(run_id, remedies=[LEARN], seeds=1, steps=STEPS)
        candidate = generator.randrange(2)  # the control or the candidate with the remedy
        while True:
            now = read_with_retries(lambda: client.reruns.get(rerun.id))
            started = (trial for trial in now.trials if trial.candidate == candidate and trial.step is not None)
            trial = next(started, None)
            if trial is not None or now.status not in ("queued", "running"):
                break
            time.sleep(0.02)
        time.sleep(generator.uniform(0, 0.5))
        tally.killed += 1
        began = time.monotonic()
        fault()
        tally.restarting.append(time.monotonic() - began)
        recovered = None
        while time.monotonic() - began < END_SECONDS:
            now = read_with_retries(lambda: client.reruns.get(rerun.id))
            if recovered is None and trial is not None:
                latest = next(other for other in now.trials if other.id == trial.id)
                if len(latest.attempts) > len(trial.attempts) or latest.status not in ("queued", "running"):
                    recovered = time.monotonic() - began
            if now.status not in ("queued", "running"):
                break
            time.sleep(0.05)
        tally.lost += now.status in ("queued", "running")
        tally.seconds.append(END_SECONDS if recovered is None else recovered)
        tally.attempts += sum(len(other.attempts) for other in now.trials)
        for other in now.trials:
            tally.doubly_published += sum(attempt.status in PUBLISHED for attempt in other.attempts) > 1
        tried = client.runs.diagnosis(run_id).tried
        tally.doubly_published += len(tried) > len(now.candidates) - 1


def main() -> int:
    """Print the table; return 0 only if no trial was lost or doubly published."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="kills of each part on each database (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one kill each")
    parser.add_argument("--executor", choices=EXECUTORS, help="executor of the trials (default: both)")
    arguments = parser.parse_args()
    repeat = 1 if arguments.quick else arguments.repeat
    generator = random.Random(0)
    total = Tally()
    print(f"leases of {LEASE:g} s; {repeat} kills of each part on each database\n")
    print(
        "| executor, database | fault | times | attempts | lost | doubly published | restart s | recovery s | max s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for executor, kind in (("local", "sqlite"), ("local", "postgresql"), ("ray", "postgresql")):
        if arguments.executor not in (None, executor):
            continue
        with running_system(kind, executor) as system:
            faults = {
                "kill service": system.kill_api,
                "kill worker": system.kill_worker,
                "freeze worker": system.freeze_worker,
            }
            if executor == "local":
                faults |= {"kill launcher": system.kill_launcher, "kill script": system.kill_script}
            else:
                faults |= {
                    "kill entrypoint": system.kill_entrypoint,
                    "kill Ray node": system.kill_node,
                    "kill Ray head": system.kill_head,
                    "cut worker off from Ray": system.cut_from_ray,
                    "cut worker off from service": system.cut_from_service,
                }
            if kind == "postgresql":
                faults["kill PostgreSQL"] = system.kill_database
            for name, fault in faults.items():
                tally = Tally()
                for _ in range(repeat):
                    inject_fault(system, fault, tally, generator)
                counts = f"{tally.killed} | {tally.attempts} | {tally.lost} | {tally.doubly_published}"
                restart, recovery = statistics.median(tally.restarting), statistics.median(tally.seconds)
                times = f"{restart:.1f} | {recovery:.1f} | {max(tally.seconds):.1f}"
                print(f"| {executor}, {kind} | {name} | {counts} | {times} |", flush=True)
                total.killed += tally.killed
                total.lost += tally.lost
                total.doubly_published += tally.doubly_published
    is_met = total.lost == 0 and total.doubly_published == 0
    print(
        f"\nFAULTS: {total.lost} lost, {total.doubly_published} doubly published in {total.killed} kills "
        f"(target 0, 0) {'PASS' if is_met else 'FAIL'}"
    )
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
