"""The runs of this process that are not finished."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

from gradmedic import process_exit

if TYPE_CHECKING:
    from gradmedic.run import Run

open_runs: weakref.WeakSet[Run] = weakref.WeakSet()


def finish_open_runs() -> None:
    """Finish the runs of this process that are not finished."""
    for run in list(open_runs):
        run.finish()


def _disable_runs_of_parent() -> None:
    process_exit.reset_in_child()
    for run in list(open_runs):
        run.disable_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disable_runs_of_parent)
