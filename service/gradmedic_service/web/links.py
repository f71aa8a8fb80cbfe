"""The links that the client prints, for a person with a browser: they lead to what the API knows of a run."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import RedirectResponse

from gradmedic import wire
from gradmedic_service.access.authorization import PUBLIC

router = APIRouter(include_in_schema=False, dependencies=[PUBLIC])
"""Public: where a link leads says nothing of what is there."""


@router.get("/")
def open_start() -> RedirectResponse:
    """Lead to the documentation of the API."""
    return RedirectResponse("/docs")


@router.get("/runs/{run_id}")
def open_run(run_id: UUID) -> RedirectResponse:
    """Lead to the run's diagnosis."""
    return RedirectResponse(f"{wire.API_PATH}/runs/{run_id}/diagnosis")
