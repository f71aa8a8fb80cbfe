"""The route of guard actions."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Path

from gradmedic.protocol.guards import GuardActionList
from gradmedic_service.access.authorization import MayFollow
from gradmedic_service.guards import service
from gradmedic_service.http.dependencies import (
    DatabaseDependency,
    LimitsDependency,
    MaxResults,
    PageToken,
    check_max_results,
)
from gradmedic_service.http.errors import InvalidRequest, documented
from gradmedic_service.http.routers import api_router
from gradmedic_service.runs.errors import RunNotFound

router = api_router(prefix="/runs/{run_id}", tags=["steps"])

RunId = Annotated[UUID, Path(description="Id of the run.", examples=["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50"])]


@router.get(
    "/guard-actions",
    operation_id="guard_actions.list",
    response_model=GuardActionList,
    responses=documented(RunNotFound, InvalidRequest),
)
def list_guard_actions(
    run_id: RunId,
    principal: MayFollow,
    database: DatabaseDependency,
    limits: LimitsDependency,
    max_results: MaxResults = 100,
    page_token: PageToken = None,
) -> GuardActionList:
    """List what the guards of a run did, of all generations, the newest first. A rewind keeps the actions."""
    check_max_results(max_results, limits)
    with database.reading() as session:
        return service.list_actions(session, principal, run_id, page_token, max_results)
