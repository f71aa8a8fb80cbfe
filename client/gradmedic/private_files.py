"""Creating files and folders that only their owner may read: a journal holds what a training sends.

What exists already keeps its mode: a team may share the folder on purpose.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_FILE_MODE = 0o600
_FOLDER_MODE = 0o700


def create_private_folder(path: Path) -> None:
    """Create a folder and those above it that are missing, whatever the umask. Raises OSError."""
    if path.is_dir():
        return
    create_private_folder(path.parent)
    with suppress(FileExistsError):  # another process has created it meanwhile
        path.mkdir(_FOLDER_MODE)
        path.chmod(_FOLDER_MODE)


def open_private_file(path: Path, flags: int) -> int:
    """Open a file and return its descriptor; a file that is missing is created, whatever the umask. Raises OSError."""
    flags |= getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, _FILE_MODE)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
        return os.open(path, flags & ~os.O_CREAT)
    path.chmod(_FILE_MODE)
    return descriptor
