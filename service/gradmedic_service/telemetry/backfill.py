"""Fills in what lists show of runs whose steps only an earlier version of the service has stored.

The next block of a run does the same. This is for runs that have ended. A few runs are filled in at a time, each in a
transaction of its own. Once there is none left, the search ends until the next start of the process. A run whose stored
steps cannot be read is left as it is.
"""

from __future__ import annotations

from threading import Event
from uuid import UUID

import structlog

from gradmedic_service.database.engine import Database
from gradmedic_service.http.errors import ServiceError
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry import repository, service

BACKFILL_SECONDS = 5.0
"""Seconds between two rounds."""
RUNS_PER_ROUND = 50
"""Number of runs of a round. A run takes some milliseconds, so that ten thousand are filled in within 20 minutes."""

_logger = structlog.get_logger("gradmedic.telemetry")


class Backfill:
    """The search of one process for runs that are to be filled in."""

    def __init__(self, database: Database, facts: FactsCache, is_ending: Event) -> None:
        self._database = database
        self._facts = facts
        self._is_ending = is_ending
        self._is_done = False
        self._unreadable: set[UUID] = set()

    def fill_some(self) -> int:
        """Fill in some runs, the newest first; return how many. Raises ServiceError if the database does not answer."""
        if self._is_done:
            return 0
        with self._database.reading_rows() as connection:
            found = repository.list_runs_without_progress(connection, RUNS_PER_ROUND + len(self._unreadable))
        run_ids = [run_id for run_id in found if run_id not in self._unreadable]
        self._is_done = not run_ids
        return sum(self._fill(run_id) for run_id in run_ids)

    def _fill(self, run_id: UUID) -> bool:
        """Fill in a run; return whether it was done."""
        if self._is_ending.is_set():
            return False
        try:
            return service.fill_progress(self._database, self._facts, run_id)
        except ServiceError:
            raise
        except Exception:
            self._unreadable.add(run_id)
            _logger.exception("a run's lists cannot be filled in", run_id=str(run_id))
            return False
