"""How the process ends, which decides how its runs ended.

One idea: what Python tells at exit is not enough. An exception that ended the script is in `sys.last_value`; the code
of `sys.exit()` is nowhere, so `sys.exit` is wrapped while there are runs; and a termination signal ends the process
without any of it, so it is caught if nobody else does, the runs are finished in a few seconds, and it is given again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn, Protocol

SIGNAL_TIMEOUT = 5.0
"""Seconds for a run to be finished after a termination signal; schedulers kill after ten or more."""


class Ending(Protocol):
    """What is to be finished when the process ends."""

    def finish(self, *, timeout: float, status: str) -> bool:
        """Send what is left."""


_open: list[Ending] = []
_exit_code: object = None
_last_error: object = None
_original_exit: Any = None


def watch_for_end(run: Ending) -> None:
    """Finish `run` if the process is terminated; notice how it exits."""
    global _original_exit, _exit_code, _last_error
    if not _open:
        _exit_code, _last_error = None, getattr(sys, "last_value", None)
        _original_exit, sys.exit = sys.exit, _exit
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminate)
    _open.append(run)


def ignore_end(run: Ending) -> None:
    """Watch no longer for `run`; after the last, `sys.exit` and the signal are as they were."""
    if run in _open:
        _open.remove(run)
        if not _open:
            _restore()


def forget_exit() -> None:
    """Take in that an exit was called off: the training goes on."""
    global _exit_code
    _exit_code = None


def has_failed() -> bool:
    """Whether the process ends because of an exception, or with an exit code that says so."""
    return getattr(sys, "last_value", None) is not _last_error or _exit_code not in (None, 0)


def become_child() -> None:
    """Leave no trace in a fork."""
    _open.clear()
    _restore()


def _restore() -> None:
    global _original_exit
    if _original_exit is not None and sys.exit is _exit:
        sys.exit = _original_exit
    _original_exit = None
    with contextlib.suppress(ValueError):  # only the main thread may
        if signal.getsignal(signal.SIGTERM) is _terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(status: Any = None, /) -> NoReturn:
    global _exit_code
    _exit_code = status
    raise SystemExit(status)


def _terminate(signum: int, _frame: FrameType | None) -> None:
    for run in _open:
        run.finish(timeout=SIGNAL_TIMEOUT, status="failed")
    _restore()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
