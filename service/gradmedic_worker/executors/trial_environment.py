"""The environment variables of a trial.

The environment is built from nothing, so that it holds neither the worker's secrets nor the address of another tracker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.trials import ClaimedTrial
from gradmedic.trial import REPORT_VARIABLE, SEED_VARIABLE, TRIAL_VARIABLE, TrialInstructions
from gradmedic_worker.executors.trial_folder import get_report_path, get_unsent_steps_path
from gradmedic_worker.trainable_command import TrainableCommand

INHERITED_VARIABLES = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV",
)  # fmt: skip
"""Variables of the worker's own environment with which a trial finds programs, libraries, caches and its language."""
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
"""Variables that switch other trackers off: a trial must not appear as an experiment of the user's there."""
FLUSH_INTERVAL = "0.25"
"""Seconds. It is short because the service judges a trial while it runs."""


def build_shared_environment(
    trainable: TrainableCommand, worker_environment: Mapping[str, str], threads: int
) -> dict[str, str]:
    """Return the environment that all trials of a trainable share.

    Args:
        trainable: The trials' trainable.
        worker_environment: The worker's own environment.
        threads: Number of threads that a trial may compute with.
    """
    names = (*INHERITED_VARIABLES, *trainable.pass_environment)
    inherited = {name: worker_environment[name] for name in names if name in worker_environment}
    thread_counts = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**inherited, "PYTHONHASHSEED": "0", **thread_counts, **TRACKERS_OFF, **trainable.environment}


def build_trial_environment(
    shared: Mapping[str, str], claimed: ClaimedTrial, base_url: str, folder: Path, gpus: Sequence[str]
) -> dict[str, str]:
    """Return the environment of one trial.

    Args:
        shared: The environment that all trials of the trainable share.
        claimed: The trial.
        base_url: The URL at which the trial reaches the service.
        folder: The trial's folder.
        gpus: The trial's GPUs, as `CUDA_VISIBLE_DEVICES` names them.
    """
    temporary = folder / "tmp"
    instructions = TrialInstructions(
        remedies=claimed.remedies,
        parameters=claimed.parameters,
        steps=claimed.steps,
        locate_from=claimed.locate_from,
    )
    environment = {
        **shared,
        "TMPDIR": str(temporary),
        "MLFLOW_TRACKING_URI": f"file://{temporary}/mlruns",
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "GRADMEDIC_BASE_URL": base_url,
        "GRADMEDIC_PROJECT": claimed.project,
        "GRADMEDIC_RUN_ID": str(claimed.run_id),
        "GRADMEDIC_SILENT": "1",
        "GRADMEDIC_DIR": str(get_unsent_steps_path(folder)),
        "GRADMEDIC_FLUSH_INTERVAL": FLUSH_INTERVAL,
        SEED_VARIABLE: str(claimed.seed),
        TRIAL_VARIABLE: to_json(instructions).decode(),
        REPORT_VARIABLE: str(get_report_path(folder)),
    }
    return environment if claimed.api_key is None else {**environment, "GRADMEDIC_API_KEY": claimed.api_key}
