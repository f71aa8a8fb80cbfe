"""Exports a run as an anonymous recording: all steps, and of the rest only what the diagnosis reads."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from uuid import UUID

import numpy as np

from gradmedic.api import Client
from gradmedic.exceptions import ApiError, UsageError
from gradmedic.export.anonymization import NameHasher, anonymize_layers, anonymize_probe, anonymize_training
from gradmedic.protocol.packed_blocks import BlockArrays, Values
from gradmedic.protocol.recordings import (
    MOST_GUARDS,
    RecordedGuard,
    RecordedReview,
    RecordedVerdict,
    RecordingError,
    RecordingHeader,
    RecordingWriter,
)
from gradmedic.protocol.reviews import Review
from gradmedic.protocol.runs import RunDetail
from gradmedic.version import __version__

TIME = "time"
"""The series whose values are absolute times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedRecording:
    """What was written."""

    file: str
    """Path of the file."""
    steps: int
    """Number of steps."""
    bytes: int
    """Size of the file."""
    lacks_objective: bool
    """Whether the run has an objective whose metric is not in the file: the replay then judges without it."""


def export_recording(
    client: Client,
    run_id: UUID,
    path: Path,
    *,
    metrics: Collection[str] = (),
    keeps_metric_names: bool = False,
    on_block: Callable[[int, int], None] = lambda _done, _total: None,
) -> ExportedRecording:
    """Write the steps that a run has now to a new file.

    Args:
        client: client of the service.
        run_id: id of the run.
        path: the file; it must not exist.
        metrics: names of the metrics to export. Probes are always exported, because the diagnosis reads them.
        keeps_metric_names: whether the names of the metrics are written as they are.
        on_block: called after each block, with the number after its last step and that after the run's last step.

    Raises:
        UsageError: the file exists or cannot be written, the run has no such metric, or it changed meanwhile.
    """
    if path.exists():
        raise UsageError(f"{path} exists already; name another file by -o")
    run = client.runs.get(run_id)
    hasher = NameHasher()
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            writer = RecordingWriter(file, _make_header(client, run, hasher, keeps_metric_names))
            tokens = {name: name if keeps_metric_names else hasher.hash(name) for name in metrics}
            steps = _write_steps(client, run, writer, tokens, hasher, on_block)
            writer.close()
        partial.replace(path)
    except RecordingError as error:
        raise UsageError(f"run {run_id} is too large for a recording: {error}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    objective = None if run.training is None or run.training.objective is None else run.training.objective.metric
    return ExportedRecording(
        file=str(path),
        steps=steps,
        bytes=path.stat().st_size,
        lacks_objective=objective is not None and objective not in metrics,
    )


def _make_header(client: Client, run: RunDetail, hasher: NameHasher, keeps_metric_names: bool) -> RecordingHeader:
    diagnosis = client.runs.diagnosis(run.id, at_step=run.last_step)
    last_step = -1 if run.last_step is None else run.last_step
    return RecordingHeader(
        gradmedic_version=__version__,
        framework=run.framework,
        layers=anonymize_layers(run.layers, hasher),
        training=anonymize_training(run.training, hasher, keeps_metric_names=keeps_metric_names),
        statistics=run.statistics,
        muted_detectors=sorted({*run.muted_detectors, *_detectors_muted_by_project(client, run.project)}),
        verdict=RecordedVerdict(
            step=diagnosis.step,
            verdict=diagnosis.verdict,
            learning=diagnosis.learning,
            level=diagnosis.level,
            score=diagnosis.score,
            since_step=diagnosis.since_step,
        ),
        history=[change for change in client.runs.history(run.id) if change.step <= last_step],
        review=None if run.review is None else _anonymize_review(run.review),
        guard_actions=[] if diagnosis.guards is None else _anonymize_guard_actions(client, run.id),
    )


def _detectors_muted_by_project(client: Client, project: str) -> list[str]:
    """Return the ids of the detectors that the project mutes; none if the key does not reach the project."""
    try:
        return client.project(project).muted_detectors
    except ApiError as error:
        if error.problem.status in (403, 404):
            return []
        raise


def _anonymize_review(review: Review) -> RecordedReview:
    return RecordedReview(
        answer=review.answer,
        verdict=review.verdict,
        level=review.level,
        step=review.step,
        judged_verdict=review.judged_verdict,
        judged_level=review.judged_level,
        diagnosis_version=review.diagnosis_version,
    )


def _anonymize_guard_actions(client: Client, run_id: UUID) -> list[RecordedGuard]:
    return [
        RecordedGuard(
            generation=action.generation,
            step=action.step,
            to_step=action.to_step,
            action=action.action,
            reason=action.reason,
            is_dropped=action.is_dropped,
        )
        for action in islice(client.runs.guard_actions(run_id), MOST_GUARDS)
    ]


def _write_steps(
    client: Client,
    run: RunDetail,
    writer: RecordingWriter,
    tokens: dict[str, str],
    hasher: NameHasher,
    on_block: Callable[[int, int], None],
) -> int:
    """Write the steps of a run with its probes; return their number.

    `tokens` are the names to write for the metrics to export.
    """
    steps = 0
    start: float | None = None
    missing = set(tokens)
    blocks = (
        () if run.last_step is None else client.runs.blocks(run.id, to_step=run.last_step, generation=run.generation)
    )
    for block in blocks:
        if block.present.shape[1] != len(run.layers):
            raise UsageError(f"layers were added to run {run.id} while it was exported; export it again")
        if start is None:
            start = _first_time(block)
        missing -= block.metrics.keys()
        probes = {name: token for name in block.metrics if (token := anonymize_probe(name, hasher)) is not None}
        writer.add(_anonymize_block(block, start, {**tokens, **probes}))
        steps += len(block.steps)
        on_block(int(block.steps[-1]) + 1, (run.last_step or 0) + 1)
    if missing:
        raise UsageError(f"the run has no metric {', '.join(map(repr, sorted(missing)))}")
    return steps


def _first_time(block: BlockArrays) -> float | None:
    times = block.series.get(TIME)
    if times is None or not times.present.any():
        return None
    return float(times.values[np.flatnonzero(times.present)[0]])


def _anonymize_block(block: BlockArrays, start: float | None, tokens: dict[str, str]) -> BlockArrays:
    """Return a block with times since `start`, and only the metrics of `tokens`, under the names there."""
    series = dict(block.series)
    if TIME in series:
        times = series[TIME]
        since_start = np.where(times.present, times.values - (start or 0.0), 0.0)
        series[TIME] = Values(since_start, times.present)
    return replace(
        block,
        series=series,
        metrics={token: block.metrics[name] for name, token in tokens.items() if name in block.metrics},
    )
