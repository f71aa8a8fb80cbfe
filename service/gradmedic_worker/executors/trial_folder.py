"""The folders of a worker's trials, and the report that a script writes there."""

from __future__ import annotations

import json
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.trial_report import TrialReport
from gradmedic_worker.trainable_command import TrainableCommand


def get_report_path(folder: Path) -> Path:
    """Return the file in which a trial's script reports what its steps do not show."""
    return folder / "report.json"


def read_report(folder: Path) -> TrialReport:
    """Return the report of a trial's script. It is empty if the script wrote none."""
    try:
        return TrialReport.from_fields(json.loads(get_report_path(folder).read_text()))
    except (OSError, ValueError):
        return TrialReport()


def create_trial_folder(worker_folder: Path, trainable: TrainableCommand, name: str) -> Path:
    """Create a trial's folder with `work`, which holds the trainable's links, and `tmp` for temporary files."""
    folder = worker_folder / name
    (folder / "work").mkdir(parents=True)
    (folder / "tmp").mkdir()
    for link in trainable.links:
        path = folder / "work" / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(trainable.directory / link)
    return folder


def create_worker_folder(scratch: Path) -> Path:
    """Create the folder of this worker's trials, and remove the folders of workers that no longer run.

    Raises:
        ConfigurationError: Another user owns, or may write to, the folder of this user's workers.
    """
    user_folder = scratch / f"gradmedic-worker-{os.getuid()}"
    scratch.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        user_folder.mkdir(mode=0o700)
    status = user_folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ConfigurationError(f"worker.scratch: {user_folder} is not a folder that this user alone may write to")
    for entry in user_folder.iterdir():
        if entry.name.isdecimal() and not _is_running(int(entry.name)):
            shutil.rmtree(entry, ignore_errors=True)
    folder = user_folder / str(os.getpid())
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    return folder


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
