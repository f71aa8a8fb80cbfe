"""Starts trials from a process that has imported torch already, so that a short trial costs a short time.

One idea: a fork is a start without the imports. It is safe only while the forking process has a single thread, so that
no lock is held by one that the child does not have; this process imports, counts its threads, and says whether it may
be used. Each trial is a launcher forked from here, with the script forked from that.

The script runs as by hand: its own `__main__`, arguments, environment, first entry of the path, and generators.
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

from gradmedic_worker import attempt as launcher

MODULES = ("numpy", "torch", "urllib3", "gradmedic", "gradmedic.torch.watch", "gradmedic.torch.remedies")


def main() -> None:
    """Import, say whether that went well, and fork a launcher for each pair of descriptors that arrives."""
    connection = socket.socket(fileno=os.dup(0))
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError):
        for module in MODULES:
            importlib.import_module(module)
        _make_optimizer()
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 2  # noqa: PTH112, PTH208
    connection.sendall(json.dumps({"threads": threads}).encode() + b"\n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the launchers
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 16, 2)
        if not message:
            return
        if os.fork() == 0:
            try:
                connection.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                launcher.run(descriptors[0], descriptors[1], become_script)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _make_optimizer() -> None:
    """Let torch import what it puts off until the first optimizer is made: as much again as torch itself."""
    import torch

    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])


def become_script(order: dict[str, Any]) -> None:
    """Run a script as the interpreter would, and end as it would."""
    os.environ.clear()
    os.environ.update(order["environment"])
    arguments = order["command"][1:]
    path = arguments[0]
    sys.argv = list(arguments)
    sys.path[0] = os.path.dirname(path)  # noqa: PTH120
    sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    _forget_generators()
    exit_code = _run_main(path)
    _finalize()
    os._exit(exit_code)


def _run_main(path: str) -> int:
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
        own = None if error.__traceback__ is None else error.__traceback__.tb_next
        traceback.print_exception(type(error), error, own)
        return 1
    return 0


def _forget_generators() -> None:
    """Let generators be as unpredictable as those of a new process, until the script or the trial seeds them."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()


def _finalize() -> None:
    """Do what the interpreter does at its end."""
    import atexit
    import threading

    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()


if __name__ == "__main__":
    main()
