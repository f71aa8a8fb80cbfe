"""Stores the values of `benchmarks.ingest` with two other tools: MLflow's tracking server, and trackio."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from tests.support.ports import free_port, is_listening

from benchmarks.recorded_values import LAYERS, NAMES, VALUES_PER_STEP, Blocks
from benchmarks.senders import Sender
from benchmarks.servers import cpu_seconds, environment_of, wait_for, wait_until_idle

MLFLOW: Final = ("mlflow", "3.17.2")
TRACKIO: Final = ("trackio", "0.43.0")
MLFLOW_API: Final = "/api/2.0/mlflow"
MLFLOW_STEPS: Final = 2
"""Number of steps that MLflow stores in a turn: a request each, of 800 metrics (it accepts 1,000)."""
TRACKIO_STEPS: Final = 200
"""Number of steps that trackio stores in a turn."""

TRACKIO_SCRIPT: Final = """
import json, resource, sys
import numpy
import trackio
values, names = numpy.load(sys.argv[1]), json.loads(sys.argv[2])
def cpu():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
trackio.init(project="bench", name="run", embed=False)
trackio.log({"x": 1.0})
started = cpu()
for row in values:
    trackio.log(dict(zip(names, row.tolist())))
trackio.finish()
print(json.dumps(cpu() - started))
"""


class MlflowServer:
    """A run at MLflow's tracking server."""

    def __init__(self, address: str, process: psutil.Process) -> None:
        self._sender, self._process = Sender(address), process
        created = self._sender.post(f"{MLFLOW_API}/runs/create", json.dumps({"experiment_id": "0"}).encode())
        self._run_id = created["run"]["info"]["run_id"]
        self._values = Blocks().values.astype(float)
        self._step = 0
        self._store_step()

    def measure(self) -> float:
        """Store some steps; return the server's CPU seconds a value."""
        started = cpu_seconds(self._process)
        for _ in range(MLFLOW_STEPS):
            self._store_step()
        return (cpu_seconds(self._process) - started) / (MLFLOW_STEPS * VALUES_PER_STEP)

    def _store_step(self) -> None:
        step, self._step = self._step, self._step + 1
        layers = self._values[step % len(self._values)]
        metrics = [
            {"key": f"layer{layer}.{name}", "value": layers[layer, at], "timestamp": step, "step": step}
            for layer in range(LAYERS)
            for at, name in enumerate(NAMES)
        ]
        self._sender.post(
            f"{MLFLOW_API}/runs/log-batch", json.dumps({"run_id": self._run_id, "metrics": metrics}).encode()
        )


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """Run MLflow's server on SQLite, with one worker; yield a run there."""
    python = environment_of(*MLFLOW)
    port = free_port()
    command = [str(python.parent / "mlflow"), "server", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--port", str(port), "--host", "127.0.0.1", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {"PATH": f"{python.parent}:{os.environ['PATH']}", "HOME": str(folder)}
    with (folder / "mlflow.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, text=True, cwd=folder, env=environment)
    try:
        wait_for(lambda: is_listening(port), server)
        process = psutil.Process(server.pid)
        wait_until_idle(process)  # it answers while the processes of its jobs still import
        yield MlflowServer(f"http://127.0.0.1:{port}", process)
    finally:
        for child in psutil.Process(server.pid).children(recursive=True):
            child.terminate()
        server.terminate()
        server.wait(timeout=60)


def measure_trackio(folder: Path) -> float:
    """Store some steps with trackio, which writes SQLite in the process that logs; return its CPU seconds a value.

    Starting it does not count. Each call has a process and a database of its own.
    """
    python = environment_of(*TRACKIO)
    values = Blocks().values[:TRACKIO_STEPS].reshape(TRACKIO_STEPS, -1)
    np.save(folder / "values.npy", values)
    names = json.dumps([f"layer{layer}.{name}" for layer in range(LAYERS) for name in NAMES])
    with_home = {"PATH": os.environ["PATH"], "HOME": str(folder), "TRACKIO_DIR": str(folder / "trackio")}
    done = subprocess.run(
        [python, "-c", TRACKIO_SCRIPT, folder / "values.npy", names],
        capture_output=True,
        text=True,
        env=with_home,
        cwd=folder,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(json.loads(done.stdout.splitlines()[-1])) / values.size
