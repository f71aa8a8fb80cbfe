"""What a rerun survives: each of its parts killed with -9, frozen or cut off in the middle of a trial, again and again.

On SQLite and on PostgreSQL, a real service, a real worker and a real script; on PostgreSQL also a real Ray cluster, of
a head that runs no jobs and a node that does. Leases are 2 seconds instead of 15, everything of Ray is as it comes. A
trial is lost if its rerun does not come to its end, and doubly published if more than one attempt at it has a result.
Recovery is from the kill to the next sign of the trial: another attempt of it, or its end; it includes the restart of
what was killed. Both are medians.

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
    """What became of the trials of one row of the table."""

    killed: int = 0
    lost: int = 0
    doubly_published: int = 0
    attempts: int = 0
    restarting: list[float] = field(default_factory=list)
    """Seconds until what was killed had been started again."""
    seconds: list[float] = field(default_factory=list)


class House:
    """Everything that runs, each part of which can be killed and started again."""

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
        """Start the service at the port that it always has."""
        command = ["serve", "--port", str(self.port), "--database-url", self.database_url]
        self.api = self._start(command, GRADMEDIC_TRIAL_LEASE=str(LEASE))
        wait_for(lambda: is_listening(self.port), self.api)

    def start_worker(self) -> None:
        """Start a worker."""
        self.worker = self._start(["worker", "--base-url", self.url_of_worker])

    def _make_ray(self) -> str:
        """Make the cluster and the links to it and to the service, and return what a worker is told of them."""
        self.cluster = RayCluster(self.folder / "worker.toml", cpus=0)
        self.links = [NetworkLink(int(self.cluster.address.rpartition(":")[2])), NetworkLink(self.port)]
        self.url_of_worker = f"http://127.0.0.1:{self.links[1].port}"
        token_file = self.cluster.token_file
        return RAY.format(port=self.links[0].port, url=self.url, token_file=token_file, python=sys.executable)

    def close(self) -> None:
        """End everything."""
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

    # --- what is done to it -------------------------------------------------------------------------------------------

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
        """Kill Ray's head, leave the node alone for a while, and start both again: no two clusters fit one machine."""
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
        """Kill the process that Ray has started on the node."""
        self._kill_first(ENTRYPOINT_MODULE, list(psutil.process_iter()))

    def kill_launcher(self) -> None:
        """Kill the process between worker and script."""
        self._kill_below("gradmedic_worker.attempt")

    def kill_script(self) -> None:
        """Kill the script."""
        self._kill_below("train.py")

    def kill_database(self) -> None:
        """Kill every process of PostgreSQL and start it again."""
        if self.database is not None:
            self.database.stop(signal.SIGKILL)
            self.database.start()

    def freeze_worker(self) -> None:
        """Stop the worker, start another, and wake the first up when its lease is long over."""
        frozen = self.worker
        frozen.send_signal(signal.SIGSTOP)
        self.start_worker()
        time.sleep(2 * LEASE)
        frozen.send_signal(signal.SIGCONT)
        frozen.send_signal(signal.SIGINT)
        frozen.wait(timeout=60)

    def _kill_below(self, word: str) -> None:
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
def house(kind: str, executor: str) -> Iterator[House]:
    """Build a house and take it down."""
    with tempfile.TemporaryDirectory(prefix="gradmedic-faults-", ignore_cleanup_errors=True) as folder:
        built = House(Path(folder), kind, executor)
        try:
            yield built
        finally:
            built.close()


def suspect(client: gradmedic.Client, url: str) -> str:
    """Stream a run that explodes."""
    run = gradmedic.init(project="faults", config={"how": "explode"}, trainable="train", base_url=url, silent=True)
    for step in range(20):
        norm = float("nan") if step >= 10 else 0.5
        run.log(loss=norm, statistics={name: {"grad_norm": norm} for name in ("a", "b")})
    run.finish()
    assert client.runs.get(run.id).verdict == "exploding"
    return str(run.id)


def patiently(ask: Callable[[], RerunDetail]) -> RerunDetail:
    """Ask until there is an answer: the service, or its database, may be down."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        try:
            return ask()
        except GradmedicError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def one_kill(built: House, act: Callable[[], None], tally: Tally, moments: random.Random) -> None:
    """Kill once in the middle of a trial, wait for the end of its rerun, and count."""
    with gradmedic.Client(built.url) as client:
        deadline = time.monotonic() + END_SECONDS
        while not client.work.trainables() and time.monotonic() < deadline:
            time.sleep(0.05)
        run_id = suspect(client, built.url)
        rerun = client.reruns.create(run_id, remedies=[LEARN], seeds=1, steps=STEPS)
        wanted = moments.randrange(2)  # in the control or in the candidate
        while True:
            now = patiently(lambda: client.reruns.get(rerun.id))
            trial = next((one for one in now.trials if one.candidate == wanted and one.step is not None), None)
            if trial is not None or now.status not in ("queued", "running"):
                break
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.5))
        tally.killed += 1
        began = time.monotonic()
        act()
        tally.restarting.append(time.monotonic() - began)
        recovered = None
        while time.monotonic() - began < END_SECONDS:
            now = patiently(lambda: client.reruns.get(rerun.id))
            if recovered is None and trial is not None:
                mine = next(one for one in now.trials if one.id == trial.id)
                if len(mine.attempts) > len(trial.attempts) or mine.status not in ("queued", "running"):
                    recovered = time.monotonic() - began
            if now.status not in ("queued", "running"):
                break
            time.sleep(0.05)
        tally.lost += now.status in ("queued", "running")
        tally.seconds.append(END_SECONDS if recovered is None else recovered)
        tally.attempts += sum(len(one.attempts) for one in now.trials)
        for one in now.trials:
            tally.doubly_published += sum(attempt.status in PUBLISHED for attempt in one.attempts) > 1
        tried = client.runs.diagnosis(run_id).tried
        tally.doubly_published += len(tried) > len(now.candidates) - 1


def main() -> int:
    """Print the table; return 0 only if nothing was lost and nothing published twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="kills of each part on each database (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one kill each")
    parser.add_argument("--executor", choices=EXECUTORS, help="of the trials (default: both)")
    arguments = parser.parse_args()
    repeat = 1 if arguments.quick else arguments.repeat
    moments = random.Random(0)
    total = Tally()
    print(f"leases of {LEASE:g} s; {repeat} kills of each part on each database\n")
    print(
        "| executor, database | killed -9 | times | attempts | lost | doubly published | restart s | recovery s | max |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for executor, kind in (("local", "sqlite"), ("local", "postgresql"), ("ray", "postgresql")):
        if arguments.executor not in (None, executor):
            continue
        with house(kind, executor) as built:
            acts = {"service": built.kill_api, "worker": built.kill_worker, "(frozen) worker": built.freeze_worker}
            if executor == "local":
                acts |= {"launcher": built.kill_launcher, "script": built.kill_script}
            else:
                acts |= {
                    "entrypoint": built.kill_entrypoint,
                    "Ray node": built.kill_node,
                    "Ray head": built.kill_head,
                    "(cut off) worker from Ray": built.cut_from_ray,
                    "(cut off) worker from service": built.cut_from_service,
                }
            if kind == "postgresql":
                acts["PostgreSQL"] = built.kill_database
            for name, act in acts.items():
                tally = Tally()
                for _ in range(repeat):
                    one_kill(built, act, tally, moments)
                counts = f"{tally.killed} | {tally.attempts} | {tally.lost} | {tally.doubly_published}"
                restart, recovery = statistics.median(tally.restarting), statistics.median(tally.seconds)
                times = f"{restart:.1f} | {recovery:.1f} | {max(tally.seconds):.1f}"
                print(f"| {executor}, {kind} | {name} | {counts} | {times} |", flush=True)
                total.killed += tally.killed
                total.lost += tally.lost
                total.doubly_published += tally.doubly_published
    good = total.lost == 0 and total.doubly_published == 0
    print(
        f"\nFAULTS: {total.lost} lost, {total.doubly_published} doubly published in {total.killed} kills "
        f"(target 0, 0) {'PASS' if good else 'FAIL'}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
