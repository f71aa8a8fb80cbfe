"""Failures of the service, the job, the network and the disk: the stored run is what the job computed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.client.runs import block_requests, losses, start, wait_until_recorded
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.patience import PATIENCE

import gradmedic
from gradmedic.cli import main

JOB = """
import hashlib, json, sys, time
import torch
import gradmedic
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
mode, steps, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
first, checkpoint, run_id = 0, sys.argv[4], sys.argv[5] if len(sys.argv) > 5 else None
run = gradmedic.init('faults', mode=mode, id=run_id, log_freq=1, flush_interval=0.05)
try:
    state = torch.load(checkpoint)
    model.load_state_dict(state['model']); optimizer.load_state_dict(state['optimizer'])
    torch.set_rng_state(state['rng']); first = state['step'] + 1
    run.rewind(state['step'])
except FileNotFoundError:
    pass
run.watch(model, optimizer)
print(run.id, flush=True)
losses, norms = {}, {}
for step in range(first, steps):
    loss = model(torch.randn(4, 8)).square().mean()
    optimizer.zero_grad(); loss.backward()
    norms[step] = float(model[0].weight.grad.double().norm())
    optimizer.step()
    run.log(loss=loss)
    losses[step] = float(loss.detach())
    if step % 50 == 49:
        torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict(),
                    'rng': torch.get_rng_state(), 'step': step}, checkpoint + '.new')
        import os; os.replace(checkpoint + '.new', checkpoint)
        print('checkpoint', step, flush=True)
    time.sleep(pause)
delivered = run.finish(timeout=300)
weights = hashlib.sha256(b''.join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
print(json.dumps({'losses': losses, 'norms': norms, 'weights': weights, 'delivered': delivered}), flush=True)
"""


STEPS = 200
"""Steps of a job."""


class OwnService:
    """A service of one test, which may be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = "0"
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = [str(Path(sys.executable).with_name("gradmedic")), "serve", "--port", self._port]
        command += ["--database-url", f"sqlite:///{self._folder / 'gradmedic.db'}"]
        self.process = subprocess.Popen(
            command, cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("GRADMEDIC_")} | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert self.process.stdout is not None
        match = re.search(r"gradmedic is at (http://127.0.0.1:(\d+))", self.process.stdout.readline())
        assert match
        self.url, self._port = match.groups()

    def kill(self) -> None:
        """Kill it, as a loss of power does."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[OwnService]:
    """A service of the test's own."""
    folder = tmp_path / "service"
    folder.mkdir()
    service = OwnService(folder)
    service.start()
    yield service
    service.kill()


def begin(folder: Path, url: str, mode: str, steps: int, pause: float, *more: str) -> subprocess.Popen[str]:
    """Start a job."""
    checkpoint = folder / f"{mode}.pt"
    return subprocess.Popen(
        [sys.executable, "-c", JOB, mode, str(steps), str(pause), str(checkpoint), *more],
        env=os.environ | {"GRADMEDIC_BASE_URL": url}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_blocks(proxy: FaultyProxy, count: int) -> None:
    """Wait until the service has stored this number of blocks."""
    proxy.wait_for(
        lambda requests: sum(request.status == 200 for request in block_requests(requests)) >= count, PATIENCE
    )


def result_of(job: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a job's end and return what it printed."""
    out, err = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, err
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert result["delivered"], err
    return result


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a job without a run computes."""
    return result_of(begin(tmp_path_factory.mktemp("unwatched"), "", "disabled", STEPS, 0))


def assert_stored(client: gradmedic.Client, run_id: str, computed: dict[str, Any]) -> None:
    """Check that the service has the losses and gradients that a job computed, each once."""
    series = client.runs.steps(run_id, ["loss", "grad_norm"], max_points=2000)
    assert series.first_step == series.last_step
    by_name = {(item.statistic, item.layer): item for item in series.series}
    assert by_name["loss", None].mean == [computed["losses"][str(step)] for step in series.first_step]
    assert series.first_step == [int(step) for step in computed["losses"]]
    norms = np.array([computed["norms"][str(step)] for step in series.first_step])
    np.testing.assert_allclose(np.array(by_name["grad_norm", "0.weight"].mean, dtype=float), norms, rtol=1e-6)


@pytest.mark.slow
def test_a_service_that_is_killed_again_and_again_while_a_job_streams(
    tmp_path: Path, own_service: OwnService, unwatched: dict[str, Any]
) -> None:
    """Everything is stored once, and the job's weights are those of a job without a run."""
    with FaultyProxy(own_service.url) as proxy:  # it sees what is stored
        job = begin(tmp_path, proxy.url, "online", STEPS, 0.01)
        assert job.stdout is not None
        run_id = job.stdout.readline().strip()
        for stored in (1, 2, 3):  # a block has 50 steps at most, so that there is one after the last kill
            wait_for_blocks(proxy, stored)
            own_service.kill()
            own_service.start()
        computed = result_of(job)
    with gradmedic.Client(own_service.url) as client:
        assert_stored(client, run_id, computed)
        assert client.runs.get(run_id).status == "finished"
    assert unwatched["weights"] == computed["weights"]


@pytest.mark.slow
def test_a_job_that_is_killed_and_resumed_from_its_checkpoint(
    tmp_path: Path, proxy: FaultyProxy, service_url: str, client: gradmedic.Client, unwatched: dict[str, Any]
) -> None:
    """The run equals that of a job without interruption, though steps behind the checkpoint had been stored."""
    job = begin(tmp_path, proxy.url, "online", STEPS, 0.01)
    assert job.stdout is not None
    run_id = job.stdout.readline().strip()
    for line in job.stdout:
        if line.startswith("checkpoint 99"):
            break
    wait_for_blocks(proxy, len(block_requests(proxy.requests)) + 3)
    job.kill()
    job.communicate()
    assert (client.runs.get(run_id).last_step or 0) > 99
    assert job.returncode == -signal.SIGKILL
    resumed = result_of(begin(tmp_path, service_url, "online", STEPS, 0, run_id))
    assert resumed["weights"] == unwatched["weights"]
    assert unwatched["losses"].items() >= resumed["losses"].items()
    assert_stored(client, run_id, unwatched)
    assert client.runs.get(run_id).generation == 1


@pytest.mark.slow
def test_a_network_that_never_answers(tmp_path: Path, service_url: str, client: gradmedic.Client) -> None:
    """log() takes no longer, finish() keeps its timeout, and sync delivers what was kept."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(64)
        run = start(f"http://127.0.0.1:{hole.getsockname()[1]}", timeout=0.5, dir=tmp_path / "kept")
        begun = time.monotonic()
        for i in range(2000):
            run.log(float(i), gradients={"w": np.full(3, i)})
        assert time.monotonic() - begun < 100.0, "waiting for each request would take 1000 s"
        wait_until_recorded(run)
        begun = time.monotonic()
        assert not run.finish(timeout=1.0)
        assert time.monotonic() - begun < 60.0
    assert main(["sync", str(tmp_path / "kept"), "--base-url", service_url]) == 0
    assert losses(client, run) == {i: float(i) for i in range(2000)}


@pytest.mark.usefixtures("quick_retries")
def test_many_answers_with_status_429(proxy: FaultyProxy, client: gradmedic.Client) -> None:
    """The client waits as long as Retry-After asks for; then everything is stored."""
    run = start(proxy.url, flush_interval=0.01)
    run.log(0.0)
    assert run.flush()
    before = len(proxy.requests)
    proxy.permanent = Fault("/steps", status=429, headers={"retry-after": "0.3"})
    begun = time.monotonic()
    for i in range(1, 500):
        run.log(float(i))
    proxy.wait_for(lambda requests: len(block_requests(requests[before:])) >= 3)
    assert time.monotonic() - begun >= 2 * 0.3
    proxy.permanent = None
    assert run.finish()
    assert losses(client, run) == {i: float(i) for i in range(500)}


def test_a_disk_that_is_full(service_url: str, client: gradmedic.Client) -> None:
    """A limit on the size of files, as a full disk, costs one warning and no step."""
    script = (
        "import resource, sys, gradmedic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "run = gradmedic.init('full')\n"
        "print(run.id, flush=True)\n"
        "for i in range(1000): run.log(float(i))\n"
        "sys.exit(0 if run.finish() else 1)\n"
    )
    environment = os.environ | {"GRADMEDIC_BASE_URL": service_url}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot keep steps on disk") == 1
    result = client.runs.steps(done.stdout.strip(), "loss", max_points=2000)
    assert result.series[0].mean == [float(i) for i in range(1000)]


@pytest.mark.usefixtures("quick_retries")
def test_a_slow_link_is_sent_compressed_blocks(
    proxy: FaultyProxy, client: gradmedic.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a block was slow, the following ones are smaller, and what is stored is the same to the bit."""
    monkeypatch.setattr("gradmedic.upload.delivery._SLOW_LINK", 1e12)
    gradients = {f"layer{i}": np.random.default_rng(i).normal(size=4) for i in range(100)}
    run = start(proxy.url, log_freq=1, flush_interval=60)
    for _ in range(150):
        run.log(1.0, gradients=gradients)
    assert run.finish()
    sizes = [request.size for request in block_requests(proxy.requests)]
    assert len(sizes) == 3
    assert max(sizes[1:]) < 0.7 * sizes[0]
    (series,) = client.runs.steps(run.id, "grad_norm", layer="layer7", max_points=200).series
    assert set(series.mean) == {float(np.float32(np.linalg.norm(gradients["layer7"])))}
