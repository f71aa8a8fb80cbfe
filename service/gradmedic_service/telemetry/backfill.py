"""Fills in what lists show of runs whose steps only an earlier version of the service has stored.

The next block of a run does the same. This is for runs that have ended. A few runs are filled in at a time, each in a
transaction of its own. Once there is none left, the search ends until the next start of the process.
"""

from __future__ import annotations

from threading import Event

from gradmedic_service.database.engine import Database
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry import repository, service

BACKFILL_SECONDS = 5.0
"""Seconds between two rounds."""
RUNS_PER_ROUND = 50
"""Number of runs of a round. A run takes some milliseconds, so that ten thousand are filled in within 20 minutes."""


class Backfill:
    """The search of one process for runs that are to be filled in."""

    def __init__(self, database: Database, facts: FactsCache, is_ending: Event) -> None:
        self._database = database
        self._facts = facts
        self._is_ending = is_ending
        self._is_done = False

    def fill_some(self) -> int:
        """Fill in some runs, the newest first; return how many."""
        if self._is_done:
            return 0
        with self._database.reading_rows() as connection:
            run_ids = repository.list_runs_without_progress(connection, RUNS_PER_ROUND)
        self._is_done = not run_ids
        filled = 0
        for run_id in run_ids:
            if self._is_ending.is_set():
                break
            with self._database.writing_rows() as connection:
                filled += service.fill_progress(connection, self._facts, run_id)
        return filled
