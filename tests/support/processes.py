"""States of other processes."""

from __future__ import annotations

import psutil


def has_ended(pid: int) -> bool:
    """Whether a process has ended. A zombie, which only waits for its parent, has ended too."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
