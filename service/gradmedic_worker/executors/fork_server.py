"""Starts attempts from a process that has already imported torch.

A fork saves a script's imports: about 3 CPU seconds a trial with torch and the client. CPU seconds of a race of twelve
trials, two at a time on two busy cores:

| script | new processes | forked | saved |
| --- | --- | --- | --- |
| rnn_language_model.py --steps 200, as in `gradmedic demo` | 61.9 | 33.7 | 46 % |
| rnn_language_model.py --steps 800 | 150.1 | 106.4 | 29 % |
| digits_classifier.py --steps 1500 | 96.9 | 63.8 | 34 % |

A fork is safe only while the forking process has a single thread: a child of several threads may inherit a lock whose
owner does not exist in it. So this process imports, counts its threads and reports the number to the worker. Each
attempt is then a launcher forked from this process, and a script forked from the launcher.

The script runs as if started by hand: with its own `__main__`, arguments, environment, first entry of `sys.path`, and
random generators.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import traceback
import types
from typing import Any

from gradmedic_worker.attempt import run_attempt

MODULES = ("numpy", "torch", "urllib3", "gradmedic", "gradmedic.torch.watch", "gradmedic.torch.remedies")


def main() -> None:
    """Import the modules, report the number of threads, and fork a launcher for each pair of descriptors received."""
    connection = socket.socket(fileno=os.dup(0))
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError):
        for module in MODULES:
            importlib.import_module(module)
        _create_optimizer()
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 2  # noqa: PTH112, PTH208
    connection.sendall(json.dumps({"threads": threads}).encode() + b"\n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that the kernel collects launchers that have ended
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 16, 2)
        if not message:
            return
        if os.fork() == 0:
            try:
                connection.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                run_attempt(descriptors[0], descriptors[1], become_script)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _create_optimizer() -> None:
    """Create an optimizer: torch then imports modules that take as long as `import torch` itself."""
    import torch

    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])


def become_script(spec: dict[str, Any]) -> None:
    """Run a script as the interpreter would run it, and end the process with its exit code."""
    os.environ.clear()
    os.environ.update(spec["environment"])
    arguments = spec["command"][1:]
    path = arguments[0]
    sys.argv = list(arguments)
    sys.path[0] = os.path.dirname(path)  # noqa: PTH120
    sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # both are text files here
    _reseed_generators()
    exit_code = _run_main_module(path)
    _finalize()
    os._exit(exit_code)


def _run_main_module(path: str) -> int:
    """Run a file as `__main__` and return the exit code."""
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update({"__file__": path, "__builtins__": __builtins__, "__spec__": None})
    sys.modules["__main__"] = main_module
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            code = compile(file.read(), path, "exec")
        exec(code, main_module.__dict__)  # noqa: S102  # the operator's own script
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)  # noqa: T201
        return 1
    except BaseException as error:
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        script_traceback = None if error.__traceback__ is None else error.__traceback__.tb_next
        traceback.print_exception(type(error), error, script_traceback)
        return 1
    return 0


def _reseed_generators() -> None:
    """Seed the global generators from the operating system, as in a new process."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()


def _finalize() -> None:
    """Do what the interpreter does at its end: wait for threads, run exit functions, flush output."""
    import atexit
    import threading

    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # private; the interpreter calls it at its end
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()


if __name__ == "__main__":
    main()
