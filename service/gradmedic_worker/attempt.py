"""Runs one trial's command and leaves nothing behind: the process between the worker and the script.

One idea: whatever the script starts stays below this process. It is made the reaper of all its descendants (Linux's
"child subreaper"), so that even a daemon that was forked twice is found among them and killed at the end. It lives as
long as the worker holds the other end of a pipe: if the worker is killed, the pipe closes, and the trial ends.

    worker --(lifeline: the order as a line of JSON, then perhaps "stop")--> launcher --> the script, in its own session
           <--(status: lines of JSON)--

It imports next to nothing, because it is started for every trial.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE = 2.0
"""Seconds from asking a trial to end to killing it."""
LOOK = 0.1
"""Seconds between looks at memory and time."""
KEEP_FIRST = 16 * 1024
KEEP_LAST = 44 * 1024
"""Bytes of a trial's output that are kept, from its start and from its end."""
WRITE_OUTPUT = 0.25
"""Seconds between writings of the output."""
OOM_SCORE = "1000"
"""Where memory runs out all the same, the kernel ends trials first."""

Start = Callable[[dict[str, Any]], None]
"""Becomes the script, in a process of its own; does not return."""


def main() -> None:
    """Run the trial that standard input orders."""
    lifeline, status = os.dup(0), os.dup(1)
    _point_to_null(0)
    os.dup2(2, 1)
    run(lifeline, status, execute)


def run(lifeline: int, status: int, start: Start) -> None:
    """Run a trial to its end, or until it is told to stop, takes too long, or holds too much memory.

    Args:
        lifeline: file descriptor of the order, and of what is said after it.
        status: file descriptor for what became of it.
        start: becomes the script.
    """
    with contextlib.suppress(OSError):
        os.setsid()  # an interrupt at the worker's terminal is the worker's to deal with
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # only the lifeline ends it: whoever else does would leave the script
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    order = json.loads(_read_line(lifeline))
    wake, waker = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    printed, output = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for descriptor in (lifeline, status, wake, waker, printed):
                os.close(descriptor)
            _prepare(order, output)
            start(order)
        except BaseException as error:
            os.write(2, f"the trial could not be started: {error}\n".encode())
        finally:
            os._exit(127)
    os.close(output)
    os.set_blocking(printed, False)
    _say(status, {"started": child})
    exit_code, reason = _watch(order, child, lifeline, printed, wake)
    _say(status, {"exit_code": exit_code, "reason": reason})


def execute(order: dict[str, Any]) -> None:
    """Become the command."""
    os.execvpe(order["command"][0], order["command"], order["environment"])  # noqa: S606  # an argument list, no shell


def _prepare(order: dict[str, Any], output: int) -> None:
    """Set up the process that becomes the script."""
    parent = os.getppid()
    os.setsid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(127)  # the launcher died before it could be seen to
    signal.set_wakeup_fd(-1)
    for each in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(each, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
        score.write(OOM_SCORE)
    _point_to_null(0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(order["directory"])


def _watch(order: dict[str, Any], child: int, lifeline: int, printed: int, wake: int) -> tuple[int | None, str | None]:
    """Wait for the end; return the exit code (negative: a signal) and why the trial was ended, if it was."""
    record = _Output(order["output"])
    deadline = time.monotonic() + order["seconds"]
    limit: int | None = order["memory"]
    look_at = 0.0
    kill_at: float | None = None
    reason: str | None = None
    exit_code: int | None = None
    sources = [lifeline, printed, wake]
    while exit_code is None:
        ready, _, _ = select.select(sources, [], [], LOOK)
        if wake in ready:
            os.read(wake, 4096)
        if printed in ready and not record.take(printed):
            sources.remove(printed)
        if lifeline in ready and reason is None:
            said = os.read(lifeline, 4096)
            reason = "stopped" if said else "abandoned"
            if not said:
                kill_at = time.monotonic()
        now = time.monotonic()
        if lifeline in ready and reason is not None and reason != "abandoned" and not _is_open(lifeline):
            reason, kill_at = "abandoned", now
        if reason is None and now >= deadline:
            reason = "timeout"
        if reason is None and limit is not None and now >= look_at:
            if _holds_more_than(limit):
                reason, kill_at = "memory", now
            took = time.monotonic() - now  # milliseconds at least, and output may come much faster
            look_at = now + max(LOOK, 10 * took)
        if reason is not None and kill_at is None:
            kill_at = now + GRACE
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGTERM)
        if kill_at is not None and now >= kill_at:
            _kill_descendants()
        exit_code = _reap(child)
        record.write_if_due()
    _kill_descendants()
    while printed in sources and record.take(printed):
        pass
    record.write()
    return exit_code, reason


def _is_open(lifeline: int) -> bool:
    """Whether the worker still holds its end, once it has said something."""
    ready, _, _ = select.select([lifeline], [], [], 0)
    return not ready or bool(os.read(lifeline, 4096))


def _reap(child: int) -> int | None:
    """Collect whoever has ended; return the exit code of the child if it is among them."""
    exit_code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return exit_code
        if pid == 0:
            return exit_code
        if pid == child:
            exit_code = os.waitstatus_to_exitcode(status)


class _Output:
    """What a trial prints: its beginning and its end, in a file that is never longer than that."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._first = b""
        self._last = b""
        self._left_out = 0
        self._is_written = True
        self._written_at = 0.0

    def take(self, descriptor: int) -> bool:
        """Read what is there; False once nobody can print any more, or nothing is there."""
        try:
            got = os.read(descriptor, 2**20)
        except BlockingIOError:
            return False
        if not got:
            return False
        room = KEEP_FIRST - len(self._first)
        self._first += got[:room] if room > 0 else b""
        self._last += got[max(0, room) :]
        if len(self._last) > 2 * KEEP_LAST:
            self._left_out += len(self._last) - KEEP_LAST
            self._last = self._last[-KEEP_LAST:]
        self._is_written = False
        return True

    def write_if_due(self) -> None:
        """Write the file if there is something new, not too often."""
        if not self._is_written and time.monotonic() - self._written_at >= WRITE_OUTPUT:
            self.write()

    def write(self) -> None:
        """Write the file as a whole."""
        last, left_out = self._last, self._left_out
        if len(last) > KEEP_LAST:
            left_out, last = left_out + len(last) - KEEP_LAST, last[-KEEP_LAST:]
        gap = f"\n... {left_out} bytes are left out ...\n".encode() if left_out else b""
        with contextlib.suppress(OSError):
            draft = self._path + ".draft"
            with open(draft, "wb") as file:  # noqa: PTH123
                file.write(self._first + gap + last)
            os.replace(draft, self._path)  # noqa: PTH105
        self._is_written, self._written_at = True, time.monotonic()


# --- processes --------------------------------------------------------------------------------------------------------


def descendants(ancestor: int) -> list[int]:
    """Return the ids of everything that a process started and that still is below it, nearest first."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found, queue = [], [ancestor]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] != b"Z":
                yield int(entry), int(fields[1])


def _holds_more_than(limit: int) -> bool:
    """Whether the descendants together hold more bytes of memory than they may.

    What each has in memory is cheap to read, but counts what forked processes share once for each of them. Only where
    that is too much is it read page by page, with what is shared divided among those that share it.
    """
    pids = descendants(os.getpid())
    if sum(_bytes_of(pid, "status", (b"RssAnon", b"RssShmem")) for pid in pids) <= limit:
        return False
    return sum(_bytes_of(pid, "smaps_rollup", (b"Pss_Anon", b"Pss_Shmem")) for pid in pids) > limit


def _bytes_of(pid: int, file_name: str, names: tuple[bytes, ...]) -> int:
    try:
        with open(f"/proc/{pid}/{file_name}", "rb") as file:  # noqa: PTH123
            fields = dict(line.split(b":", 1) for line in file.read().splitlines() if line.startswith(names))
    except OSError:
        return 0  # it has ended
    return sum(int(value.split()[0]) for value in fields.values()) * 1024


def _kill_descendants() -> None:
    """Kill everything below; again and again, because some may fork meanwhile."""
    deadline = time.monotonic() + 10.0
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
        if left == descendants(os.getpid()):
            time.sleep(0.02)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _point_to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)


def _read_line(descriptor: int) -> bytes:
    """Read up to the first end of line, and no further."""
    line = b""
    while not line.endswith(b"\n"):
        got = os.read(descriptor, 1)
        if not got:
            os._exit(0)  # the worker died before it said what to do
        line += got
    return line


def _say(descriptor: int, fact: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, json.dumps(fact).encode() + b"\n")


if __name__ == "__main__":
    main()
