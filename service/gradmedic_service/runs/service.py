"""Runs: what creating, listing and changing one means."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, get_args
from uuid import UUID

from gradmedic.protocol.ids import new_id
from gradmedic.protocol.runs import Layer, RunCreate, RunDetail, RunList, RunSummary, RunUpdate
from gradmedic.protocol.service import Limits
from gradmedic_service.access import service as access
from gradmedic_service.access.principal import Principal
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.http.paging import position_of, token_of
from gradmedic_service.http.responses import to_json, without_nonfinite
from gradmedic_service.projects import service as projects
from gradmedic_service.projects.errors import ProjectFull
from gradmedic_service.reruns import repository as reruns
from gradmedic_service.runs import repository
from gradmedic_service.runs.errors import RunExists, RunNotFound
from gradmedic_service.runs.facts import LAYERS, TRAINING, digest_of
from gradmedic_service.runs.repository import RunQuery, SortKey
from gradmedic_service.runs.schemas import check_appended_layers
from gradmedic_service.runs.stalling import Patience, status_of

SORTS = tuple(f"{sign}{key}" for key in get_args(SortKey) for sign in ("", "-"))
"""What `sort` may be; the sign means descending."""
DEFAULT_SORT = "-created_at"


def create(session: Session, principal: Principal, body: RunCreate, limits: Limits) -> tuple[RunDetail, bool]:
    """Store a run, or find the one that the same request stored before; the flag says whether it is new.

    Raises RunExists if the id belongs to a run that the body does not describe, BeyondKey if the principal may not
    make it, ProjectFull.
    """
    principal.check_reach(body.project, body.id)
    run_id = body.id or new_id()
    layers = _stored(LAYERS.dump_python(body.layers, mode="python", exclude_defaults=True))
    training = _stored(TRAINING.dump_python(body.training, exclude_none=True))
    now = datetime.now(UTC)
    trial = None if body.id is None else reruns.run_of_attempt(session, body.id)
    if trial is not None:
        body = replace(body, project=trial.project, name=trial.name)
    patience = Patience.at_start(now)
    run = models.Run(
        id=run_id,
        project=body.project,
        name=body.name or f"run-{run_id.hex[-8:]}",
        group=body.group,
        framework=body.framework,
        trainable=body.trainable,
        status="running",
        verdict="undetermined",
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
        patience=patience.seconds,
        stalls_at=patience.stalls_at,
        details=models.RunDetails(
            notes=body.notes, config=without_nonfinite(body.config), training=training, layers=layers
        ),
        tags=[models.RunTag(position=index, tag=tag) for index, tag in enumerate(body.tags)],
    )
    if repository.add(session, run):
        projects.ensure(session, body.project, now)
        access.record(session, principal, "create_run", run_id, body.project)
        if repository.has_more_than(session, body.project, limits.max_runs_per_project):
            raise ProjectFull(
                f"Project {body.project!r} has {limits.max_runs_per_project} runs, as many as it may; delete some."
            )
        return _detail(run), True
    existing = repository.find(session, run_id)
    if existing is None or not principal.reaches_run(run_id, existing.project):
        raise RunExists(f"The id {run_id} is taken; leave it out to be given one.")
    difference = _difference(existing, body)
    if difference is not None:
        raise RunExists(f"Run {run_id} exists with {difference}.")
    return _detail(existing), False


def get(session: Session, principal: Principal, run_id: UUID) -> RunDetail:
    """Return a run. Raises RunNotFound, also for one that the principal does not reach."""
    return _detail(_existing(session, principal, run_id))


def update(session: Session, principal: Principal, run_id: UUID, body: RunUpdate, limits: Limits) -> RunDetail:
    """Change what the body names. Raises RunNotFound, InvalidRequest.

    Layers that the run already ends with are not appended again, so that the request may be repeated.
    """
    run = _existing(session, principal, run_id, is_locked=True)
    details = run.details
    if body.name is not None:
        run.name = body.name
    if body.notes is not None:
        details.notes = body.notes
    if body.config is not None:
        details.config = without_nonfinite(body.config)
    if body.status is not None:
        run.status = body.status
        patience = Patience.at_start(datetime.now(UTC))
        run.patience, run.stalls_at = patience.seconds, patience.stalls_at
    if body.training is not None:
        details.training = _stored(TRAINING.dump_python(body.training, exclude_none=True))
    if body.muted_detectors is not None:
        run.muted_detectors = body.muted_detectors
    if body.append_layers:
        _append_layers(run, body.append_layers, limits)
    run.facts_digest = digest_of(details.layers, details.training, run.framework)
    if body.tags is not None:
        repository.set_tags(session, run, body.tags)
    repository.touch(run)
    return _detail(run)


def remove(session: Session, principal: Principal, run_id: UUID) -> None:
    """Delete a run with its steps and its diagnosis. Raises RunNotFound."""
    run = _existing(session, principal, run_id, is_locked=True)
    access.record(session, principal, "delete_run", run_id, run.project)
    repository.remove(session, run_id)


def list_page(
    session: Session, principal: Principal, query: RunQuery, page_token: str | None, max_results: int
) -> RunList:
    """Return a page of the runs that a principal reaches, and where the next one begins.

    Raises InvalidRequest for a token of another query.
    """
    query = replace(query, reachable_project=principal.project, reachable_run=principal.run_id)
    if page_token is not None:
        query = _after(query, page_token)
    runs = repository.page(session, query, max_results + 1)
    items = runs[:max_results]
    return RunList(
        items=[_summary(run) for run in items],
        next_page_token=_token(query, items[-1]) if len(runs) > max_results else None,
    )


def _existing(session: Session, principal: Principal, run_id: UUID, *, is_locked: bool = False) -> models.Run:
    run = repository.find(session, run_id, is_locked=is_locked)
    if run is None or not principal.reaches_run(run_id, run.project):
        raise RunNotFound(f"There is no run {run_id}.")
    return run


def _difference(run: models.Run, body: RunCreate) -> str | None:
    """Say in what a run differs from the body that would create it again; the run may have grown layers since."""
    if run.project != body.project:
        return f"project {run.project!r}"
    if run.statistics != body.statistics:
        return f"statistics {', '.join(run.statistics)}"
    names = [layer["name"] for layer in run.details.layers]
    wanted = [layer.name for layer in body.layers]
    if names[: len(wanted)] == wanted:
        return None
    return f"other layers: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "no layers"


def _append_layers(run: models.Run, layers: list[Layer], limits: Limits) -> None:
    existing = [layer["name"] for layer in run.details.layers]
    if existing[-len(layers) :] == [layer.name for layer in layers]:
        return
    check_appended_layers(layers, existing, limits)
    run.details.layers = run.details.layers + _stored(LAYERS.dump_python(layers, exclude_defaults=True))
    run.layer_counts = [*run.layer_counts, len(run.details.layers)]


def _stored(value: Any) -> Any:
    """Return a value as JSON columns hold it: names for non-finite numbers."""
    return without_nonfinite(value)


def _summary_fields(run: models.Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "project": run.project,
        "name": run.name,
        "status": status_of(run.status, run.stalls_at, datetime.now(UTC)),
        "verdict": run.verdict,
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
    }


def _summary(run: models.Run) -> RunSummary:
    return RunSummary(**_summary_fields(run))


def _detail(run: models.Run) -> RunDetail:
    return RunDetail(
        **_summary_fields(run),
        notes=run.details.notes,
        config=run.details.config,
        statistics=run.statistics,
        layers=LAYERS.validate_python(run.details.layers),
        training=TRAINING.validate_python(run.details.training),
        muted_detectors=run.muted_detectors or [],
    )


def _token(query: RunQuery, last: models.Run) -> str:
    value = getattr(last, query.sort_key)
    return token_of(_query_digest(query), value.isoformat() if isinstance(value, datetime) else value, last.id.hex)


def _after(query: RunQuery, page_token: str) -> RunQuery:
    value, run_id = position_of(page_token, _query_digest(query), 2)
    try:
        position = (value if query.sort_key == "name" else datetime.fromisoformat(value), UUID(hex=run_id))
    except ValueError:
        raise InvalidRequest.at("page_token", "is not a token of this list") from None
    return replace(query, after=position)


def _query_digest(query: RunQuery) -> str:
    parent_id = None if query.parent_id is None else query.parent_id.hex
    content = {**asdict(query), "parent_id": parent_id, "after": None}
    return hashlib.blake2b(to_json(content).encode(), digest_size=6).hexdigest()
