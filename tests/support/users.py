"""Processes of another user than the one that runs the tests."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

OTHER_USER = "nobody"
PROJECT = Path(__file__).resolve().parents[2]


def skip_unless_root() -> None:
    """Skip a test that needs processes of another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can start processes of another user")


@contextmanager
def open_interpreter() -> Iterator[list[str]]:
    """Yield a command prefix with which other users may run this interpreter and this project too.

    Skips the test where that is not possible: one of them is in a folder that other users may not enter, and this
    machine allows no mounts.
    """
    needed = _outermost(Path(path).resolve() for path in (sys.base_prefix, sys.prefix, PROJECT))
    closed = {path: folder for path in needed if (folder := _find_closed_folder(path)) is not None}
    if not closed:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="gradmedic-interpreter-") as stage:
        prefix = ["unshare", "--mount", "sh", "-c", _script_that_hides(closed, Path(stage)), "sh"]
        if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
            hidden = ", ".join(map(str, closed))
            pytest.skip(f"other users may not enter the folders above {hidden}, and mounts are not allowed")
        yield prefix


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that are within no other one."""
    unique = sorted(set(paths))
    return [path for path in unique if not any(other in path.parents for other in unique)]


def _find_closed_folder(path: Path) -> Path | None:
    """Return the first folder on the way to a path that other users may not enter, None if they may enter all."""
    return next((folder for folder in (*reversed(path.parents), path) if not folder.stat().st_mode & 0o001), None)


def _script_that_hides(closed: Mapping[Path, Path], stage: Path) -> str:
    """Return a shell script that hides folders, except for some paths in them, and runs a command.

    Only the script and its children see that.

    Args:
        closed: the folder to hide, by the path in it that stays.
        stage: an empty folder.
    """
    staged = {path: stage / str(i) for i, path in enumerate(closed)}
    lines = ["set -e"]
    for path, place in staged.items():
        place.mkdir()
        lines.append(shlex.join(["mount", "--bind", str(path), str(place)]))
    folders = sorted(set(closed.values()))
    lines += [shlex.join(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(folder)]) for folder in folders]
    for path, place in staged.items():
        lines += [shlex.join(["mkdir", "-p", str(path)]), shlex.join(["mount", "--move", str(place), str(path)])]
    return "\n".join([*lines, 'exec "$@"'])


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
