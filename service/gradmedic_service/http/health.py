"""The routes about the service itself: liveness, readiness, metrics and limits."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from gradmedic.protocol.service import Health, Limits, Liveness
from gradmedic_service.access.authorization import PUBLIC, AnyKey, MayRead
from gradmedic_service.database.errors import DatabaseBusy, DatabaseNotMigrated, DatabaseUnavailable
from gradmedic_service.database.schema import check_revision
from gradmedic_service.http.dependencies import (
    DatabaseDependency,
    LimitsDependency,
    LivenessDependency,
    MetricsDependency,
    SchemaRevisionDependency,
)
from gradmedic_service.http.errors import documented
from gradmedic_service.http.responses import WireResponse
from gradmedic_service.http.routers import api_router

health_router = APIRouter(tags=["service"], default_response_class=WireResponse)
limits_router = api_router(tags=["service"])


@health_router.get("/healthz", operation_id="service.alive", dependencies=[PUBLIC])
async def alive(liveness: LivenessDependency) -> Liveness:
    """Check that the process serves requests, and return what it is."""
    return liveness


@health_router.get(
    "/readyz",
    operation_id="service.ready",
    dependencies=[PUBLIC],
    responses=documented(DatabaseBusy, DatabaseUnavailable, DatabaseNotMigrated),
)
def ready(database: DatabaseDependency, revision: SchemaRevisionDependency) -> Health:
    """Check that the database can be read and has the schema that this version needs."""
    check_revision(database, revision)
    return Health()


@health_router.get("/metrics", operation_id="service.metrics", response_class=PlainTextResponse)
def read_metrics(principal: MayRead, metrics: MetricsDependency, database: DatabaseDependency) -> Response:
    """Return this process's metrics for Prometheus. They cover every project, so a key of one project is refused."""
    principal.check_reach(None)
    return Response(metrics.render(database), media_type=CONTENT_TYPE_LATEST)


@limits_router.get("/limits", operation_id="service.limits", response_model=Limits)
async def read_limits(_principal: AnyKey, limits: LimitsDependency) -> Limits:
    """Return the limits of requests, so that clients can split their blocks."""
    return limits
