"""Finds room for snapshots: memory of the host, or else the disk."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gradmedic.private_files import create_private_folder, open_private_file

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("gradmedic")

MOST_KEPT = 5
"""Snapshots that are kept at most. As their ages grow exponentially, they reach back some hundred steps."""
FEWEST_KEPT = 3
"""Snapshots that are needed. Of two, the older one would be young each time after it was replaced."""
SHARE = 0.25
"""Share of the free memory or disk that snapshots may take."""
_UNKNOWN_MEMORY = 2**30
"""Bytes that are taken for free where the system does not show it."""
_FOLDER_PREFIX = "states-"
_MEMORY_FILES = Path("/proc/meminfo")
_CONTROL_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Where the limits of a container are: folder, limit, use, and what of the use is a cache."""


@dataclass(frozen=True, slots=True)
class Room:
    """The room for snapshots."""

    count: int
    """Number of snapshots that there is room for."""
    is_on_disk: bool


def find_room(snapshot_bytes: int, folder: Path, processes: int = 1) -> Room | None:
    """Return the room for snapshots, in memory if possible; None if there is not enough on disk either.

    Args:
        snapshot_bytes: size of one snapshot. One exists already.
        folder: folder that the snapshots are written to if memory does not suffice.
        processes: processes of this machine that need as much each.
    """
    size = max(1, snapshot_bytes * processes)
    count = int(SHARE * find_free_memory()) // size
    if count >= FEWEST_KEPT:
        return Room(min(count, MOST_KEPT), is_on_disk=False)
    count = int(SHARE * _find_free_disk(folder)) // size
    return Room(min(count, MOST_KEPT), is_on_disk=True) if count >= FEWEST_KEPT else None


def find_free_memory() -> int:
    """Return the bytes of memory that this process may still take, of the machine or of its container."""
    free = [_UNKNOWN_MEMORY]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(each for each in _MEMORY_FILES.read_text().splitlines() if each.startswith("MemAvailable:"))
        free = [int(line.split()[1]) * 1024]
    for folder, limit, used, cached in _CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError):  # no limit is no number
            caches = [
                int(line.split()[1])
                for line in (folder / "memory.stat").read_text().splitlines()
                if line.startswith(f"{cached} ")
            ]
            free.append(int((folder / limit).read_text()) - int((folder / used).read_text()) + sum(caches))
    return max(0, min(free))


def _find_free_disk(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


class SnapshotFolder:
    """A folder of this process for the tensors of snapshots. It is deleted at the end.

    A process that is killed leaves its folder. The next one that makes a folder beside it deletes it.

    Args:
        directory: where runs keep what they need on disk.
        name: what tells this folder from those of other runs and processes.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self.path = directory / f"{_FOLDER_PREFIX}{name}"
        self._lock: BinaryIO | None = None
        self._process = os.getpid()

    def write(self, step: int, tensors: list[Tensor]) -> Path:
        """Write the tensors of a snapshot and return the file. Raises OSError if there is no room."""
        if self._lock is None:
            create_private_folder(self.path)
            self._lock = _lock(self.path)
            self._delete_left_folders()
        path = self.path / f"{step}.pt"
        temporary = path.with_suffix(".new")
        try:
            with os.fdopen(open_private_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
                torch.save(tensors, file)
        except (OSError, RuntimeError) as error:  # torch raises a RuntimeError where the disk is full
            temporary.unlink(missing_ok=True)
            raise OSError(f"a state of the training could not be written to {path}: {error}") from error
        return temporary.replace(path)

    def read(self, path: Path) -> list[Tensor]:
        """Return the tensors of a snapshot. Raises OSError if they cannot be read."""
        try:
            tensors: list[Tensor] = torch.load(path, weights_only=True)
        except Exception as error:  # torch raises errors of many kinds for a damaged file
            raise OSError(f"a state of the training could not be read from {path}: {error}") from error
        return tensors

    def close(self) -> None:
        """Delete the folder, unless this process is a fork of the one that has it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            if os.getpid() != self._process:
                return
            shutil.rmtree(self.path, ignore_errors=True)
            with contextlib.suppress(OSError):  # where nothing else is in it
                self._directory.rmdir()

    def _delete_left_folders(self) -> None:
        for folder in self._directory.glob(f"{_FOLDER_PREFIX}*"):
            if folder != self.path and folder.is_dir() and (lock := _lock(folder)) is not None:
                lock.close()
                shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path) -> Any:
    """Lock a folder and return the file that holds the lock; None if a living process has it."""
    file = os.fdopen(open_private_file(folder / "lock", os.O_RDWR | os.O_CREAT), "r+b", buffering=0)
    try:
        if fcntl is None:
            raise BlockingIOError  # it cannot be found out, so nothing is deleted
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
