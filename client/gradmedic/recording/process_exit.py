"""How the process ends, which decides how its runs ended.

One idea: what Python tells at exit is not enough. An exception that ended the script is in `sys.last_value`; an exit
code is nowhere, so `sys.exit`, `exit` and `quit` are wrapped while there are runs, and a `SystemExit` that the script
raises itself is looked for at the one moment when it can be seen, between the end of the script and the end of that
exception: then CPython flushes the standard streams or, under `python -m`, forgets the module `runpy`. (Under
`python -c` it does nothing that could be noticed: there such a run counts as finished.)

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
import time
import weakref
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any, Protocol

SIGNAL_TIMEOUT = 5.0
"""Seconds for a run to be finished after a termination signal; schedulers kill after ten or more."""


class Ending(Protocol):
    """What is to be finished when the process ends."""

    def finish(self, *, timeout: float, status: str) -> bool:
        """Send what is left."""


_open: list[Ending] = []
_exit_code: object = None
_exit_at = 0.0  # by time.perf_counter()
_last_error: object = None
_wrapped: list[tuple[Any, str, Any, bool]] = []
"""Objects, names of their attributes, our functions there, which know what they replaced, and whether that was the
object's own or its class's."""
_runpy: weakref.ref[ModuleType] | None = None
"""The module that runs another one under `python -m`, while the interpreter alone refers to it."""


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
        _leave_runpy_to_interpreter()
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminate)
    _open.append(run)


def ignore_end(run: Ending) -> None:
    """Watch no longer for `run`; after the last, `sys.exit` and the signal are as they were."""
    if run in _open:
        _open.remove(run)
        if not _open:
            _restore()


def has_failed(alive_at: float) -> bool:
    """Whether the process ends because of an exception, or with an exit code that says so.

    Args:
        alive_at: when the training went on for the last time, by `time.perf_counter()`; an earlier exit was called off.
    """
    is_exit = is_failure(_exit_code) and _exit_at >= alive_at
    return getattr(sys, "last_value", None) is not _last_error or is_exit


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
    _take_runpy_back()
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
        _note_exit(code)
        return leave(code)

    return exit_


def _looking_for_exit(flush: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that flushes a stream and, if the interpreter itself calls it, looks for a `SystemExit`."""

    @functools.wraps(flush)
    def flush_() -> Any:
        if sys._getframe().f_back is None and threading.current_thread() is threading.main_thread():
            _look_for_exit()
        return flush()

    return flush_


def _leave_runpy_to_interpreter() -> None:
    """Notice when the interpreter is done with the module that it was told to run.

    It holds `runpy` until then, and is the only one who does if everybody else holds a copy.
    """
    global _runpy
    original = sys.modules.get("runpy")
    if _runpy is None and original is not None and _is_running_module():
        copy = ModuleType("runpy")
        vars(copy).update(vars(original))
        _replace_module(original, copy)
        _runpy = weakref.ref(original, lambda _: _look_for_exit())


def _take_runpy_back() -> None:
    global _runpy
    original, _runpy = None if _runpy is None else _runpy(), None
    copy = sys.modules.get("runpy")
    if original is not None and copy is not None:
        _replace_module(copy, original)


def _is_running_module() -> bool:
    """Whether the main thread runs a module for `python -m`."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_run_module_as_main"


def _replace_module(old: ModuleType, new: ModuleType) -> None:
    """Let every module refer to another one, as `import old` makes it refer to this one."""
    for names in gc.get_referrers(old):
        if type(names) is dict:
            names.update({name: new for name, value in names.items() if value is old})


def _look_for_exit() -> None:
    """Note the exit code of the `SystemExit` that is ending the script, if there is one: the script keeps no other."""
    everything = gc.get_objects()
    # Not isinstance(): that asks the object itself for its class, and lazy ones do something then.
    exits = [each for each in everything if issubclass(type(each), SystemExit)]
    ours = {id(everything), id(exits)}
    for each in exits:
        # What the interpreter alone holds is on its way; its traceback holds the functions that it came through.
        if all(id(holder) in ours or type(holder) is FrameType for holder in gc.get_referrers(each)):
            _note_exit(each.code)


def _note_exit(code: object) -> None:
    global _exit_code, _exit_at
    _exit_code, _exit_at = code, time.perf_counter()


def _terminate(signum: int, _frame: FrameType | None) -> None:
    for run in _open.copy():  # each leaves it
        run.finish(timeout=SIGNAL_TIMEOUT, status="failed")
    _restore()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
