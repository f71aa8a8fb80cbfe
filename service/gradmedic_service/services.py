"""The services that the requests of one process share, in one frozen object, which `create_app` builds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from starlette.applications import Starlette

from gradmedic.protocol.service import Limits, Liveness
from gradmedic_service.access.keyring import Keyring
from gradmedic_service.access.rate_limits import RateLimits
from gradmedic_service.alerts.sending import Sender
from gradmedic_service.database.engine import Database
from gradmedic_service.http.metrics import Metrics
from gradmedic_service.http.routes import RouteTable
from gradmedic_service.reruns.automatic import AutomaticReruns
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry.diagnosis_cache import DiagnosisCache
from gradmedic_service.telemetry.rollup_cache import RollupCache
from gradmedic_service.telemetry.run_cache import RunCache
from gradmedic_service.web.live import LiveRuns


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of a running service. Endpoints receive single parts through `http.dependencies`."""

    database: Database
    schema_revision: str
    """The revision of the database's schema that this version of the service needs."""
    route_table: RouteTable
    limits: Limits
    """The limits that `GET /limits` publishes."""
    requires_keys: bool
    """Whether a request without an API key is refused."""
    liveness: Liveness
    """The answer to `GET /healthz`."""
    keyring: Keyring
    rate_limits: RateLimits
    metrics: Metrics
    facts: FactsCache
    run_cache: RunCache
    diagnosis_cache: DiagnosisCache
    rollup_cache: RollupCache
    live_runs: LiveRuns
    """The runs that open event streams follow."""
    automatic_reruns: AutomaticReruns
    sender: Sender
    """Sends alerts."""
    trial_lease: float
    """Seconds without a heartbeat after which another worker gets a trial."""
    worker_patience: float
    """Seconds that a rerun waits for a worker that offers its trainable."""
    due_work_interval: float
    """Seconds between two runs of the due work."""
    request_threads: ThreadPoolExecutor
    """The threads of direct routes: one for each request that may be served at the same time."""


def provide_services(app: Starlette, services: Services) -> None:
    """Make an application use these services, from the next request on."""
    app.state.services = services


def services_of(app: Starlette) -> Services:
    """Return the services of an application: `services_of(request.app)` or `services_of(scope["app"])`."""
    services: Services = app.state.services
    return services
