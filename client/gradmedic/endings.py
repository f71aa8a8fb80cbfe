"""How the process ends, which decides how its runs ended.

One idea: what Python tells at exit is not enough. An exception that ended the script is in `sys.last_value`; an exit
code is nowhere, so `sys.exit`, `exit` and `quit` are wrapped while there are runs, and a `SystemExit` that the script
raises itself is looked for at the one moment when it can be seen: CPython flushes the standard streams between the end
of a script and the end of that exception. (Not so for `python -m` and `-c`: there such a run counts as finished.)

A termination signal ends the process without any of it, so it is caught if nobody else does, the runs are finished in
a few seconds, and it is given again.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

SIGNAL_TIMEOUT = 5.0
"""Seconds for a run to be finished after a termination signal; schedulers kill after ten or more."""


class Ending(Protocol):
    """What is to be finished when the process ends."""

    def finish(self, *, timeout: float, status: str) -> bool:
        """Send what is left."""


_open: list[Ending] = []
_exit_code: object = None
_last_error: object = None
_wrapped: list[tuple[Any, str, Any, bool]] = []
"""Objects, names of their attributes, our functions there, which know what they replaced, and whether that was the
object's own or its class's."""


def watch_for_end(run: Ending) -> None:
    """Finish `run` if the process is terminated; notice how it exits."""
    global _exit_code, _last_error
    if not _open:
        _exit_code, _last_error = None, getattr(sys, "last_value", None)
        for module, name in ((sys, "exit"), (builtins, "exit"), (builtins, "quit")):
            if hasattr(module, name):  # python -S has no exit() and quit()
                _wrap(module, name, _noting_code(getattr(module, name)))
        with contextlib.suppress(AttributeError, TypeError):  # a stream that somebody made, or none
            _wrap(sys.stderr, "flush", _looking_for_exit(sys.stderr.flush))
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
    return getattr(sys, "last_value", None) is not _last_error or is_failure(_exit_code)


def is_failure(code: object) -> bool:
    """Whether an exit code says that something went wrong."""
    return code not in (None, 0)


def become_child() -> None:
    """Leave no trace in a fork."""
    _open.clear()
    _restore()


def _restore() -> None:
    while _wrapped:
        owner, name, ours, was_its_own = _wrapped.pop()
        is_still_ours = getattr(owner, name, None) is ours  # somebody may have wrapped it again
        if is_still_ours and was_its_own:
            setattr(owner, name, ours.__wrapped__)
        elif is_still_ours:
            delattr(owner, name)  # what it replaced is the class's
    with contextlib.suppress(ValueError):  # only the main thread may
        if signal.getsignal(signal.SIGTERM) is _terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _wrap(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    was_its_own = name in vars(owner)
    setattr(owner, name, ours)
    _wrapped.append((owner, name, ours, was_its_own))


def _noting_code(leave: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that notes the exit code and then leaves as the original does."""

    @functools.wraps(leave)
    def exit_(code: Any = None, /) -> Any:
        global _exit_code
        _exit_code = code
        return leave(code)

    return exit_


def _looking_for_exit(flush: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that flushes a stream and, if the interpreter itself calls it, looks for a `SystemExit`."""

    @functools.wraps(flush)
    def flush_() -> Any:
        global _exit_code
        if sys._getframe().f_back is None and threading.current_thread() is threading.main_thread():
            for each in gc.get_objects():
                if isinstance(each, SystemExit) and each.__traceback__ is None:  # it gets one where it is caught
                    _exit_code = each.code
        return flush()

    return flush_


def _terminate(signum: int, _frame: FrameType | None) -> None:
    for run in _open:
        run.finish(timeout=SIGNAL_TIMEOUT, status="failed")
    _restore()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
