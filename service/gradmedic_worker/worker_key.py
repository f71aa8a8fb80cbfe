"""The worker's API key, kept where a trial cannot read it.

A trial is a process of the worker's own user, unless `worker.user` names another one. Linux shows a process's first
environment and its open files below `/proc` to every process of its user, and its memory too. So the worker hides
these, and it does not keep a key in its environment: it runs its program again without the variable. The new program
reads the key from a pipe, once.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gradmedic.exceptions import ConfigurationError
from gradmedic_worker.process_control import PR_SET_DUMPABLE, prctl

KEY_VARIABLE = "GRADMEDIC_API_KEY"
LONGEST_KEY = 4096
"""Bytes. POSIX lets a pipe take so many in one write without a reader."""


def hide_memory() -> None:
    """Hide this process's memory, environment and open files from other processes of its user (Linux).

    The processes that it starts are not hidden. An administrator (`CAP_SYS_PTRACE`) still sees everything.
    """
    prctl(PR_SET_DUMPABLE, 0)


def run_again_without_key(arguments: Sequence[str], key: str) -> NoReturn:
    """Replace this process by `gradmedic worker` without the key in its environment.

    Args:
        arguments: The arguments of `gradmedic worker`.
        key: The key, which the new program reads from a pipe; empty if it gets another one by its arguments.

    Raises:
        ConfigurationError: The key is too long.
    """
    command = [sys.executable, "-P", "-m", "gradmedic", "worker", *arguments]
    if key:
        content = os.fsencode(key)
        if len(content) > LONGEST_KEY:
            raise ConfigurationError(f"{KEY_VARIABLE} is no API key: it has {len(content)} bytes")
        reader, writer = os.pipe()
        os.write(writer, content)
        os.close(writer)
        os.set_inheritable(reader, True)
        command += ["--api-key-descriptor", str(reader)]
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    os.execve(command[0], command, environment)  # noqa: S606  # our own command, no shell


def read_key_from_descriptor(descriptor: int) -> str:
    """Read the key from an open file descriptor to its end, and close the descriptor. Raises ConfigurationError."""
    try:
        with os.fdopen(descriptor, "rb") as file:
            return file.read().decode().strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--api-key-descriptor {descriptor} cannot be read: {error}") from None


def read_key_from_file(path: Path, *, must_be_private: bool) -> str:
    """Read the key from a file.

    Args:
        path: The file's path.
        must_be_private: Whether a file that other users may read is refused, because trials run as another user.

    Raises:
        ConfigurationError: The file cannot be read, or is not private.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read().decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"--api-key-file {path} cannot be read: {reason}") from None
    if must_be_private and stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        raise ConfigurationError(
            f"--api-key-file {path} may be read by other users, and trials run as another user: chmod 600 {path}"
        )
    return content
