"""The one place where the service is put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import APIRouter, FastAPI

from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.admission import Admission
from gradmedic_service.access.authentication import Authentication
from gradmedic_service.access.authorization import require_needs
from gradmedic_service.access.browsers import BrowserGuard
from gradmedic_service.access.endpoints import router as access_router
from gradmedic_service.access.keyring import LAST_USE_SECONDS, Keyring
from gradmedic_service.access.rates import Rates
from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database
from gradmedic_service.http.bodies import BoundedBodies
from gradmedic_service.http.documentation import add_documentation
from gradmedic_service.http.health import health_router, limits_router
from gradmedic_service.http.metrics import Metrics
from gradmedic_service.http.problems import answer_with_problems
from gradmedic_service.http.requests import RequestContext
from gradmedic_service.http.responses import WireResponse
from gradmedic_service.http.routes import RouteTable
from gradmedic_service.periodic import run_periodically
from gradmedic_service.projects.endpoints import router as projects_router
from gradmedic_service.reruns.endpoints import router as reruns_router
from gradmedic_service.runs.endpoints import router as runs_router
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry.endpoints import router as telemetry_router
from gradmedic_service.telemetry.run_cache import RunCache
from gradmedic_service.trainables.endpoints import router as trainables_router
from gradmedic_service.trials.endpoints import router as trials_router
from gradmedic_service.web.events import router as events_router
from gradmedic_service.web.live import LiveRuns
from gradmedic_service.web.pages import add_pages

DESCRIPTION = """\
Reads the gradients of training jobs and says what is wrong, why, and what fixes it.

A training loop creates a *run*, appends *steps* with statistics of every layer's gradient, and reads the *diagnosis*.
Non-finite numbers are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`, both ways; `null` in a statistic means that
no optimizer touched the layer in that step. Errors are RFC 9457 problems with a stable `error_code`.
"""


def create_app(settings: Settings) -> FastAPI:
    """Return the service as an ASGI application. Its database must have been migrated."""
    database = Database(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.live = LiveRuns(settings.max_streams)
        writing = asyncio.create_task(_write_last_uses(app))
        periodic = asyncio.create_task(
            run_periodically(app.state.database, settings.periodic_interval, settings.worker_patience)
        )
        yield
        app.state.live.close()
        writing.cancel()
        periodic.cancel()
        await asyncio.to_thread(app.state.keyring.write_last_uses, app.state.database)
        database.close()

    app = FastAPI(
        title="gradmedic",
        version=version("gradmedic"),
        description=DESCRIPTION,
        default_response_class=WireResponse,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.database = database
    app.state.requires_keys = settings.requires_keys
    app.state.keyring = Keyring()
    app.state.rates = Rates(settings.max_requests_per_minute)
    app.state.metrics = Metrics()
    app.state.limits = settings.limits()
    app.state.trial_lease = settings.trial_lease
    app.state.facts = FactsCache()
    app.state.warm = RunCache()
    app.state.schema_revision = schema.head()

    app.include_router(health_router)
    add_pages(app)
    api = APIRouter(prefix=API_PATH)
    for router in (
        limits_router,
        access_router,
        projects_router,
        runs_router,
        telemetry_router,
        events_router,
        reruns_router,
        trials_router,
        trainables_router,
    ):
        api.include_router(router)
    app.include_router(api)
    add_documentation(app)
    require_needs(app)
    app.state.routes = RouteTable(app)
    answer_with_problems(app)
    app.add_middleware(BoundedBodies, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(
        Admission, max_concurrent=settings.max_concurrent_requests, max_waiting=settings.max_waiting_requests
    )
    app.add_middleware(Authentication)
    app.add_middleware(BrowserGuard, allowed_hosts=settings.answering_hosts)
    app.add_middleware(RequestContext)
    return app


async def _write_last_uses(app: FastAPI) -> None:
    while True:
        await asyncio.sleep(LAST_USE_SECONDS)
        await asyncio.to_thread(app.state.keyring.write_last_uses, app.state.database)
