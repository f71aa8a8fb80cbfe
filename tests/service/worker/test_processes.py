"""Trials as processes: what they find, and that nothing of them is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.support.patience import PATIENCE

from gradmedic_worker import processes
from gradmedic_worker.attempt import KEEP_FIRST, KEEP_LAST
from gradmedic_worker.processes import Ended, LaunchSpec, LocalProcess, Starter, is_plain_script

pytestmark = pytest.mark.slow  # services of their own

Wait = Callable[[Callable[[], bool]], None]
ENVIRONMENT = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    """What starts processes; the one with torch in memory is started once."""
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture(params=["anew", "forked"])
def start(request: pytest.FixtureRequest, starter: Starter, tmp_path: Path) -> Iterator[Callable[..., LocalProcess]]:
    """Start scripts, each way in turn; what is left at the end is ended."""
    started: list[LocalProcess] = []

    def run(script: str, *arguments: str, seconds: float = PATIENCE, memory: int | None = None) -> LocalProcess:
        (tmp_path / "script.py").write_text(script)
        order = LaunchSpec(
            command=[sys.executable, str(tmp_path / "script.py"), *arguments],
            environment={**ENVIRONMENT, "MARK": "trial"},
            directory=tmp_path,
            output=tmp_path / "output",
            seconds=seconds,
            memory=memory,
        )
        started.append(starter.start(order, ENVIRONMENT, may_preload=request.param == "forked"))
        return started[-1]

    yield run
    for process in started:
        process.close()


def end_of(process: LocalProcess) -> Ended:
    """Wait for the end of a trial."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended = process.wait(1.0)
        if ended is not None:
            return ended
    raise AssertionError("the trial did not end")


def printed(folder: Path) -> str:
    """Return what a trial has printed, as it is kept."""
    path = folder / "output"
    return path.read_text() if path.exists() else ""


def is_gone(pid: int) -> bool:
    """Whether a process has ended, or only waits to be collected."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


Start = Callable[..., LocalProcess]


def test_a_script_runs_as_by_hand(start: Start, tmp_path: Path) -> None:
    """It is `__main__`, has its arguments, its environment alone, its folder, its own path, and no input."""
    script = (
        "import json, os, sys, __main__\n"
        "print(json.dumps([__name__, sys.argv[1:], __main__.__file__ == __file__, sorted(os.environ), os.getcwd(),\n"
        "    sys.path[0], sys.stdin.read()]))\n"
        "import atexit; atexit.register(print, 'at exit')\n"
    )
    assert end_of(start(script, "--lr=0.1", "two words")) == Ended(0, None)
    line, last = printed(tmp_path).splitlines()
    name, arguments, is_main, variables, folder, path, read = json.loads(line)
    assert (name, arguments, is_main, read) == ("__main__", ["--lr=0.1", "two words"], True, "")
    assert set(variables) - {"LC_CTYPE", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"} == {*ENVIRONMENT, "MARK"}
    assert (folder, path, last) == (str(tmp_path), str(tmp_path), "at exit")


@pytest.mark.parametrize(
    ("script", "expected", "said"),
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
def test_ends_are_told(start: Start, tmp_path: Path, script: str, expected: int, said: str) -> None:
    """Exit codes and signals arrive as they are, with what was printed last."""
    assert end_of(start(script)) == Ended(expected, None)
    assert said in printed(tmp_path)


def test_gigabytes_of_output_are_bounded(start: Start, tmp_path: Path) -> None:
    """A script that prints without end is not held up, and its beginning and end are kept."""
    script = (
        "import os\nprint('first words')\nline = b'x' * 65536\nfor _ in range(4096): os.write(1, line)\n"
        "print('last words')\n"
    )
    assert end_of(start(script)) == Ended(0, None)
    kept = printed(tmp_path)
    assert len(kept) < KEEP_FIRST + KEEP_LAST + 100
    assert kept.startswith("first words")
    assert kept.endswith("last words\n")
    assert "bytes are left out" in kept


def test_a_script_that_hangs_is_ended_in_time(start: Start, tmp_path: Path) -> None:
    """Beyond its seconds a trial is asked to end, and killed if it does not care."""
    script = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('here')\ntime.sleep(600)\n"
    assert end_of(start(script, seconds=4.0)) == Ended(-signal.SIGKILL, "timeout")
    assert "here" in printed(tmp_path)


def test_stopping_lets_a_script_clean_up(start: Start, tmp_path: Path, wait_until: Wait) -> None:
    """A trial that is told to stop gets a moment to end by itself."""
    script = (
        "import signal, sys, time\n"
        "def end(*_): print('cleaned up'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('ready')\ntime.sleep(600)\n"
    )
    process = start(script)
    wait_until(lambda: process.wait(0.05) is None and "ready" in printed(tmp_path))
    process.stop()
    assert end_of(process) == Ended(0, "stopped")
    assert "cleaned up" in printed(tmp_path)


FORKING = """
import os, subprocess, sys, time
daemon = r"import os, time; os.setsid(); os.fork() and os._exit(0); os.write(1, b'%d\\n' % os.getpid())"
daemon += "; time.sleep(600)"
subprocess.Popen([sys.executable, "-c", daemon])
if os.fork() == 0:
    os.write(1, b'%d\\n' % os.getpid())
    time.sleep(600)
os.write(1, b'%d\\n' % os.getpid())
"""


@pytest.mark.parametrize("how", ["ends", "stop", "let go"])
def test_nothing_of_a_forking_script_is_left(start: Start, tmp_path: Path, wait_until: Wait, how: str) -> None:
    """Children, and daemons in sessions of their own, end with the trial, however it ends."""
    waiting = "while not os.path.exists('go'): time.sleep(0.01)\n" if how == "ends" else "time.sleep(600)\n"
    process = start(FORKING + waiting)
    wait_until(lambda: len(printed(tmp_path).split()) == 3)
    pids = [int(pid) for pid in printed(tmp_path).split()]
    (tmp_path / "go").touch()
    if how == "stop":
        process.stop()
    if how == "let go":
        process.close()
    else:
        end_of(process)
    wait_until(lambda: all(is_gone(pid) for pid in pids))


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
def test_memory_is_bounded(start: Start, tmp_path: Path, script: str) -> None:
    """A trial whose processes together hold more memory than they may is ended, and the reason and output are told."""
    process = start(f"print('begins', flush=True)\n{script}", memory=400 * 2**20)
    assert end_of(process) == Ended(-signal.SIGKILL, "memory")
    assert "begins" in printed(tmp_path)


@pytest.mark.parametrize("held", ["b'x' * 2**27", "mmap.mmap(-1, 2**27)"], ids=["forked", "mapped"])
def test_what_processes_share_counts_once(start: Start, tmp_path: Path, held: str) -> None:
    """A data set that forked loaders all see is held once."""
    script = (
        f"import mmap, os, time\nheld = {held}\n"
        "if type(held) is mmap.mmap: held[:] = b'x' * 2**27\n"
        "for _ in range(2): os.fork()\nassert held[-1:] == b'x' and len(set(held[::4096])) == 1\ntime.sleep(1)\n"
    )
    assert end_of(start(script, memory=400 * 2**20)) == Ended(0, None)


def test_a_killed_launcher_takes_its_script_along(start: Start, tmp_path: Path, wait_until: Wait) -> None:
    """If the process between worker and script is killed, the script ends too, and the worker is told."""
    process = start("import os, time\nprint(os.getppid(), os.getpid(), flush=True)\ntime.sleep(600)\n")
    wait_until(lambda: process.wait(0.05) is None and len(printed(tmp_path).split()) == 2)
    launcher, script = map(int, printed(tmp_path).split())
    os.kill(launcher, signal.SIGKILL)
    assert end_of(process).exit_code is None
    wait_until(lambda: is_gone(script))


TRAINING = """
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


def test_a_trial_computes_what_the_script_computes_by_hand(start: Start, tmp_path: Path) -> None:
    """Weights and generators are the same to the bit as of the script run by hand."""
    assert end_of(start(TRAINING)) == Ended(0, None)
    by_hand = subprocess.run(
        [sys.executable, tmp_path / "script.py"], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    kept = printed(tmp_path)
    assert kept.endswith(by_hand.stdout[-40_000:])
    assert len(by_hand.stdout) > 10_000


def test_generators_differ_from_trial_to_trial(start: Start, tmp_path: Path) -> None:
    """A script that seeds nothing does not get the numbers of the trial before it."""
    script = "import random, numpy, torch\nprint(random.random(), numpy.random.rand(), torch.rand(1).item())\n"
    seen = []
    for _ in range(2):
        assert end_of(start(script)) == Ended(0, None)
        seen.append(printed(tmp_path).split())
    assert all(one != other for one, other in zip(*seen, strict=True))


def test_only_this_interpreters_scripts_are_forked() -> None:
    """Other programs, other interpreters, modules and code on the command line are started anew."""
    assert is_plain_script([sys.executable, "train.py"])
    for other in (["/bin/sh", "x.py"], [sys.executable, "-m", "x"], [sys.executable], ["/usr/bin/python3", "x.py"]):
        assert not is_plain_script(other)


def test_a_trial_does_not_wait_for_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Wait) -> None:
    """While torch is being imported, trials start without it; once it is there, they are forked."""
    monkeypatch.setattr(processes, "PRELOAD_WAIT", 0.0)
    (tmp_path / "script.py").write_text("import sys\nprint('torch' in sys.modules)")
    order = LaunchSpec(
        command=[sys.executable, str(tmp_path / "script.py")],
        environment=ENVIRONMENT,
        directory=tmp_path,
        output=tmp_path / "output",
        seconds=60,
        memory=None,
    )
    starter = Starter()

    def said() -> str:
        process = starter.start(order, ENVIRONMENT, may_preload=True)
        assert end_of(process) == Ended(0, None)
        process.close()
        return printed(tmp_path)

    try:
        assert said() == "False\n"
        wait_until(lambda: said() == "True\n")
    finally:
        starter.close()


def test_several_threads_are_no_place_to_fork_from(starter: Starter, tmp_path: Path) -> None:
    """Where importing starts threads, trials start without it, and run all the same."""
    (tmp_path / "script.py").write_text("print('ran')")
    many = {**ENVIRONMENT, "OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"}
    order = LaunchSpec(
        command=[sys.executable, str(tmp_path / "script.py")],
        environment=many,
        directory=tmp_path,
        output=tmp_path / "output",
        seconds=60,
        memory=None,
    )
    process = starter.start(order, many, may_preload=True)
    assert end_of(process) == Ended(0, None)
    process.close()
    assert printed(tmp_path) == "ran\n"
