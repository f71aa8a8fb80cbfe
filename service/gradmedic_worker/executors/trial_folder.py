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
from gradmedic_worker.executors.local_processes import UserIds
from gradmedic_worker.trainable_command import TrainableCommand

PASSABLE = 0o711
"""Mode of a folder that other users may pass through, but not list."""

LONGEST_REPORT = 2**20
"""Bytes. A report of the SDK has less than a hundredth of them."""


def get_report_path(folder: Path) -> Path:
    """Return the file in which a trial's script reports what its steps do not show."""
    return folder / "report" / "report.json"


def get_unsent_steps_path(folder: Path) -> Path:
    """Return the folder in which the SDK keeps the steps that the service does not have."""
    return folder / "tmp"


def read_report(folder: Path) -> TrialReport:
    """Return the report of a trial's script. It is empty if the script wrote none.

    The script may have put anything in the place of the file, and the worker may have more rights than the script. So
    the worker follows no link, waits for no pipe, and reads no large file.
    """
    try:
        descriptor = os.open(get_report_path(folder), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                return TrialReport()
            return TrialReport.from_fields(json.loads(file.read(LONGEST_REPORT)))
    except (OSError, ValueError, RecursionError):
        return TrialReport()


def create_trial_folder(
    worker_folder: Path, trainable: TrainableCommand, name: str, owner: UserIds | None = None
) -> Path:
    """Create a trial's folder.

    It has three folders that belong to the trial: `work`, which holds the trainable's links, `tmp` for temporary files,
    and `report`.

    Args:
        worker_folder: The folder of the worker's trials.
        trainable: The trial's trainable.
        name: Name of the folder.
        owner: The trial's user; None for the worker's own.
    """
    folder = worker_folder / name
    for part in ("work", "tmp", "report"):
        (folder / part).mkdir(parents=True, mode=0o700)
    for link in trainable.links:
        path = folder / "work" / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(trainable.directory / link)
    if owner is not None:
        folder.chmod(PASSABLE)
        for parent, folders, files in os.walk(folder):  # follows no link
            for entry in (*folders, *files):
                os.lchown(Path(parent, entry), owner.uid, owner.gid)
    return folder


def create_worker_folder(scratch: Path, *, is_passable: bool = False) -> Path:
    """Create the folder of this worker's trials, and remove the folders of workers that no longer run.

    Args:
        scratch: The folder of all workers.
        is_passable: Whether other users may reach the folders inside, whose names they know.

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
    if is_passable:
        for path in (user_folder, folder):
            path.chmod(PASSABLE)
    return folder


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
