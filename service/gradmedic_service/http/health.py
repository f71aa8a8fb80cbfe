"""Routes about the service itself: is it alive, is it ready, what does it accept."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from gradmedic.protocol.service import Health, Limits
from gradmedic_service.access.authorization import PUBLIC, AnyKey, MayRead
from gradmedic_service.database.schema import check_revision
from gradmedic_service.errors import DatabaseBusy, DatabaseNotMigrated, DatabaseUnavailable, documented
from gradmedic_service.http.dependencies import DatabaseDependency, LimitsDependency, MetricsDependency

health_router = APIRouter(tags=["service"])
limits_router = APIRouter(tags=["service"])


def _revision(request: Request) -> str:
    revision: str = request.app.state.schema_revision
    return revision


@health_router.get("/healthz", dependencies=[PUBLIC])
async def alive() -> Health:
    """Answer as long as the process serves requests."""
    return Health()


@health_router.get(
    "/readyz", dependencies=[PUBLIC], responses=documented(DatabaseBusy, DatabaseUnavailable, DatabaseNotMigrated)
)
def ready(database: DatabaseDependency, revision: Annotated[str, Depends(_revision)]) -> Health:
    """Answer if the database can be used and has the schema that this version needs."""
    check_revision(database, revision)
    return Health()


@health_router.get("/metrics", response_class=PlainTextResponse)
def read_metrics(principal: MayRead, metrics: MetricsDependency, database: DatabaseDependency) -> Response:
    """Return what Prometheus reads, about this process and every project: a key of one project is not enough."""
    principal.must_reach(None)
    return Response(metrics.exposition(database), media_type=CONTENT_TYPE_LATEST)


@limits_router.get("/limits", response_model=Limits)
async def read_limits(_principal: AnyKey, limits: LimitsDependency) -> Limits:
    """Return what the service accepts, so that clients can split their blocks."""
    return limits
