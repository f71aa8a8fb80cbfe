"""Automatic reruns: a run that turns unhealthy is rerun without a request, where its project wants that.

The rerun starts after the append that showed the trouble, in a transaction of its own: whatever goes wrong with it, the
steps are stored and acknowledged. If the process ends between the two, the client has no answer yet. It sends its steps
again, the service ignores them, and such an append asks for the rerun too.
"""

from __future__ import annotations

import threading
from http import HTTPStatus
from uuid import UUID

import structlog

from gradmedic.protocol.service import Limits
from gradmedic.protocol.steps import AppendResult
from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS
from gradmedic_service.access.principal import Principal
from gradmedic_service.database.engine import Database
from gradmedic_service.http.errors import ServiceError
from gradmedic_service.http.metrics import Metrics
from gradmedic_service.reruns import service
from gradmedic_service.runs.facts import FactsCache

MAX_WAITING = 1_000
"""Largest number of runs that wait for the database. A run beyond it is rerun at its next alarm."""

_logger = structlog.get_logger("gradmedic.reruns")


class AutomaticReruns:
    """Starts the automatic reruns of a process; safe to share between threads.

    Args:
        limits: the limits of the service.
        facts: the facts of runs.
        metrics: count the reruns that were started, refused, or failed to start.
    """

    def __init__(self, limits: Limits, facts: FactsCache, metrics: Metrics) -> None:
        self._limits = limits
        self._facts = facts
        self._metrics = metrics
        self._lock = threading.Lock()
        self._waiting: dict[UUID, Principal] = {}

    def start_after(self, database: Database, principal: Principal, run_id: UUID, result: AppendResult) -> None:
        """Start the rerun that an append calls for. Its transaction must have ended. Errors are logged and counted.

        Args:
            database: the database of the service.
            principal: the sender of the steps. A rerun needs the scope `rerun`.
            run_id: the run.
            result: the answer to the append.
        """
        is_repeated = result.ignored > 0 and result.verdict in UNHEALTHY_VERDICTS
        if (result.alerts or is_repeated) and principal.has_scope("rerun"):
            self._start(database, principal, run_id)

    def start_waiting(self, database: Database) -> None:
        """Start the reruns that the database could not store at once. A periodic task calls it."""
        with self._lock:
            waiting = list(self._waiting.items())
        for run_id, principal in waiting:
            self._start(database, principal, run_id)

    def _start(self, database: Database, principal: Principal, run_id: UUID) -> None:
        is_waiting = False
        try:
            with database.reading() as session:
                is_due = service.has_automatic_rerun_due(session, run_id)
            if is_due:
                with database.writing() as session:
                    is_due = service.start_automatically(session, principal, self._facts, self._limits, run_id)
            if is_due:
                self._metrics.count_automatic_rerun("started")
        except ServiceError as error:
            is_waiting = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR  # the database is busy, away or full
            _logger.warning("run not rerun automatically", run_id=str(run_id), reason=error.reason or error.detail)
            self._metrics.count_automatic_rerun("failed" if is_waiting else "refused")
        except Exception:  # no error of a rerun may become the answer to an append
            _logger.exception("run not rerun automatically", run_id=str(run_id))
            self._metrics.count_automatic_rerun("failed")
        with self._lock:
            if not is_waiting:
                self._waiting.pop(run_id, None)
            elif len(self._waiting) < MAX_WAITING:
                self._waiting[run_id] = principal
