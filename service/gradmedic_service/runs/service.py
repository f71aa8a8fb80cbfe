"""Runs: creating, listing, changing and deleting them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from gradmedic.protocol.encoding import without_nonfinite
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.reviews import Review
from gradmedic.protocol.runs import Layer, RunCreate, RunDetail, RunUpdate
from gradmedic.protocol.service import Limits
from gradmedic_service.access import service as access
from gradmedic_service.access.principal import Principal
from gradmedic_service.alerts import events
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.guards import repository as guards
from gradmedic_service.projects import service as projects
from gradmedic_service.projects.errors import ProjectFull
from gradmedic_service.runs import repository
from gradmedic_service.runs.errors import RunExists, RunNotFound
from gradmedic_service.runs.facts import LAYERS, TRAINING, digest_of
from gradmedic_service.runs.stalling import SECONDS_TO_FAILURE, SilenceLimit
from gradmedic_service.runs.summaries import summary_fields
from gradmedic_service.runs.validation import SETTABLE_STATUSES, check_appended_layers
from gradmedic_service.trials import repository as trials


def create(session: Session, principal: Principal, body: RunCreate, limits: Limits) -> tuple[RunDetail, bool]:
    """Store a run, or find the run that the same request stored before; the flag is whether it is new.

    Only an attempt's key creates the attempt's run: it belongs to the rerun's project, whatever the body names.

    Raises RunExists if the id belongs to a run that the body does not describe or to an attempt that the principal is
    not, BeyondKey if the principal does not reach the project, ProjectFull.
    """
    principal.check_reach(body.project, body.id)
    run_id = body.id or new_id()
    layers = without_nonfinite(LAYERS.dump_python(body.layers, mode="python", exclude_defaults=True))
    training = without_nonfinite(TRAINING.dump_python(body.training, exclude_none=True))
    now = datetime.now(UTC)
    trial = None if body.id is None else trials.find_run_of_attempt(session, body.id)
    if trial is not None:
        body = replace(body, project=trial.project, name=trial.name)
    silence_limit = SilenceLimit.at_start(now)
    run = models.Run(
        id=run_id,
        project=body.project,
        name=body.name or f"run-{run_id.hex[-8:]}",
        group=body.group,
        framework=body.framework,
        trainable=body.trainable,
        status="running",
        verdict="undetermined",
        learning="unknown",
        level="unknown",
        score=0.0,
        since_step=None,
        last_step=None,
        generation=0,
        revision=1,
        created_at=now,
        updated_at=now,
        statistics=body.statistics,
        metrics=[],
        layer_counts=[len(layers)],
        facts_digest=digest_of(layers, training, body.framework),
        muted_detectors=body.muted_detectors,
        parent_id=None if trial is None else trial.parent_id,
        stop_after=None if trial is None else trial.stop_after,
        patience=silence_limit.seconds,
        stalls_at=silence_limit.stalls_at,
        details=models.RunDetails(
            notes=body.notes, config=without_nonfinite(body.config), training=training, layers=layers
        ),
        tags=[models.RunTag(position=index, tag=tag) for index, tag in enumerate(body.tags)],
        review=None,
    )
    may_create = trial is None or trial.key_id == principal.key_id
    if may_create and repository.add(session, run):
        projects.create_missing(session, body.project, now)
        access.record(session, principal, "create_run", run_id, body.project)
        if repository.has_more_runs(session, body.project, limits.max_runs_per_project):
            raise ProjectFull(
                f"Project {body.project!r} has {limits.max_runs_per_project} runs, as many as it may; delete some."
            )
        return _to_detail(session, run), True
    existing = repository.find(session, run_id)
    if existing is None or not principal.reaches_run(run_id, existing.project):
        raise RunExists(f"The id {run_id} is taken; leave it out to be given one.")
    difference = _describe_difference(existing, body)
    if difference is not None:
        raise RunExists(f"Run {run_id} exists with {difference}.")
    return _to_detail(session, existing), False


def get(session: Session, principal: Principal, run_id: UUID) -> RunDetail:
    """Return a run. Raises RunNotFound, also for a run that the principal does not reach."""
    return _to_detail(session, find_run(session, principal, run_id))


def update(session: Session, principal: Principal, run_id: UUID, body: RunUpdate, limits: Limits) -> RunDetail:
    """Change the fields that the body names. Raises RunNotFound, InvalidRequest.

    Layers that the run already ends with are not appended again, so that the request may be repeated.
    """
    run = find_run(session, principal, run_id, is_locked=True)
    details, status_before = run.details, run.status
    if body.name is not None:
        run.name = body.name
    if body.notes is not None:
        details.notes = body.notes
    if body.config is not None:
        details.config = without_nonfinite(body.config)
    if body.status is not None:
        run.status = body.status
        silence_limit = SilenceLimit.at_start(datetime.now(UTC))
        run.patience, run.stalls_at = silence_limit.seconds, silence_limit.stalls_at
    if body.training is not None:
        details.training = without_nonfinite(TRAINING.dump_python(body.training, exclude_none=True))
    if body.muted_detectors is not None:
        run.muted_detectors = body.muted_detectors
    if body.append_layers:
        _append_layers(run, body.append_layers, limits)
    run.facts_digest = digest_of(details.layers, details.training, run.framework)
    if body.tags is not None:
        repository.set_tags(session, run, body.tags)
    repository.touch(run)
    _record_status(session, run, status_before)
    return _to_detail(session, run)


def remove(session: Session, principal: Principal, run_id: UUID) -> None:
    """Delete a run with its steps and its diagnosis. Raises RunNotFound."""
    run = find_run(session, principal, run_id, is_locked=True)
    access.record(session, principal, "delete_run", run_id, run.project)
    repository.remove(session, run_id)


def list_silent_runs(session: Session, limit: int) -> list[UUID]:
    """Return the ids of the running runs that have been silent for longer than their limit."""
    return repository.list_silent_runs(session, datetime.now(UTC), limit)


def mark_stalled(session: Session, run_id: UUID) -> bool:
    """Give a run of `list_silent_runs` the status `stalled`, and raise its revision.

    Returns False if the run is not silent any more, or if another transaction holds it.
    """
    return _record_marked(session, run_id, repository.mark_stalled(session, run_id, datetime.now(UTC)), "running")


def list_stalled_runs(session: Session, limit: int) -> list[UUID]:
    """Return the ids of the runs that have been stalled for so long that they have failed."""
    return repository.list_stalled_runs(session, _failing_since(), limit)


def mark_failed(session: Session, run_id: UUID) -> bool:
    """Give a run of `list_stalled_runs` the status `failed`, and raise its revision.

    Returns False if the run is not stalled any more, or if another transaction holds it.
    """
    return _record_marked(session, run_id, repository.mark_failed(session, run_id, _failing_since()), "stalled")


def _record_marked(session: Session, run_id: UUID, is_marked: bool, status_before: str) -> bool:
    """Record the status that a run was marked with, if it was; return whether it was."""
    run = repository.find(session, run_id) if is_marked else None
    if run is not None:
        _record_status(session, run, status_before)
    return is_marked


def _record_status(session: Session, run: models.Run, before: str) -> None:
    """Record a change of a run's status, which may become an alert."""
    change = events.status_change(before, run.status)
    if change is not None:
        session.flush()
        events.record(session.connection(), events.changed_run(run), [change])


def _failing_since() -> datetime:
    return datetime.now(UTC) - timedelta(seconds=SECONDS_TO_FAILURE)


def find_run(session: Session, principal: Principal, run_id: UUID, *, is_locked: bool = False) -> models.Run:
    """Return the row of a run. Raises RunNotFound, also for a run that the principal does not reach."""
    run = repository.find(session, run_id, is_locked=is_locked)
    if run is None or not principal.reaches_run(run_id, run.project):
        raise RunNotFound(f"There is no run {run_id}.")
    return run


def _describe_difference(run: models.Run, body: RunCreate) -> str | None:
    """Return how a run differs from the body that would create it again; added layers are no difference."""
    if run.project != body.project:
        return f"project {run.project!r}"
    if run.statistics != body.statistics:
        return f"statistics {', '.join(run.statistics)}"
    names = [layer["name"] for layer in run.details.layers]
    requested = [layer.name for layer in body.layers]
    if names[: len(requested)] == requested:
        return None
    return f"other layers: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "no layers"


def _append_layers(run: models.Run, layers: list[Layer], limits: Limits) -> None:
    existing = [layer["name"] for layer in run.details.layers]
    if existing[-len(layers) :] == [layer.name for layer in layers]:
        return
    check_appended_layers(layers, existing, limits)
    run.details.layers = run.details.layers + without_nonfinite(LAYERS.dump_python(layers, exclude_defaults=True))
    run.layer_counts = [*run.layer_counts, len(run.details.layers)]


def _to_detail(session: Session, run: models.Run) -> RunDetail:
    return RunDetail(
        **summary_fields(run, guards.count_all_actions(session, [run.id]).get(run.id, 0)),
        notes=run.details.notes,
        config=run.details.config,
        statistics=run.statistics,
        metrics=run.metrics,
        layers=LAYERS.validate_python(run.details.layers),
        training=TRAINING.validate_python(run.details.training),
        muted_detectors=run.muted_detectors or [],
        review=None if run.review is None else to_review(run.review),
        is_end_reported=run.status in SETTABLE_STATUSES and not (run.status == "failed" and run.stalls_at is None),
    )


def to_review(stored: models.RunReview) -> Review:
    """Return a stored review as it is answered."""
    return Review(
        answer=stored.answer,
        verdict=stored.verdict,
        level=stored.level,
        note=stored.note,
        step=stored.step,
        judged_verdict=stored.judged_verdict,
        judged_level=stored.judged_level,
        diagnosis_version=stored.diagnosis_version,
        reviewed_at=stored.reviewed_at,
    )
