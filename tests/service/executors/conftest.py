"""A Ray cluster and a service with keys, once for all tests that need them, and trials to host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from benchmarks.ray_cluster import RayCluster
from pydantic import SecretStr
from tests.support.patience import PATIENCE

import gradmedic
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.trials import ClaimedTrial
from gradmedic_service.access.service import create_key
from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database
from gradmedic_service.settings import Settings
from gradmedic_worker.configuration import read_configuration
from gradmedic_worker.executors.base import Executor, HostedTrial
from gradmedic_worker.executors.local import LocalExecutor
from gradmedic_worker.executors.ray import RayExecutor

HEAD_CPUS = 2
LEASE = float(PATIENCE)
"""Seconds; the tests of the contract play a supervisor that sends no heartbeats."""
SHORT_LEASE = 5.0
"""Seconds; where a supervisor is lost, and others wait until it has not been heard of for so long."""
KINDS = ["learn", "explode", "print", "exit", "signal", "stubborn", "daemon", "spam", "environment"]
SCRIPT = """
    import json, os, pathlib, signal, subprocess, sys, time
    kind, pause = sys.argv[1], float(sys.argv[2])
    if kind == "print": print("naïve ✓", os.getpid(), flush=True); time.sleep(pause)
    if kind == "exit":
        open(os.environ["GRADMEDIC_REPORT"], "w").write('{"not_applicable": "there is nothing to clip"}')
        print("going", file=sys.stderr); sys.exit(3)
    if kind == "signal": os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "environment":
        print(json.dumps(dict(os.environ))); print(json.dumps(sys.argv)); print(os.getcwd())
    if kind == "spam":
        print("first words", flush=True); line = b"x" * 65536
        for _ in range(1024): os.write(1, line)
        print("last words")
    if kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind == "daemon":
        code = "import os, time; os.setsid(); os.fork() and os._exit(0); os.write(1, b'%d\\\\n' % os.getpid())"
        subprocess.Popen([sys.executable, "-c", code + "; time.sleep(600)"])
        signal.signal(signal.SIGTERM, lambda *_: (print("cleaned up", flush=True), sys.exit(0)))
    if kind in ("stubborn", "daemon"): print(os.getpid(), flush=True); time.sleep(600)
    if kind not in ("learn", "explode"): sys.exit(0)
    import gradmedic
    run = gradmedic.init(project="p", config={"kind": kind, "pause": pause}, trainable="train-ray")
    for step in range(80):
        while step == 10 and pathlib.Path(__file__).with_name("hold").exists(): time.sleep(0.02)
        bad = kind == "explode" and step >= 20
        loss = float("nan") if bad else 2.2 * 0.97 ** step + 0.2
        norm = float("nan") if bad else 0.5 + 0.01 * (step % 3)
        run.log(loss=loss, statistics={name: {"grad_norm": norm} for name in ("a", "b")})
        time.sleep(pause)
    run.finish()
"""
CONFIGURATION = """
    [worker]
    slots = {slots}
    scratch = "{scratch}"
    executor = "{executor}"
    {table}
    [trainables.train-{executor}]
    command = ["python", "train.py", "{{kind}}", "{{pause}}"]
    directory = "{directory}"
    timeout = 600
    preload = false
    cpus = {cpus}
    environment = {{ PYTHONPATH = "{directory}/without_torch" }}
    [trainables.train-{executor}.parameters]
    kind = {{ type = "str", choices = {kinds}, default = "explode" }}
    pause = {{ type = "float", minimum = 0.0, maximum = 600.0, default = 0.0 }}
"""
TABLE = """
    [ray]
    address = "{address}"
    base_url = "{base_url}"
    python = "{python}"
    token_file = "{token_file}"
    pending_timeout = {pending}
"""


@dataclass
class Workshop:
    """Where trials are run: the cluster, the script, and the file that says so, which every node reads."""

    cluster: RayCluster
    folder: Path

    @property
    def configuration(self) -> Path:
        """Where nodes find their configuration."""
        return self.folder / "worker.toml"

    def configure(
        self,
        base_url: str,
        *,
        executor: str = "ray",
        slots: int = 2,
        cpus: int = 1,
        pending: float = PATIENCE,
        address: str | None = None,
    ) -> Path:
        """Write the configuration; the one for `ray` is also that of every node."""
        table = TABLE.format(
            address=address or self.cluster.address,
            base_url=base_url,
            python=sys.executable,
            token_file=self.cluster.token_file,
            pending=pending,
        )
        path = self.configuration if executor == "ray" else self.folder / "local.toml"
        written = CONFIGURATION.format(
            slots=slots,
            scratch=self.folder / "scratch",
            executor=executor,
            table=table if executor == "ray" else "",
            directory=self.folder,
            cpus=cpus,
            kinds=KINDS,
        )
        draft = path.with_suffix(".draft")
        draft.write_text(textwrap.dedent(written))
        draft.replace(path)
        return path

    @contextmanager
    def holding(self) -> Iterator[Callable[[], None]]:
        """Have trials wait at step 10 until it is called, so that a test can do something to them meanwhile."""
        hold = self.folder / "hold"
        hold.touch()
        try:
            yield lambda: hold.unlink(missing_ok=True)
        finally:
            hold.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """One cluster for all tests: `ray start --head` with token authentication."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "train.py").write_text(textwrap.dedent(SCRIPT))
    (folder / "without_torch").mkdir()  # importing it takes longer than the trials
    (folder / "without_torch" / "torch.py").write_text("raise ModuleNotFoundError('not here', name='torch')")
    cluster = RayCluster(folder / "worker.toml", cpus=HEAD_CPUS, is_impatient=True)
    try:
        cluster.start_head()
        yield Workshop(cluster, folder)
    finally:
        cluster.close()


@dataclass(frozen=True)
class Guarded:
    """A service in a process of its own that asks for keys."""

    url: str
    person: str
    """Key that may ask for reruns."""
    worker: str
    """Key that may work."""


@contextmanager
def guarded_service(folder: Path, lease: float, *options: str) -> Iterator[Guarded]:
    """Run a service with keys on SQLite."""
    url = f"sqlite:///{folder / 'gradmedic.db'}"
    schema.upgrade(url)
    database = Database(Settings(database_url=SecretStr(url)))
    with database.writing() as session:
        _, person = create_key(session, project="p", name="person", scopes=("ingest", "read", "rerun"))
        _, worker = create_key(session, project=None, name="worker", scopes=("worker",))
    database.close()
    command = [str(Path(sys.executable).with_name("gradmedic")), "serve", "--port", "0", "--require-auth"]
    with (folder / "serve.log").open("a") as log:
        process = subprocess.Popen(
            [*command, "--database-url", url, *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={"PATH": os.environ["PATH"], "GRADMEDIC_TRIAL_LEASE": str(lease)},
            cwd=folder,
        )
    with process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found is not None, (folder / "serve.log").read_text()
            yield Guarded(found.group(), person, worker)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A service for the tests of the contract."""
    with guarded_service(tmp_path_factory.mktemp("guarded"), LEASE) as service:
        yield service


@pytest.fixture(scope="session")
def _brisk_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_service(tmp_path_factory.mktemp("brisk"), SHORT_LEASE) as service:
        yield service


@pytest.fixture
def brisk(_brisk_service: Guarded) -> Iterator[Guarded]:
    """A service with short leases, in which no rerun is left by the test before."""
    yield _brisk_service
    with gradmedic.Client(_brisk_service.url, _brisk_service.person) as client:
        cancel_all(client)


@pytest.fixture
def person(guarded: Guarded) -> Iterator[gradmedic.Client]:
    """Somebody who asks for reruns, and cancels what a test has left of them."""
    with gradmedic.Client(guarded.url, guarded.person) as client:
        yield client
        cancel_all(client)


@pytest.fixture
def working(guarded: Guarded) -> Iterator[gradmedic.Client]:
    """The supervisor's connection to the service."""
    with gradmedic.Client(guarded.url, guarded.worker) as client:
        yield client


def suspect(guarded: Guarded, executor: str, kind: str = "explode", pause: float = 0.0) -> str:
    """Stream a run of a kind that is not finite, whatever that kind does, and return its id."""
    run = gradmedic.init(
        project="p", config={"kind": kind, "pause": pause}, trainable=f"train-{executor}",
        base_url=guarded.url, api_key=guarded.person, silent=True,
    )  # fmt: skip
    run.log(loss=float("nan"), statistics={"a": {"grad_norm": float("nan")}})
    assert run.finish()
    return str(run.id)


def setting(**values: Any) -> list[Remedy]:
    """Return the candidate that sets parameters of the script."""
    return [Remedy(id="set_parameter", parameters=values)]


def cancel_all(client: gradmedic.Client) -> None:
    """Cancel what a test has left."""
    for rerun in client.reruns.list():
        if rerun.status in ("queued", "running"):
            client.reruns.cancel(rerun.id)


@dataclass
class Hosting:
    """An executor, and the attempts that a test has it host."""

    name: str
    executor: Executor
    person: gradmedic.Client
    working: gradmedic.Client
    guarded: Guarded

    def claim(self, kind: str, pause: float = 0.0, seconds: float = PATIENCE) -> ClaimedTrial:
        """Ask for a rerun whose control is of a kind, and claim that."""
        run_id = suspect(self.guarded, self.name, kind, pause)
        self.person.reruns.create(
            run_id, remedies=[setting(pause=9.0)], seeds=1, steps=80, seconds=seconds, executor=self.name
        )
        claimed = self.working.work.claim("test", [f"train-{self.name}"], self.name)
        assert claimed is not None
        return claimed


@pytest.fixture(params=["local", "ray"])
def hosting(
    request: pytest.FixtureRequest,
    workshop: Workshop,
    guarded: Guarded,
    person: gradmedic.Client,
    working: gradmedic.Client,
    tmp_path: Path,
) -> Iterator[Hosting]:
    """Each executor in turn, ready to start trials."""
    environment = {"PATH": os.environ["PATH"], "GRADMEDIC_API_KEY": guarded.worker, "HOME": str(tmp_path)}
    configuration = read_configuration(workshop.configure(guarded.url, executor=request.param))
    executor: Executor
    if request.param == "ray":
        executor = RayExecutor(configuration, working, environment=environment, tell=lambda _: None)
    else:
        executor = LocalExecutor(configuration, guarded.url, gpus=[], environment=environment)
    executor.prepare()
    working.work.register([one.on_the_wire() for one in configuration.trainables.values()], "test")
    yield Hosting(request.param, executor, person, working, guarded)
    executor.close()


@pytest.fixture
def start(hosting: Hosting) -> Iterator[Callable[..., HostedTrial]]:
    """Start a trial of a kind; it is let go of at the end."""
    started: list[HostedTrial] = []

    def begin(kind: str, pause: float = 0.0, seconds: float = PATIENCE) -> HostedTrial:
        started.append(hosting.executor.start(hosting.claim(kind, pause, seconds)))
        return started[-1]

    yield begin
    for trial in started:
        trial.close()
