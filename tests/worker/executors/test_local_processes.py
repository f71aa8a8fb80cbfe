"""Trials as processes of this machine: how their scripts run, and that no process of theirs is left."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.patience import PATIENCE
from tests.support.processes import has_ended
from tests.support.workers import WaitUntil

from gradmedic_worker.attempt import OUTPUT_END_BYTES, OUTPUT_START_BYTES
from gradmedic_worker.executors import local_processes
from gradmedic_worker.executors.fork_server import MODULES
from gradmedic_worker.executors.local_processes import (
    LAUNCHER_KILLED,
    LaunchSpec,
    LocalProcess,
    ProcessEnd,
    ProcessStarter,
    is_forkable,
)

pytestmark = pytest.mark.slow

StartScript = Callable[..., LocalProcess]
ENVIRONMENT = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def starter() -> Iterator[ProcessStarter]:
    """One starter for all tests, because its fork server takes long to import torch."""
    starter = ProcessStarter()
    yield starter
    starter.close()


def make_spec(
    folder: Path,
    *arguments: str,
    environment: dict[str, str] = ENVIRONMENT,
    seconds: float = PATIENCE,
    memory: int | None = None,
) -> LaunchSpec:
    """Return the spec that runs `script.py` of a folder."""
    return LaunchSpec(
        command=[sys.executable, str(folder / "script.py"), *arguments],
        environment=environment,
        directory=folder,
        output=folder / "output",
        seconds=seconds,
        memory=memory,
    )


@pytest.fixture(params=["new", "forked"])
def start(request: pytest.FixtureRequest, starter: ProcessStarter, tmp_path: Path) -> Iterator[StartScript]:
    """Start scripts, as new processes and as forked ones in turn. They are closed at the end of the test."""
    started: list[LocalProcess] = []

    def start_script(
        script: str, *arguments: str, seconds: float = PATIENCE, memory: int | None = None
    ) -> LocalProcess:
        (tmp_path / "script.py").write_text(script)
        environment = {**ENVIRONMENT, "MARK": "trial"}
        spec = make_spec(tmp_path, *arguments, environment=environment, seconds=seconds, memory=memory)
        started.append(starter.start(spec, ENVIRONMENT, may_fork=request.param == "forked"))
        return started[-1]

    yield start_script
    for process in started:
        process.close()


def wait_for_end(process: LocalProcess) -> ProcessEnd:
    """Wait for the end of a trial."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        end = process.wait(1.0)
        if end is not None:
            return end
    raise AssertionError("the trial did not end")


def read_output(folder: Path) -> str:
    """Return the kept output of a trial."""
    path = folder / "output"
    return path.read_text() if path.exists() else ""


def test_a_script_runs_as_if_started_by_hand(start: StartScript, tmp_path: Path) -> None:
    """A script is `__main__`, and has its own arguments, environment, working directory and path, and no input."""
    script = (
        "import json, os, sys, __main__\n"
        "print(json.dumps([__name__, sys.argv[1:], __main__.__file__ == __file__, sorted(os.environ), os.getcwd(),\n"
        "    sys.path[0], sys.stdin.read()]))\n"
        "import atexit; atexit.register(print, 'at exit')\n"
    )
    assert wait_for_end(start(script, "--lr=0.1", "two words")) == ProcessEnd(0, None)
    first, last = read_output(tmp_path).splitlines()
    name, arguments, is_main, variables, folder, path, standard_input = json.loads(first)
    assert (name, arguments, is_main, standard_input) == ("__main__", ["--lr=0.1", "two words"], True, "")
    assert set(variables) - {"LC_CTYPE", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"} == {*ENVIRONMENT, "MARK"}
    assert (folder, path, last) == (str(tmp_path), str(tmp_path), "at exit")


@pytest.mark.parametrize(
    ("script", "exit_code", "printed"),
    [
        ("raise ValueError('too bad')", 1, "ValueError: too bad"),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no data')", 1, "no data"),
        ("this is no Python", 1, "SyntaxError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -11, ""),
        ("import os; os._exit(9)", 9, ""),
    ],
    ids=["exception", "code", "message", "syntax", "crash", "hard"],
)
def test_the_exit_code_is_reported(
    start: StartScript, tmp_path: Path, script: str, exit_code: int, printed: str
) -> None:
    """The exit code, or the signal as a negative number, is reported, and the last output is kept."""
    assert wait_for_end(start(script)) == ProcessEnd(exit_code, None)
    assert printed in read_output(tmp_path)


def test_endless_output_is_bounded(start: StartScript, tmp_path: Path) -> None:
    """A script with endless output is not blocked, and the start and the end of its output are kept."""
    script = (
        "import os\nprint('first words')\nline = b'x' * 65536\nfor _ in range(4096): os.write(1, line)\n"
        "print('last words')\n"
    )
    assert wait_for_end(start(script)) == ProcessEnd(0, None)
    output = read_output(tmp_path)
    assert len(output) < OUTPUT_START_BYTES + OUTPUT_END_BYTES + 100
    assert output.startswith("first words")
    assert output.endswith("last words\n")
    assert "bytes are left out" in output


def test_a_script_is_killed_at_its_time_limit(start: StartScript, tmp_path: Path) -> None:
    """A script that ignores SIGTERM at its time limit is killed."""
    script = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('here')\ntime.sleep(600)\n"
    assert wait_for_end(start(script, seconds=4.0)) == ProcessEnd(-signal.SIGKILL, "timeout")
    assert "here" in read_output(tmp_path)


def test_a_stopped_script_may_clean_up(start: StartScript, tmp_path: Path, wait_until: WaitUntil) -> None:
    """A stopped script gets SIGTERM and some time to end by itself."""
    script = (
        "import signal, sys, time\n"
        "def end(*_): print('cleaned up'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('ready')\ntime.sleep(600)\n"
    )
    process = start(script)
    wait_until(lambda: process.wait(0.05) is None and "ready" in read_output(tmp_path))
    process.stop()
    assert wait_for_end(process) == ProcessEnd(0, "stopped")
    assert "cleaned up" in read_output(tmp_path)


FORKING_SCRIPT = """
import os, subprocess, sys, time
daemon = r"import os, time; os.setsid(); os.fork() and os._exit(0); os.write(1, b'%d\\n' % os.getpid())"
daemon += "; time.sleep(600)"
subprocess.Popen([sys.executable, "-c", daemon])
if os.fork() == 0:
    os.write(1, b'%d\\n' % os.getpid())
    time.sleep(600)
os.write(1, b'%d\\n' % os.getpid())
"""


@pytest.mark.parametrize("how", ["ends", "stop", "close"])
def test_no_process_of_a_forking_script_is_left(
    start: StartScript, tmp_path: Path, wait_until: WaitUntil, how: str
) -> None:
    """Children, and daemons in sessions of their own, end with the trial, however it ends."""
    waiting = "while not os.path.exists('go'): time.sleep(0.01)\n" if how == "ends" else "time.sleep(600)\n"
    process = start(FORKING_SCRIPT + waiting)
    wait_until(lambda: len(read_output(tmp_path).split()) == 3)
    pids = [int(pid) for pid in read_output(tmp_path).split()]
    (tmp_path / "go").touch()
    if how == "stop":
        process.stop()
    if how == "close":
        process.close()
    else:
        wait_for_end(process)
    wait_until(lambda: all(has_ended(pid) for pid in pids))


@pytest.mark.parametrize(
    "script",
    [
        "import time\nheld = []\nwhile True:\n    held.append(b'x' * 2**24)\n    time.sleep(0.01)\n",
        "held = []\nwhile True: held.append(b'x' * 2**25)\n",
        "import os, time\nfor _ in range(3): os.fork()\nheld = b'x' * 2**26\ntime.sleep(600)\n",
        "import mmap, time\nheld = mmap.mmap(-1, 2**29)\nheld[:] = b'x' * 2**29\ntime.sleep(600)\n",
    ],
    ids=["slowly", "at once", "by children", "shared"],
)
def test_memory_is_limited(start: StartScript, tmp_path: Path, script: str) -> None:
    """A trial is killed when its processes together hold more memory than allowed. Its output is kept."""
    process = start(f"print('begins', flush=True)\n{script}", memory=400 * 2**20)
    assert wait_for_end(process) == ProcessEnd(-signal.SIGKILL, "memory")
    assert "begins" in read_output(tmp_path)


@pytest.mark.parametrize("held", ["b'x' * 2**27", "mmap.mmap(-1, 2**27)"], ids=["forked", "mapped"])
def test_shared_memory_counts_once(start: StartScript, tmp_path: Path, held: str) -> None:
    """Memory that forked processes share, such as a data set, counts once."""
    script = (
        f"import mmap, os, time\nheld = {held}\n"
        "if type(held) is mmap.mmap: held[:] = b'x' * 2**27\n"
        "for _ in range(2): os.fork()\nassert held[-1:] == b'x' and len(set(held[::4096])) == 1\ntime.sleep(1)\n"
    )
    assert wait_for_end(start(script, memory=400 * 2**20)) == ProcessEnd(0, None)


def test_a_script_ends_with_its_launcher(start: StartScript, tmp_path: Path, wait_until: WaitUntil) -> None:
    """If the launcher is killed, the script ends too, and the worker gets the reason."""
    process = start("import os, time\nprint(os.getppid(), os.getpid(), flush=True)\ntime.sleep(600)\n")
    wait_until(lambda: process.wait(0.05) is None and len(read_output(tmp_path).split()) == 2)
    launcher, script = map(int, read_output(tmp_path).split())
    os.kill(launcher, signal.SIGKILL)
    assert wait_for_end(process) == ProcessEnd(None, LAUNCHER_KILLED)
    wait_until(lambda: has_ended(script))


TRAINING_SCRIPT = """
import torch
torch.manual_seed(3)
model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.Dropout(), torch.nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters())
for _ in range(20):
    optimizer.zero_grad()
    model(torch.randn(32, 20)).square().mean().backward()
    optimizer.step()
print([p.detach().numpy().tobytes().hex() for p in model.parameters()], torch.get_rng_state().sum().item())
"""


def test_a_trial_computes_the_same_as_a_script_started_by_hand(start: StartScript, tmp_path: Path) -> None:
    """Weights and random generators are equal to the bit to those of the script started by hand."""
    assert wait_for_end(start(TRAINING_SCRIPT)) == ProcessEnd(0, None)
    by_hand = subprocess.run(
        [sys.executable, tmp_path / "script.py"], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert read_output(tmp_path).endswith(by_hand.stdout[-40_000:])
    assert len(by_hand.stdout) > 10_000


def test_random_numbers_differ_from_trial_to_trial(start: StartScript, tmp_path: Path) -> None:
    """A script that seeds nothing gets other random numbers than the trial before."""
    script = "import random, numpy, torch\nprint(random.random(), numpy.random.rand(), torch.rand(1).item())\n"
    outputs = []
    for _ in range(2):
        assert wait_for_end(start(script)) == ProcessEnd(0, None)
        outputs.append(read_output(tmp_path).split())
    assert all(first != second for first, second in zip(*outputs, strict=True))


def test_the_modules_of_the_fork_server_exist() -> None:
    """The fork server ignores a missing module, because torch may be missing. Here none is missing."""
    for module in MODULES:
        importlib.import_module(module)


def test_only_scripts_of_the_same_interpreter_are_forked() -> None:
    """Other programs, other interpreters, modules and code on the command line are not forked."""
    assert is_forkable([sys.executable, "train.py"])
    for command in (["/bin/sh", "x.py"], [sys.executable, "-m", "x"], [sys.executable], ["/usr/bin/python3", "x.py"]):
        assert not is_forkable(command)


def test_a_trial_does_not_wait_for_the_fork_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    """While the fork server imports torch, trials start as new processes. Later trials are forked."""
    monkeypatch.setattr(local_processes, "FORK_SERVER_WAIT_SECONDS", 0.0)
    (tmp_path / "script.py").write_text("import sys\nprint('torch' in sys.modules)")
    starter = ProcessStarter()

    def run_script() -> str:
        process = starter.start(make_spec(tmp_path), ENVIRONMENT, may_fork=True)
        assert wait_for_end(process) == ProcessEnd(0, None)
        process.close()
        return read_output(tmp_path)

    try:
        assert run_script() == "False\n"
        wait_until(lambda: run_script() == "True\n")
    finally:
        starter.close()


def test_the_first_trial_is_forked_from_a_preloaded_process(tmp_path: Path, wait_until: WaitUntil) -> None:
    """A process that was preloaded serves the first trial. A command that cannot be forked has none."""
    (tmp_path / "script.py").write_text("import sys\nprint('torch' in sys.modules)")
    starter = ProcessStarter()
    try:
        starter.preload(["/bin/sh", "script.py"], ENVIRONMENT)
        assert not starter._fork_servers
        starter.preload([sys.executable, "script.py"], ENVIRONMENT)
        (server,) = starter._fork_servers.values()
        wait_until(server._has_reported.is_set)
        process = starter.start(make_spec(tmp_path), ENVIRONMENT, may_fork=True)
        assert wait_for_end(process) == ProcessEnd(0, None)
        process.close()
        assert read_output(tmp_path) == "True\n"
        assert list(starter._fork_servers.values()) == [server]
    finally:
        starter.close()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="with one CPU, imports start no threads")
def test_a_fork_server_with_several_threads_is_not_used(starter: ProcessStarter, tmp_path: Path) -> None:
    """Where imports start threads, trials start as new processes."""
    (tmp_path / "script.py").write_text("import sys\nprint('torch' in sys.modules)")
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"}
    process = starter.start(make_spec(tmp_path, environment=environment), environment, may_fork=True)
    assert wait_for_end(process) == ProcessEnd(0, None)
    process.close()
    assert read_output(tmp_path) == "False\n"
