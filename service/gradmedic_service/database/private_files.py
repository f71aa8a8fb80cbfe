"""Creating files and folders that only their owner may read: the database holds what the trainings of a team send.

What exists already keeps its mode: an operator may have opened it on purpose, for example for backups.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FILE_MODE = 0o600
FOLDER_MODE = 0o700


def create_private_folder(path: Path) -> None:
    """Create a folder and those above it that are missing, whatever the umask. Raises OSError."""
    if path.is_dir():
        return
    create_private_folder(path.parent)
    with suppress(FileExistsError):  # another process has created it meanwhile
        path.mkdir(FOLDER_MODE)
        path.chmod(FOLDER_MODE)


def create_private_file(path: Path) -> None:
    """Create an empty file unless it exists, whatever the umask. Raises OSError."""
    with suppress(FileExistsError):
        descriptor = os.open(path.resolve(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        try:
            os.fchmod(descriptor, FILE_MODE)
        finally:
            os.close(descriptor)
