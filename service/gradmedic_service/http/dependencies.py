"""What endpoints ask for: the parts that `create_app` put together.

The request commits once, at its boundary: an endpoint opens `database.writing()` or `database.reading()` around one
call of its service and answers when that has ended, so that a 2xx means durable.

These are coroutines although they wait for nothing: FastAPI would send each plain function to a thread.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from gradmedic.protocol.service import JSON_MEDIA_TYPE, Limits
from gradmedic_service.database.engine import Database
from gradmedic_service.errors import InvalidRequest, UnsupportedMediaType
from gradmedic_service.http.metrics import Metrics
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry.run_cache import RunCache


async def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


async def _limits(request: Request) -> Limits:
    limits: Limits = request.app.state.limits
    return limits


async def _facts(request: Request) -> FactsCache:
    facts: FactsCache = request.app.state.facts
    return facts


async def _warm(request: Request) -> RunCache:
    warm: RunCache = request.app.state.warm
    return warm


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


async def media_type(request: Request) -> str:
    """Return the request's Content-Type without parameters, lower case."""
    return _media_type(request)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_only(request: Request) -> None:
    """Refuse a body that does not say it is JSON."""
    found = _media_type(request)
    if found != JSON_MEDIA_TYPE:
        raise UnsupportedMediaType(f"Content-Type is {found or 'missing'}; send {JSON_MEDIA_TYPE}.")


def check_max_results(max_results: int, limits: Limits) -> None:
    """Raise InvalidRequest for a page of no size, or of more than is allowed."""
    if not 1 <= max_results <= limits.max_results:
        raise InvalidRequest.at("max_results", f"must be from 1 to {limits.max_results}")


DatabaseDependency = Annotated[Database, Depends(_database)]
LimitsDependency = Annotated[Limits, Depends(_limits)]
FactsDependency = Annotated[FactsCache, Depends(_facts)]
MetricsDependency = Annotated[Metrics, Depends(_metrics)]
RunCacheDependency = Annotated[RunCache, Depends(_warm)]
