"""Runs the command of one attempt: the launcher, a process between the worker and the script.

The launcher leaves no process behind. It becomes the parent of every orphan among its descendants (Linux's "child
subreaper"), so that it also finds and kills a daemon that was forked twice. It ends when the worker's end of the
lifeline, a pipe, is closed, as it is when the worker is killed.

    worker --(lifeline: the launch spec as a line of JSON, later perhaps "stop")--> launcher --> script
           <--(status: lines of JSON)--

One launcher is started for each attempt, so this module imports very little.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from gradmedic_worker.process_control import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    prctl,
)

GRACE_SECONDS = 2.0
"""Time between SIGTERM and SIGKILL."""
CHECK_INTERVAL = 0.1
"""Seconds between two checks of memory and time."""
MEMORY_READINGS = 3
"""Number of sums in a row that must exceed the limit of memory."""
KILL_SECONDS = 10.0
"""Time after which killing descendants is given up."""
OUTPUT_START_BYTES = 16 * 1024
"""Bytes that are kept of the start of the output."""
OUTPUT_END_BYTES = 44 * 1024
"""Bytes that are kept of the end of the output."""
OUTPUT_WRITE_INTERVAL = 0.25
"""Seconds between two writes of the output file."""
OOM_SCORE = "1000"
"""With the highest score, the kernel kills trials first when memory runs out."""

BecomeScript = Callable[[dict[str, Any]], None]
"""Turns the current process into the script of a launch spec. Does not return."""


def main() -> None:
    """Run the attempt whose launch spec arrives on standard input."""
    lifeline, status = os.dup(0), os.dup(1)
    _redirect_to_null(0)
    os.dup2(2, 1)
    run_attempt(lifeline, status, execute_command)


def run_attempt(lifeline: int, status: int, become_script: BecomeScript) -> None:
    """Run an attempt until it ends. It is ended early on request, after its time limit, and above its memory limit.

    Args:
        lifeline: File descriptor to read the launch spec and later lines from.
        status: File descriptor to write the start and the end to.
        become_script: Turns the child process into the script.
    """
    with contextlib.suppress(OSError):
        os.setsid()  # an interrupt at the worker's terminal must reach the worker alone
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a launcher that ended by a signal would leave the script behind
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    spec = json.loads(_read_line(lifeline))
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_read, False)
    os.set_blocking(wakeup_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    output_read, output_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for descriptor in (lifeline, status, wakeup_read, wakeup_write, output_read):
                os.close(descriptor)
            _prepare_child(spec, output_write)
            become_script(spec)
        except BaseException as error:
            os.write(2, f"the trial could not be started: {error}\n".encode())
        finally:
            os._exit(127)
    os.close(output_write)
    os.set_blocking(output_read, False)
    _write_status(status, {"started": child})
    exit_code, reason = _watch(spec, child, lifeline, output_read, wakeup_read)
    _write_status(status, {"exit_code": exit_code, "reason": reason})


def execute_command(spec: dict[str, Any]) -> None:
    """Replace the current process by the command."""
    os.execvpe(spec["command"][0], spec["command"], spec["environment"])  # noqa: S606  # an argument list, no shell


def _prepare_child(spec: dict[str, Any], output: int) -> None:
    """Set up the process that becomes the script."""
    parent = os.getppid()
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
        score.write(OOM_SCORE)
    _redirect_to_null(0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    if spec["user"] is not None:
        _become_user(**spec["user"])
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of the user, which undoes it
    if os.getppid() != parent:
        os._exit(127)  # the launcher died before the line above took effect
    os.chdir(spec["directory"])


def _become_user(uid: int, gid: int, groups: list[int]) -> None:
    """Give up the rights of the worker's user for good."""
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)
    prctl(PR_SET_NO_NEW_PRIVS, 1)  # no `sudo`


def _watch(
    spec: dict[str, Any], child: int, lifeline: int, output_read: int, wakeup_read: int
) -> tuple[int | None, str | None]:
    """Wait for the end of the script.

    Returns:
        The exit code (negative for a signal), and the reason if the launcher ended the script: `stopped`, `timeout`,
        `memory` or `abandoned`.
    """
    output_file = _OutputFile(spec["output"])
    deadline = time.monotonic() + spec["seconds"]
    memory_limit: int | None = spec["memory"]
    check_memory_at = 0.0
    kill_at: float | None = None
    reason: str | None = None
    exit_code: int | None = None
    sources = [lifeline, output_read, wakeup_read]
    while exit_code is None:
        ready, _, _ = select.select(sources, [], [], CHECK_INTERVAL)
        if wakeup_read in ready:
            os.read(wakeup_read, 4096)
        if output_read in ready and not output_file.read_from(output_read):
            sources.remove(output_read)
        if lifeline in ready and reason is None:
            received = os.read(lifeline, 4096)
            reason = "stopped" if received else "abandoned"
            if not received:
                kill_at = time.monotonic()
        now = time.monotonic()
        if lifeline in ready and reason is not None and reason != "abandoned" and not _is_open(lifeline):
            reason, kill_at = "abandoned", now
        if reason is None and now >= deadline:
            reason = "timeout"
        if reason is None and memory_limit is not None and now >= check_memory_at:
            if _exceeds_memory(memory_limit):
                reason, kill_at = "memory", now
            check_seconds = time.monotonic() - now  # milliseconds or more; output may arrive much more often
            check_memory_at = now + max(CHECK_INTERVAL, 10 * check_seconds)
        if reason is not None and kill_at is None:
            kill_at = now + GRACE_SECONDS
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGTERM)
        if kill_at is not None and now >= kill_at:
            _kill_descendants()
        exit_code = _reap(child)
        output_file.write_if_due()
    _kill_descendants()
    while output_read in sources and output_file.read_from(output_read):
        pass
    output_file.write()
    return exit_code, reason


def _is_open(lifeline: int) -> bool:
    """Whether the worker still holds its end of the lifeline. Discards what the worker has written."""
    ready, _, _ = select.select([lifeline], [], [], 0)
    return not ready or bool(os.read(lifeline, 4096))


def _reap(child: int) -> int | None:
    """Collect all ended processes. Return the exit code of the child if it has ended."""
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


class _OutputFile:
    """A file of bounded size with the start and the end of the script's output."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._start = b""
        self._end = b""
        self._omitted_bytes = 0
        self._is_written = True
        self._written_at = 0.0

    def read_from(self, descriptor: int) -> bool:
        """Read what is available. Return False if there is nothing, now or ever again."""
        try:
            chunk = os.read(descriptor, 2**20)
        except BlockingIOError:
            return False
        if not chunk:
            return False
        room = max(0, OUTPUT_START_BYTES - len(self._start))
        self._start += chunk[:room]
        self._end += chunk[room:]
        if len(self._end) > 2 * OUTPUT_END_BYTES:
            self._omitted_bytes += len(self._end) - OUTPUT_END_BYTES
            self._end = self._end[-OUTPUT_END_BYTES:]
        self._is_written = False
        return True

    def write_if_due(self) -> None:
        """Write the file if it has changed and the last write is long enough ago."""
        if not self._is_written and time.monotonic() - self._written_at >= OUTPUT_WRITE_INTERVAL:
            self.write()

    def write(self) -> None:
        """Write the whole file."""
        end, omitted = self._end, self._omitted_bytes
        if len(end) > OUTPUT_END_BYTES:
            omitted, end = omitted + len(end) - OUTPUT_END_BYTES, end[-OUTPUT_END_BYTES:]
        gap = f"\n... {omitted} bytes are left out ...\n".encode() if omitted else b""
        with contextlib.suppress(OSError):
            draft = self._path + ".draft"
            with open(draft, "wb") as file:  # noqa: PTH123
                file.write(self._start + gap + end)
            os.replace(draft, self._path)  # noqa: PTH105
        self._is_written, self._written_at = True, time.monotonic()


# --- processes --------------------------------------------------------------------------------------------------------


def find_descendants(ancestor: int) -> list[int]:
    """Return the ids of all running descendants of a process, parents before their children."""
    children: dict[int, list[int]] = {}
    for pid, parent in _running_processes():
        children.setdefault(parent, []).append(pid)
    found, queue = [], [ancestor]
    while queue:
        pids = children.get(queue.pop(), [])
        found += pids
        queue += pids
    return found


def _running_processes() -> Iterator[tuple[int, int]]:
    """Yield the id and the parent's id of every process that is no zombie."""
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] != b"Z":
                yield int(entry), int(fields[1])


def _exceeds_memory(limit: int) -> bool:
    """Whether the descendants together hold more than `limit` bytes of memory.

    The first sum is cheap, but counts memory that forked processes share once for each of them. Only if it exceeds the
    limit, the second sum is read, which divides shared memory among the processes that share it. The processes are read
    one after the other: where some end meanwhile, the others' shares grow, and the sum is too large. So the limit is
    exceeded only if every one of a few sums is above it.
    """
    pids = find_descendants(os.getpid())
    if sum(_read_memory_bytes(pid, "status", (b"RssAnon", b"RssShmem")) for pid in pids) <= limit:
        return False
    return all(_sum_shares(find_descendants(os.getpid())) > limit for _ in range(MEMORY_READINGS))


def _sum_shares(pids: list[int]) -> int:
    """Return the bytes of memory that processes hold, with what they share divided among them."""
    return sum(_read_memory_bytes(pid, "smaps_rollup", (b"Pss_Anon", b"Pss_Shmem")) for pid in pids)


def _read_memory_bytes(pid: int, file_name: str, fields: tuple[bytes, ...]) -> int:
    try:
        with open(f"/proc/{pid}/{file_name}", "rb") as file:  # noqa: PTH123
            values = [line.split(b":", 1)[1] for line in file.read().splitlines() if line.startswith(fields)]
    except OSError:
        return 0  # the process has ended
    return sum(int(value.split()[0]) for value in values) * 1024


def _kill_descendants() -> None:
    """Kill all descendants, repeatedly, because some may fork meanwhile."""
    deadline = time.monotonic() + KILL_SECONDS
    while (pids := find_descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
        if pids == find_descendants(os.getpid()):
            time.sleep(0.02)


def _redirect_to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)


def _read_line(descriptor: int) -> bytes:
    """Read up to the first end of line, and no further."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            os._exit(0)  # the worker died before it wrote the launch spec
        line += byte
    return line


def _write_status(descriptor: int, status: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, json.dumps(status).encode() + b"\n")


if __name__ == "__main__":
    main()
