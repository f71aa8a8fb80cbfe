"""What tests of executors need: a script and its configuration, a service with keys, and trials to start."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from tests.support.patience import PATIENCE
from tests.support.ray_cluster import RayCluster
from tests.support.services import run_service
from tests.support.workers import hide_torch, set_parameters

import gradmedic
from gradmedic.protocol.trials import ClaimedTrial
from gradmedic_service.access.service import create_key
from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database
from gradmedic_service.settings import Settings
from gradmedic_worker.executors.base import Executor

HEAD_CPUS = 2
"""CPUs of the cluster's head."""
KINDS = ["learn", "explode", "print", "exit", "signal", "stubborn", "daemon", "spam", "environment"]
"""Values of the script's parameter `kind`."""
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
        is_bad = kind == "explode" and step >= 20
        loss = float("nan") if is_bad else 2.2 * 0.97 ** step + 0.2
        norm = float("nan") if is_bad else 0.5 + 0.01 * (step % 3)
        run.log(loss=loss, statistics={name: {"grad_norm": norm} for name in ("a", "b")})
        time.sleep(pause)
    run.finish()
"""
CONFIGURATION = """
    [worker]
    slots = {slots}
    scratch = "{scratch}"
    executor = "{executor}"
    {ray_table}
    [trainables.train-{executor}]
    command = ["python", "train.py", "{{kind}}", "{{pause}}"]
    directory = "{directory}"
    timeout = 600
    preload = false
    cpus = {cpus}
    environment = {{ PYTHONPATH = "{python_path}" }}
    [trainables.train-{executor}.parameters]
    kind = {{ type = "str", choices = {kinds}, default = "explode" }}
    pause = {{ type = "float", minimum = 0.0, maximum = 600.0, default = 0.0 }}
"""
RAY_TABLE = """
    [ray]
    address = "{address}"
    base_url = "{base_url}"
    python = "{python}"
    token_file = "{token_file}"
    pending_timeout = {pending}
"""


@dataclass
class TrainableFolder:
    """A folder with the script, and with the `worker.toml` that every node of the cluster reads."""

    cluster: RayCluster
    folder: Path

    @property
    def configuration(self) -> Path:
        """The nodes' configuration file."""
        return self.folder / "worker.toml"

    def write_script(self) -> None:
        """Write the script."""
        (self.folder / "train.py").write_text(textwrap.dedent(SCRIPT))

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
        """Write a configuration file and return its path. The one for `ray` is also that of every node."""
        ray_table = RAY_TABLE.format(
            address=address or self.cluster.address,
            base_url=base_url,
            python=sys.executable,
            token_file=self.cluster.token_file,
            pending=pending,
        )
        path = self.configuration if executor == "ray" else self.folder / "local.toml"
        content = CONFIGURATION.format(
            slots=slots,
            scratch=self.folder / "scratch",
            executor=executor,
            ray_table=ray_table if executor == "ray" else "",
            directory=self.folder,
            python_path=hide_torch(self.folder),
            cpus=cpus,
            kinds=KINDS,
        )
        draft = path.with_suffix(".draft")
        draft.write_text(textwrap.dedent(content))
        draft.replace(path)
        return path

    @contextmanager
    def hold_trials(self) -> Iterator[Callable[[], None]]:
        """Make trials wait at step 10. Yields the function that lets them continue."""
        hold = self.folder / "hold"
        hold.touch()
        try:
            yield lambda: hold.unlink(missing_ok=True)
        finally:
            hold.unlink(missing_ok=True)


@dataclass(frozen=True)
class ServiceWithKeys:
    """A service in a process of its own that requires keys."""

    url: str
    user_key: str
    """Key that may stream runs and ask for reruns."""
    worker_key: str
    """Key with the scope `worker`."""


@contextmanager
def run_service_with_keys(folder: Path, lease: float) -> Iterator[ServiceWithKeys]:
    """Run a service that requires keys, on SQLite."""
    url = f"sqlite:///{folder / 'gradmedic.db'}"
    schema.upgrade(url)
    database = Database(Settings(database_url=SecretStr(url)))
    with database.writing() as session:
        _, user_key = create_key(session, project="p", name="user", scopes=("ingest", "read", "rerun"))
        _, worker_key = create_key(session, project=None, name="worker", scopes=("worker",))
    database.close()
    with run_service(folder, url, "--require-auth", lease=lease) as service:
        yield ServiceWithKeys(service.url, user_key, worker_key)


def stream_bad_run(service: ServiceWithKeys, executor: str, kind: str = "explode", pause: float = 0.0) -> str:
    """Stream a run with non-finite gradients whose config asks for `kind`, and return its id."""
    run = gradmedic.init(
        project="p",
        config={"kind": kind, "pause": pause},
        trainable=f"train-{executor}",
        base_url=service.url,
        api_key=service.user_key,
        silent=True,
    )
    run.log(loss=float("nan"), statistics={"a": {"grad_norm": float("nan")}})
    assert run.finish()
    return str(run.id)


def cancel_all_reruns(client: gradmedic.Client) -> None:
    """Cancel the reruns that have not ended."""
    for rerun in client.reruns.list():
        if rerun.status in ("queued", "running"):
            client.reruns.cancel(rerun.id)


@dataclass
class ExecutorUnderTest:
    """An executor, and a service from which a test claims trials for it."""

    name: str
    executor: Executor
    user_client: gradmedic.Client
    worker_client: gradmedic.Client
    service: ServiceWithKeys

    def claim(self, kind: str, pause: float = 0.0, seconds: float = PATIENCE) -> ClaimedTrial:
        """Create a rerun whose control has `kind`, and claim the control."""
        run_id = stream_bad_run(self.service, self.name, kind, pause)
        self.user_client.reruns.create(
            run_id, remedies=[set_parameters(pause=9.0)], seeds=1, steps=80, seconds=seconds, executor=self.name
        )
        claimed = self.worker_client.work.claim("test", [f"train-{self.name}"], self.name)
        assert claimed is not None
        return claimed
