"""What a trial finds around it: a folder of its own, and an environment with nothing in it that is not meant for it.

One idea: everything is built up from nothing. A secret of the worker, or the address of another tracker, is not there
because nobody put it there.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.trials import ClaimedTrial, TrialReport
from gradmedic.trial import REPORT_VARIABLE, SEED_VARIABLE, TRIAL_VARIABLE, TrialInstructions
from gradmedic_worker.configuration import TrainableCommand

KEPT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""Of the worker's own environment: what finds programs, libraries, caches and texts."""
TRACKERS_OFF = {
    "WANDB_MODE": "disabled",
    "WANDB_DISABLED": "true",
    "COMET_MODE": "DISABLED",
    "NEPTUNE_MODE": "debug",
    "CLEARML_OFFLINE_MODE": "1",
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
    "SWANLAB_MODE": "disabled",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""A trial is nobody else's experiment."""
FLUSH_INTERVAL = "0.25"
"""Seconds; a trial is judged while it runs."""


def base_environment(trainable: TrainableCommand, own: Mapping[str, str], threads: int) -> dict[str, str]:
    """Return the environment that all trials of a trainable share.

    Args:
        trainable: whose trials they are.
        own: the worker's environment.
        threads: that a trial may compute with.
    """
    kept = {name: own[name] for name in (*KEPT, *trainable.passes) if name in own}
    threaded = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**kept, "PYTHONHASHSEED": "0", **threaded, **TRACKERS_OFF, **trainable.environment}


def trial_environment(
    base: Mapping[str, str], claimed: ClaimedTrial, base_url: str, scratch: Path, gpus: Sequence[str]
) -> dict[str, str]:
    """Return the environment of one trial."""
    temporary, report = scratch / "tmp", report_of(scratch)
    order = TrialInstructions(remedies=claimed.remedies, parameters=claimed.parameters, steps=claimed.steps)
    environment = {
        **base,
        "TMPDIR": str(temporary),
        "MLFLOW_TRACKING_URI": f"file://{temporary}/mlruns",
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "GRADMEDIC_BASE_URL": base_url,
        "GRADMEDIC_PROJECT": claimed.project,
        "GRADMEDIC_RUN_ID": str(claimed.run_id),
        "GRADMEDIC_SILENT": "1",
        "GRADMEDIC_DIR": str(temporary),
        "GRADMEDIC_FLUSH_INTERVAL": FLUSH_INTERVAL,
        "GRADMEDIC_LOG_FREQ": "1",  # all trials are judged by as much
        SEED_VARIABLE: str(claimed.seed),
        TRIAL_VARIABLE: to_json(order).decode(),
        REPORT_VARIABLE: str(report),
    }
    return environment if claimed.api_key is None else {**environment, "GRADMEDIC_API_KEY": claimed.api_key}


def report_of(scratch: Path) -> Path:
    """Return where a trial says what its steps do not."""
    return scratch / "report.json"


def read_report(scratch: Path) -> TrialReport:
    """Return the report of a trial; an empty one where its script has written none."""
    try:
        return TrialReport.from_fields(json.loads(report_of(scratch).read_text()))
    except (OSError, ValueError):
        return TrialReport()


def make_scratch(root: Path, trainable: TrainableCommand, name: str) -> Path:
    """Make the folder of a trial: the links of its trainable, and a place for what is temporary."""
    scratch = root / name
    (scratch / "work").mkdir(parents=True)
    (scratch / "tmp").mkdir()
    for link in trainable.links:
        place = scratch / "work" / link
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(trainable.directory / link)
    return scratch


def make_root(parent: Path) -> Path:
    """Make the folder of this worker's trials, and remove those of workers that were killed."""
    home = parent / f"gradmedic-worker-{os.getuid()}"
    parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ConfigurationError(f"worker.scratch: {home} is not a folder that this user alone may write to")
    for left in home.iterdir():
        if left.name.isdecimal() and not _is_alive(int(left.name)):
            shutil.rmtree(left, ignore_errors=True)
    root = home / str(os.getpid())
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    return root


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
