"""Changes of many runs at once. Each run is authorized, and changed or refused, on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from gradmedic.protocol.run_lists import RunFailure, RunsChange, RunTagsChange
from gradmedic.protocol.service import Limits
from gradmedic_service.access import service as access
from gradmedic_service.access.principal import Principal
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.http.errors import ServiceError
from gradmedic_service.runs import repository
from gradmedic_service.runs.errors import RunNotFound, TooManyTags


def change_tags(session: Session, principal: Principal, body: RunTagsChange, limits: Limits) -> RunsChange:
    """Add tags to runs and remove tags from them. A run that would have too many tags keeps those that it has."""
    removed = set(body.remove)

    def change(run: models.Run) -> bool:
        before = [tag.tag for tag in run.tags]
        after = [tag for tag in dict.fromkeys([*before, *body.add]) if tag not in removed]
        if after == before:
            return False
        if len(after) > limits.max_tags:
            raise TooManyTags(f"Run {run.id} would have {len(after)} tags; at most {limits.max_tags} are allowed.")
        repository.set_tags(session, run, after)
        repository.touch(run)
        return True

    return _change_each(session, principal, body.ids, change)


def delete(session: Session, principal: Principal, ids: Sequence[UUID]) -> RunsChange:
    """Delete runs with their steps and their diagnoses."""

    def remove(run: models.Run) -> bool:
        access.record(session, principal, "delete_run", run.id, run.project)
        repository.remove(session, run.id)
        return True

    return _change_each(session, principal, ids, remove)


def _change_each(
    session: Session, principal: Principal, ids: Sequence[UUID], change: Callable[[models.Run], bool]
) -> RunsChange:
    """Change runs in order; `change` returns whether there was something to change, and raises ServiceError."""
    runs = repository.find_all(session, ids)
    changed: list[UUID] = []
    unchanged: list[UUID] = []
    failed: list[RunFailure] = []
    for run_id in dict.fromkeys(ids):
        try:
            run = runs.get(run_id)
            if run is None or not principal.reaches_run(run_id, run.project):
                raise RunNotFound(f"There is no run {run_id}.")
            (changed if change(run) else unchanged).append(run_id)
        except ServiceError as error:
            failed.append(RunFailure(id=run_id, error_code=error.error_code, detail=error.detail))
    return RunsChange(changed=changed, unchanged=unchanged, failed=failed)
