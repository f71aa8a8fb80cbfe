"""Finds out how the process ends, which decides the status of the runs that it did not finish.

At exit, a run is `failed` if an exception ended the script or if the script left with an exit code other than 0.
Python keeps the exception in `sys.last_value`. It does not keep the exit code, so `sys.exit`, `exit` and `quit` are
wrapped while there are runs.

One case is not detected: a `SystemExit` that the script raises itself, as by `raise SystemExit(3)`, or by an `exit`
that it imported from `sys` before `gradmedic.init()`. Its run counts as finished, unless the exception leaves a
`with run:` block.

SIGTERM, and SIGHUP when a terminal or an SSH connection closes, end the process without running `atexit`. If the script
neither handles nor ignores such a signal (`nohup` ignores SIGHUP), it is handled here: every run is finished within a
few seconds, and the signal is sent again.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

SIGNAL_TIMEOUT = 5.0
"""Seconds for a run to be finished after a signal; schedulers kill after ten or more."""
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that end a process, and that Python does not turn into an exception. Windows has no SIGHUP."""


class Finishable(Protocol):
    """A run that must be finished when the process ends."""

    def finish(self, *, timeout: float, status: str) -> bool:
        """Send what is left and the run's status."""


_unfinished: list[Finishable] = []
_exit_code: object = None
_exit_at = 0.0
"""Time of the last call of an exit function, by `time.perf_counter()`."""
_earlier_error: object = None
"""The value of `sys.last_value` when the first run began."""
_wrappers: list[tuple[Any, str, Callable[..., Any]]] = []
"""Module, name of the exit function, and our wrapper of it."""


def watch_for_exit(run: Finishable) -> None:
    """Finish `run` if a signal ends the process, and note the exit code of the script."""
    global _exit_code, _earlier_error
    if not _unfinished:
        _exit_code, _earlier_error = None, getattr(sys, "last_value", None)
        for module, name in ((sys, "exit"), (builtins, "exit"), (builtins, "quit")):
            if hasattr(module, name):  # `python -S` has no exit() and quit()
                wrapper = _noting_exit_code(getattr(module, name))
                setattr(module, name, wrapper)
                _wrappers.append((module, name, wrapper))
        for signum in _SIGNALS if threading.current_thread() is threading.main_thread() else ():
            if signal.getsignal(signum) == signal.SIG_DFL:
                signal.signal(signum, _finish_all_and_terminate)
    _unfinished.append(run)


def stop_watching(run: Finishable) -> None:
    """Forget `run`. After the last one, the exit functions and the signals are as they were."""
    if run in _unfinished:
        _unfinished.remove(run)
        if not _unfinished:
            _restore()


def has_failed(last_active_at: float) -> bool:
    """Return whether the process ends because of an exception or with an exit code other than 0.

    Args:
        last_active_at: time of the last `run.log()`, by `time.perf_counter()`. An exit before it was caught by the
            script and does not count.
    """
    has_exit_code = is_failure(_exit_code) and _exit_at >= last_active_at
    return getattr(sys, "last_value", None) is not _earlier_error or has_exit_code


def is_failure(code: object) -> bool:
    """Return whether an exit code means failure."""
    return code not in (None, 0)


def reset_in_child() -> None:
    """Undo everything in a forked child."""
    _unfinished.clear()
    _restore()


def _restore() -> None:
    while _wrappers:
        module, name, wrapper = _wrappers.pop()
        if getattr(module, name, None) is wrapper:  # other code may have replaced it since
            setattr(module, name, wrapper.__wrapped__)
    with contextlib.suppress(ValueError):  # only the main thread may set signals
        for signum in _SIGNALS:
            if signal.getsignal(signum) is _finish_all_and_terminate:
                signal.signal(signum, signal.SIG_DFL)


def _noting_exit_code(exit_function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that notes the exit code and then calls `exit_function`."""

    @functools.wraps(exit_function)
    def exit_(code: Any = None, /) -> Any:
        global _exit_code, _exit_at
        _exit_code, _exit_at = code, time.perf_counter()
        return exit_function(code)

    return exit_


def _finish_all_and_terminate(signum: int, _frame: FrameType | None) -> None:
    for other in _SIGNALS:  # some senders send both, or one twice
        if signal.getsignal(other) is _finish_all_and_terminate:
            signal.signal(other, signal.SIG_IGN)
    for run in _unfinished.copy():  # finish() removes each one
        run.finish(timeout=SIGNAL_TIMEOUT, status="failed")
    _restore()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
