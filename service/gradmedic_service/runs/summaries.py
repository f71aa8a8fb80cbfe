"""Runs as they are answered."""

from __future__ import annotations

from typing import Any

from gradmedic.protocol.runs import RunLoss, RunSummary
from gradmedic_service.database import models
from gradmedic_service.runs.progress import RunProgress, read_progress


def to_summary(run: models.Run, guard_actions: int, config: dict[str, Any] | None = None) -> RunSummary:
    """Return a run as lists show it, with the number of its guard actions and some of its hyperparameters."""
    return RunSummary(**summary_fields(run, guard_actions), config=config or {})


def summary_fields(run: models.Run, guard_actions: int) -> dict[str, Any]:
    """Return the fields that a run has in a list and alone."""
    progress = read_progress(run.progress)
    return {
        "id": run.id,
        "project": run.project,
        "name": run.name,
        "status": run.status,
        "verdict": run.verdict,
        "learning": run.learning,
        "level": run.level,
        "score": run.score,
        "since_step": run.since_step,
        "last_step": run.last_step,
        "generation": run.generation,
        "revision": run.revision,
        "tags": [tag.tag for tag in run.tags],
        "group": run.group,
        "framework": run.framework,
        "trainable": run.trainable,
        "parent_id": run.parent_id,
        "created_at": run.created_at,
        "updated_at": run.updated_at,
        "first_bad_layer": run.first_bad_layer,
        "loss": None if progress is None else _to_loss(progress),
        "last_metrics": {} if progress is None else {name: last.value for name, last in progress.metrics.items()},
        "duration": run.duration,
        "guard_actions": guard_actions,
    }


def _to_loss(progress: RunProgress) -> RunLoss | None:
    last = progress.loss
    return None if last is None else RunLoss(last=last.value, step=last.step, sparkline=progress.sparkline())
