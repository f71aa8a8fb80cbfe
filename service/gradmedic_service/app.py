"""The composition root: builds the application, its services and its periodic tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from threading import Event

from fastapi import FastAPI

from gradmedic.protocol.service import Liveness
from gradmedic_service.access.admission import Admission
from gradmedic_service.access.authentication import Authentication
from gradmedic_service.access.authorization import check_requirements
from gradmedic_service.access.browsers import BrowserGuard
from gradmedic_service.access.endpoints import router as access_router
from gradmedic_service.access.keyring import LAST_USE_SECONDS, Keyring
from gradmedic_service.access.places import Places
from gradmedic_service.access.rate_limits import RateLimits
from gradmedic_service.alerts.delivering import deliver_due
from gradmedic_service.alerts.endpoints import router as alerts_router
from gradmedic_service.alerts.making import make_due_alerts
from gradmedic_service.alerts.retention import remove_old_alerts
from gradmedic_service.alerts.sending import build_sender
from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database
from gradmedic_service.database.urls import printable_url
from gradmedic_service.due_work import RARE_WORK_SECONDS, do_due_work, do_jobs, rare_jobs
from gradmedic_service.guards.endpoints import router as guards_router
from gradmedic_service.http.answers import BoundedAnswers
from gradmedic_service.http.application import ServiceApplication
from gradmedic_service.http.arrival import ArrivingBodies
from gradmedic_service.http.documentation import add_documentation
from gradmedic_service.http.health import health_router, limits_router
from gradmedic_service.http.metrics import Metrics
from gradmedic_service.http.problems import answer_with_problems
from gradmedic_service.http.requests import RequestContext
from gradmedic_service.http.responses import WireResponse
from gradmedic_service.http.routers import add_routes
from gradmedic_service.http.routes import RouteTable
from gradmedic_service.periodic_tasks import PeriodicTask, running_periodically
from gradmedic_service.projects.endpoints import router as projects_router
from gradmedic_service.reruns.automatic import AutomaticReruns
from gradmedic_service.reruns.endpoints import router as reruns_router
from gradmedic_service.runs.endpoints import router as runs_router
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.runs.list_endpoints import router as run_lists_router
from gradmedic_service.services import Services, provide_services, services_of
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry.backfill import BACKFILL_SECONDS, Backfill
from gradmedic_service.telemetry.diagnosis_cache import DiagnosisCache
from gradmedic_service.telemetry.endpoints import direct_router
from gradmedic_service.telemetry.endpoints import router as telemetry_router
from gradmedic_service.telemetry.rollup_cache import RollupCache
from gradmedic_service.telemetry.run_cache import RunCache
from gradmedic_service.trainables.endpoints import router as trainables_router
from gradmedic_service.trials.absences import Absences
from gradmedic_service.trials.endpoints import router as trials_router
from gradmedic_service.web.events import router as events_router
from gradmedic_service.web.live import LiveRuns
from gradmedic_service.web.pages import add_pages

DESCRIPTION = """\
The service reads the gradients of training jobs and reports what is wrong, why, and what fixes it.

A training loop creates a *run*, appends *steps* with statistics of every layer's gradient, and reads the *diagnosis*.
Non-finite numbers are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`, both ways; `null` in a statistic means that
no optimizer touched the layer in that step. Errors are RFC 9457 problems with a stable `error_code`.
"""


def create_app(settings: Settings) -> FastAPI:
    """Return the service as an ASGI application. Its database must be migrated before it serves requests."""
    app = ServiceApplication(
        title="gradmedic",
        version=version("gradmedic"),
        description=DESCRIPTION,
        default_response_class=WireResponse,
        lifespan=_lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    add_routes(app, health_router)
    add_pages(app)
    add_routes(
        app,
        limits_router,
        access_router,
        projects_router,
        run_lists_router,
        runs_router,
        direct_router,
        telemetry_router,
        guards_router,
        events_router,
        reruns_router,
        trials_router,
        trainables_router,
        alerts_router,
    )
    add_documentation(app)
    check_requirements(app)
    answer_with_problems(app)
    provide_services(app, build_services(settings, RouteTable(app)))
    app.add_middleware(
        Admission,
        places=Places(settings.max_concurrent_requests, settings.max_waiting_requests),
        bodies=ArrivingBodies(
            settings.max_body_bytes,
            settings.max_arrived_bytes,
            max_requests=settings.max_concurrent_requests + settings.max_waiting_requests,
            seconds=settings.request_timeout,
        ),
    )
    app.add_middleware(BoundedAnswers, max_bytes=settings.max_answer_bytes)
    app.add_middleware(Authentication)
    app.add_middleware(BrowserGuard, allowed_hosts=settings.accepted_hosts)
    app.add_middleware(RequestContext)
    return app


def build_services(settings: Settings, route_table: RouteTable) -> Services:
    """Return the services of an application with these routes."""
    limits, facts, metrics = settings.limits(), FactsCache(), Metrics()
    return Services(
        database=Database(settings),
        schema_revision=schema.head(),
        route_table=route_table,
        limits=limits,
        requires_keys=settings.requires_keys,
        liveness=Liveness(
            version=version("gradmedic"),
            started_at=datetime.now(UTC),
            database=None if settings.requires_keys else printable_url(settings.database_url.get_secret_value()),
        ),
        keyring=Keyring(),
        rate_limits=RateLimits(settings.max_requests_per_minute),
        metrics=metrics,
        facts=facts,
        run_cache=RunCache(),
        diagnosis_cache=DiagnosisCache(),
        rollup_cache=RollupCache(),
        live_runs=LiveRuns(settings.max_streams),
        automatic_reruns=AutomaticReruns(limits, facts, metrics),
        sender=build_sender(settings),
        trial_lease=settings.trial_lease,
        worker_patience=settings.worker_patience,
        due_work_interval=settings.due_work_interval,
        request_threads=ThreadPoolExecutor(settings.max_concurrent_requests, thread_name_prefix="request"),
    )


def periodic_tasks(services: Services, is_ending: Event) -> list[PeriodicTask]:
    """Return the tasks that a process repeats while it serves requests.

    Args:
        services: the services of the process.
        is_ending: once set, the due work begins no further unit.
    """
    absences = Absences(services.due_work_interval, services.trial_lease)
    return [
        PeriodicTask(
            name="write the last uses of API keys",
            seconds=LAST_USE_SECONDS,
            run=lambda: services.keyring.write_last_uses(services.database),
        ),
        PeriodicTask(
            name="do due work",
            seconds=services.due_work_interval,
            run=lambda: do_due_work(services.database, services.worker_patience, is_ending, absences),
        ),
        PeriodicTask(
            name="start automatic reruns",
            seconds=services.due_work_interval,
            run=lambda: services.automatic_reruns.start_waiting(services.database),
        ),
        PeriodicTask(
            name="make alerts",
            seconds=services.due_work_interval,
            run=lambda: make_due_alerts(services.database, is_ending),
        ),
        PeriodicTask(
            name="deliver alerts",
            seconds=services.due_work_interval,
            run=lambda: deliver_due(services.database, services.sender, services.metrics, is_ending),
        ),
        PeriodicTask(
            name="remove old alerts",
            seconds=RARE_WORK_SECONDS,
            run=lambda: remove_old_alerts(services.database),
        ),
        PeriodicTask(
            name="do rare due work",
            seconds=RARE_WORK_SECONDS,
            run=lambda: do_jobs(services.database, rare_jobs(), is_ending),
        ),
        PeriodicTask(
            name="fill in the lists of an earlier version's runs",
            seconds=BACKFILL_SECONDS,
            run=Backfill(services.database, services.facts, is_ending).fill_some,
        ),
    ]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the periodic tasks while requests are served; then end the event streams and close the database."""
    is_ending = Event()
    async with running_periodically(periodic_tasks(services_of(app), is_ending)):
        try:
            yield
        finally:
            is_ending.set()
    services = services_of(app)
    services.live_runs.close()
    await asyncio.to_thread(services.keyring.write_last_uses, services.database)
    services.database.close()
