"""Processes of another user than the one that runs the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OTHER_USER = "nobody"
MAKE_REACHABLE = """
set -e
mount --bind "$BASE" "$STAGE"
mount -t tmpfs -o mode=0755 tmpfs "$CLOSED"
mkdir -p "$BASE"
mount --move "$STAGE" "$BASE"
exec "$@"
"""
"""Hides the folder CLOSED from this process and its children, except for the folder BASE in it, and runs a command."""


def skip_unless_root() -> None:
    """Skip a test that needs processes of another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can start processes of another user")


@contextmanager
def open_interpreter() -> Iterator[list[str]]:
    """Yield a command prefix with which other users may run this interpreter too.

    Skips the test where that is not possible: the interpreter is in a folder that other users may not enter, and this
    machine allows no mounts.
    """
    base = Path(sys.base_prefix).resolve()
    closed = [path for path in (*reversed(base.parents), base) if not path.stat().st_mode & 0o001]
    if not closed:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="gradmedic-interpreter-") as stage:
        places = [f"BASE={base}", f"STAGE={stage}", f"CLOSED={closed[0]}"]
        prefix = ["env", *places, "unshare", "--mount", "sh", "-c", MAKE_REACHABLE, "sh"]
        prefix += ["env", *(f"--unset={place.partition('=')[0]}" for place in places)]
        if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
            pytest.skip(f"other users may not enter {closed[0]}, which has the interpreter, and mounts are not allowed")
        yield prefix


@contextmanager
def unprivileged() -> Iterator[list[str]]:
    """Yield a command prefix with which a program runs without root's rights: as this user, or as another one."""
    if os.geteuid() != 0:
        yield []
        return
    user = pwd.getpwnam(OTHER_USER)
    with open_interpreter() as prefix:
        yield [*prefix, "setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


@contextmanager
def open_folder() -> Iterator[Path]:
    """Yield a new folder that other users may enter. It belongs to the other user if the tests run as root."""
    with tempfile.TemporaryDirectory(prefix="gradmedic-open-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(folder, OTHER_USER)
        yield folder
