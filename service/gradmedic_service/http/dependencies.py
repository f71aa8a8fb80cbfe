"""The parameters that endpoints share: parts of `Services`, and the page of a list; and checks of them.

The request commits once, at its boundary: an endpoint opens `database.writing()` or `database.reading()` around one
call of its domain's service and answers after that block has ended, so that a 2xx means durable.

The dependencies are coroutines although they await nothing: FastAPI would run each plain function on a thread.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from gradmedic.protocol.service import JSON_MEDIA_TYPE, Limits, Liveness
from gradmedic_service.access.keyring import Keyring
from gradmedic_service.alerts.sending import Sender
from gradmedic_service.database.engine import Database
from gradmedic_service.http.answers import MEMORY, AnswerMemory
from gradmedic_service.http.errors import InvalidRequest, UnsupportedMediaType
from gradmedic_service.http.metrics import Metrics
from gradmedic_service.reruns.automatic import AutomaticReruns
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.services import services_of
from gradmedic_service.telemetry.diagnosis_cache import DiagnosisCache
from gradmedic_service.telemetry.rollup_cache import RollupCache
from gradmedic_service.telemetry.run_cache import RunCache
from gradmedic_service.web.live import LiveRuns


async def _database(request: Request) -> Database:
    return services_of(request.app).database


async def _schema_revision(request: Request) -> str:
    return services_of(request.app).schema_revision


async def _limits(request: Request) -> Limits:
    return services_of(request.app).limits


async def _liveness(request: Request) -> Liveness:
    return services_of(request.app).liveness


async def _keyring(request: Request) -> Keyring:
    return services_of(request.app).keyring


async def _metrics(request: Request) -> Metrics:
    return services_of(request.app).metrics


async def _facts(request: Request) -> FactsCache:
    return services_of(request.app).facts


async def _run_cache(request: Request) -> RunCache:
    return services_of(request.app).run_cache


async def _diagnosis_cache(request: Request) -> DiagnosisCache:
    return services_of(request.app).diagnosis_cache


async def _rollup_cache(request: Request) -> RollupCache:
    return services_of(request.app).rollup_cache


async def _live_runs(request: Request) -> LiveRuns:
    return services_of(request.app).live_runs


async def _automatic_reruns(request: Request) -> AutomaticReruns:
    return services_of(request.app).automatic_reruns


async def _sender(request: Request) -> Sender:
    return services_of(request.app).sender


async def _trial_lease(request: Request) -> float:
    return services_of(request.app).trial_lease


async def _answer_memory(request: Request) -> AnswerMemory:
    memory: AnswerMemory = request.scope["state"][MEMORY]
    return memory


AnswerMemoryDependency = Annotated[AnswerMemory, Depends(_answer_memory)]
DatabaseDependency = Annotated[Database, Depends(_database)]
SchemaRevisionDependency = Annotated[str, Depends(_schema_revision)]
LimitsDependency = Annotated[Limits, Depends(_limits)]
LivenessDependency = Annotated[Liveness, Depends(_liveness)]
KeyringDependency = Annotated[Keyring, Depends(_keyring)]
MetricsDependency = Annotated[Metrics, Depends(_metrics)]
FactsDependency = Annotated[FactsCache, Depends(_facts)]
RunCacheDependency = Annotated[RunCache, Depends(_run_cache)]
DiagnosisCacheDependency = Annotated[DiagnosisCache, Depends(_diagnosis_cache)]
RollupCacheDependency = Annotated[RollupCache, Depends(_rollup_cache)]
LiveRunsDependency = Annotated[LiveRuns, Depends(_live_runs)]
AutomaticRerunsDependency = Annotated[AutomaticReruns, Depends(_automatic_reruns)]
SenderDependency = Annotated[Sender, Depends(_sender)]
TrialLeaseDependency = Annotated[float, Depends(_trial_lease)]

MaxResults = Annotated[int, Query(description="The number of items in a page, up to `max_results` of `GET /limits`.")]
PageToken = Annotated[str | None, Query(description="The `next_page_token` of the previous page.")]


async def media_type(request: Request) -> str:
    """Return the request's Content-Type without parameters, in lower case."""
    return _media_type(request)


async def require_json(request: Request) -> None:
    """Raise UnsupportedMediaType unless the request's Content-Type is JSON."""
    content_type = _media_type(request)
    if content_type != JSON_MEDIA_TYPE:
        raise UnsupportedMediaType(f"Content-Type is {content_type or 'missing'}; send {JSON_MEDIA_TYPE}.")


def check_max_results(max_results: int, limits: Limits) -> None:
    """Raise InvalidRequest unless the size of a page is between 1 and the published limit."""
    if not 1 <= max_results <= limits.max_results:
        raise InvalidRequest.at("max_results", f"must be from 1 to {limits.max_results}")


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
