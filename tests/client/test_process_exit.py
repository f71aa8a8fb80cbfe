"""How the end of a process ends its runs, and what forked processes do."""

from __future__ import annotations

import builtins
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.client.runs import (
    losses,
    start,
)
from tests.support.patience import PATIENCE

import gradmedic


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_nothing_and_the_parent_goes_on(service_url: str, client: gradmedic.Client) -> None:
    """The child's calls return at once and send nothing, even if the parent's thread was sending at the fork."""
    run = start(service_url)
    for i in range(60):
        run.log(float(i))
    child = os.fork()
    if child == 0:
        run.log(-1.0)
        is_quiet = run.flush() and run.finish()
        os._exit(0 if is_quiet else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run.log(60.0)
    assert run.finish()
    assert losses(client, run) == {i: float(i) for i in range(61)}
    assert client.runs.get(run.id).status == "finished"


def test_exits_and_signals_are_restored_after_the_last_run(tmp_path: Path) -> None:
    """`sys.exit`, `exit`, `quit`, SIGTERM and SIGHUP are what they were before the first of two runs."""

    def state() -> list[Any]:
        signals = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP)]
        return [sys.exit, builtins.exit, builtins.quit, *signals]

    before = state()
    runs = [gradmedic.init(mode="offline", dir=tmp_path, silent=True) for _ in range(2)]
    assert sys.exit is not before[0]
    for run in runs:
        assert state() != before
        run.finish()
    assert state() == before


def test_an_exit_function_that_was_replaced_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other code may wrap `sys.exit` while a run is open; the end of the run keeps that wrapper."""
    monkeypatch.setattr(sys, "exit", sys.exit)  # restored after the test
    run = gradmedic.init(mode="offline", dir=tmp_path, silent=True)
    monkeypatch.setattr(sys, "exit", lambda: None)
    replacement = sys.exit
    run.finish()
    assert sys.exit is replacement


ENDINGS = [
    ("", "finished", 0),
    ("1 / 0", "failed", 1),
    ("raise KeyboardInterrupt", "failed", None),
    ("raise SystemExit", "finished", 0),
    ("exit(0)", "finished", 0),
    ("exit(3)", "failed", 3),
    ("quit(3)", "failed", 3),
    ("import sys\nsys.exit(3)", "failed", 3),
    ("import sys\nsys.exit('no data')", "failed", 1),
    ("import sys\ndef main(): sys.exit(3)\ntry: main()\nfinally: print(end='')", "failed", 3),
    ("import sys\ntry: sys.exit(3)\nexcept SystemExit: run.log(5.0)", "finished", 0),
    ("with run: raise SystemExit(3)", "failed", 3),
]


@pytest.mark.parametrize("how", ["script", "module"])
@pytest.mark.parametrize(("ending", "status", "code"), ENDINGS)
def test_a_script_that_forgets_to_finish_is_finished(
    service_url: str, client: gradmedic.Client, how: str, ending: str, status: str, code: int | None, tmp_path: Path
) -> None:
    """At exit the rest is sent; an exception or an exit code makes the run failed, also under `python -m`."""
    (tmp_path / "train.py").write_text(
        "import gradmedic\n"
        "run = gradmedic.init(project='exit')\n"
        "for i in range(5): run.log(float(i))\n"
        "print(run.id, flush=True)\n" + ending
    )
    result = subprocess.run(
        [sys.executable, *(["train.py"] if how == "script" else ["-m", "train"])],
        cwd=tmp_path,
        env=os.environ | {"GRADMEDIC_BASE_URL": service_url, "GRADMEDIC_SILENT": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0 if code is None else result.returncode == code, result.stderr
    run_id = result.stdout.strip()
    assert f"{service_url}/runs/{run_id}" in result.stderr
    stored = client.runs.get(run_id)
    assert (stored.status, stored.last_step) == (status, 5 if "run.log(5.0)" in ending else 4)


@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGHUP"], ["SIGHUP", "SIGTERM", "SIGHUP"]])
def test_a_signal_finishes_every_run(signals: list[str], service_url: str, client: gradmedic.Client) -> None:
    """SIGTERM and SIGHUP, also both of them, finish each of several runs of a process as failed."""
    script = (
        "import gradmedic, os, signal, threading\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # the tests may run under nohup, which ignores it
        "runs = [gradmedic.init(project='exit') for _ in range(3)]\n"
        "for run in runs:\n"
        "    run.log(1.0)\n"
        "    print(run.id, flush=True)\n"
        "    assert run.flush()\n"
        f"for name in {signals}: os.kill(os.getpid(), getattr(signal, name))\n"
        "threading.Event().wait(60)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"GRADMEDIC_BASE_URL": service_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == -getattr(signal, signals[0]), result.stderr
    assert [client.runs.get(run_id).status for run_id in result.stdout.split()] == ["failed"] * 3


def test_a_hangup_that_is_ignored_does_not_end_the_run(service_url: str, client: gradmedic.Client) -> None:
    """Under `nohup`, which ignores SIGHUP, the training goes on."""
    script = (
        "import gradmedic, os, signal\n"
        "run = gradmedic.init(project='exit')\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        "run.log(1.0)\n"
        "print(run.id, flush=True)\n"
    )
    result = subprocess.run(
        ["nohup", sys.executable, "-c", script],
        env=os.environ | {"GRADMEDIC_BASE_URL": service_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    stored = client.runs.get(result.stdout.strip())
    assert (stored.status, stored.last_step) == ("finished", 0)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "module"])
def test_under_torchrun_an_exit_code_makes_the_run_failed(
    how: str, service_url: str, client: gradmedic.Client, tmp_path: Path
) -> None:
    """A script that torchrun starts and that exits with code 3 has a failed run."""
    (tmp_path / "train.py").write_text(
        "import gradmedic, pathlib, sys\n"
        "run = gradmedic.init(project='exit')\n"
        "run.log(1.0)\n"
        "if not run.is_follower: pathlib.Path('run').write_text(str(run.id))\n"
        "sys.exit(3)\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    result = subprocess.run(
        [*launcher, *(["train.py"] if how == "script" else ["-m", "train"])],
        cwd=tmp_path,
        env=os.environ | {"GRADMEDIC_BASE_URL": service_url, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "exitcode  : 3" in result.stderr, result.stderr
    assert client.runs.get((tmp_path / "run").read_text()).status == "failed"


SPAWNED = """
import multiprocessing, os, sys
import gradmedic
run = gradmedic.init('spawned', name=os.environ['NAME'])

def work(number):
    return number * 2

if __name__ == '__main__':
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        for number in pool.map(work, range(4)):
            run.log(float(number))
    run.finish()
"""


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_worker_processes_begin_no_runs_of_their_own(
    method: str, service_url: str, client: gradmedic.Client, tmp_path: Path
) -> None:
    """Worker processes begin no run, even if they import a script that calls init() at its top."""
    script = tmp_path / "script.py"
    script.write_text(SPAWNED)
    environment = os.environ | {"GRADMEDIC_BASE_URL": service_url, "NAME": f"spawned by {method}"}
    done = subprocess.run(
        [sys.executable, str(script), method],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    runs = [run for run in client.runs.list(project="spawned") if run.name == f"spawned by {method}"]
    assert [(run.status, run.last_step) for run in runs] == [("finished", 3)]


LOADING = """
import sys, torch, gradmedic
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.utils.data.TensorDataset(torch.randn(24, 4), torch.randn(24, 1))
loader = torch.utils.data.DataLoader(
    data, batch_size=4, num_workers=2, shuffle=True, persistent_workers=True, multiprocessing_context=sys.argv[1]
)
run = gradmedic.init('loading by ' + sys.argv[1], mode=sys.argv[2], flush_interval=0.01)
run.watch(model, optimizer)
for epoch in range(2):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
print(run.id, run.finish(), model.weight.tolist())
"""


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Run the script with a method and a mode; return the run's id, whether it was delivered, and the weights."""
    script = tmp_path_factory.mktemp("loading") / "loading.py"
    body = "".join(f"    {line}\n" for line in LOADING.splitlines())
    script.write_text(f"if __name__ == '__main__':\n{body}")

    def run(method: str, mode: str, **environment: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, str(script), method, mode],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
        return done.stdout.split(maxsplit=2)

    return run


@pytest.fixture(scope="module")
def unwatched_weights(load: Callable[..., list[str]]) -> str:
    """The weights without a run. Workers are forked: spawned ones import torch, which takes long."""
    return load("fork", "disabled")[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_do_not_disturb_the_run(
    method: str, service_url: str, client: gradmedic.Client, load: Callable[..., list[str]], unwatched_weights: str
) -> None:
    """Workers that start while the run sends do not disturb it, and the weights are those without a run."""
    run_id, is_delivered, weights = load(method, "online", GRADMEDIC_BASE_URL=service_url)
    assert is_delivered == "True"
    assert weights == unwatched_weights
    stored = client.runs.get(run_id)
    assert (stored.status, stored.last_step) == ("finished", 11)
    assert [run.id for run in client.runs.list(project=f"loading by {method}")] == [stored.id]
