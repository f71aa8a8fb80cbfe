"""Due work: changes that become due as time passes. Each process of the service does it, once a second by default.

1. Trials whose lease has expired are queued again, or fail.
2. Reruns whose trainable no worker offers any more end.
3. Runs that have been silent for too long become `stalled`.
4. Runs that have been stalled for a day become `failed`. This is done less often, because it reads all runs.

Each unit of work is a short transaction of its own, about one rerun or one run. First a read finds what is due, which
takes no lock and is all that happens while nothing is due. Then each unit is checked again in its transaction, under
the lock of its row. So replicas share the work, and nothing is done twice: on PostgreSQL a replica skips the rows that
another one has locked, on SQLite one process at a time holds the right to write (BEGIN IMMEDIATE). A unit that fails,
or that a crash interrupts, is found again by the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from uuid import UUID

import structlog

from gradmedic_service.database.engine import Database, Session
from gradmedic_service.http.errors import ServiceError
from gradmedic_service.reruns import service as reruns
from gradmedic_service.runs import service as runs
from gradmedic_service.trials import service as trials
from gradmedic_service.trials.absences import Absences

MAX_UNITS = 200
"""Largest number of units of a job in one run. The next run does the rest, so that no job waits long for another."""

RARE_WORK_SECONDS = 600.0
"""Seconds between two runs of the rare jobs."""

_logger = structlog.get_logger("gradmedic.due_work")


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of work that becomes due as time passes."""

    name: str
    find: Callable[[Session, int], list[UUID]]
    """Reads the ids of the units that are due; the number is the most that it returns."""
    do: Callable[[Session, UUID], bool]
    """Does one unit, if it is still due and no other transaction does it; returns whether it did."""


def jobs(worker_patience: float, absences: Absences) -> tuple[Job, ...]:
    """Return all jobs, in the order in which they are done.

    Args:
        worker_patience: seconds that a rerun waits for a worker that offers its trainable.
        absences: the times in which this process answered no request.
    """
    return (
        Job(
            "requeue lost trials",
            lambda session, limit: trials.list_reruns_with_lost_trials(session, absences, limit),
            lambda session, rerun_id: trials.requeue_lost_trials(session, rerun_id, absences),
        ),
        Job(
            "end reruns without a worker",
            lambda session, limit: reruns.list_without_worker(session, worker_patience, limit),
            lambda session, rerun_id: reruns.end_without_worker(session, rerun_id, worker_patience),
        ),
        Job("mark stalled runs", runs.list_silent_runs, runs.mark_stalled),
    )


def rare_jobs() -> tuple[Job, ...]:
    """Return the jobs whose search is expensive and that are never urgent."""
    return (Job("fail stalled runs", runs.list_stalled_runs, runs.mark_failed),)


def do_due_work(
    database: Database, worker_patience: float, is_ending: Event | None = None, absences: Absences | None = None
) -> int:
    """Do what is due now, and return how many units were done. An error is logged, and the other units are still done.

    Args:
        database: the database of the service.
        worker_patience: seconds that a rerun waits for a worker that offers its trainable.
        is_ending: once set, no further unit is begun.
        absences: the times in which this process answered no request, the same object for every run; None for none.
    """
    known_absences = absences or Absences(interval=0.0, lease=0.0)
    return do_jobs(database, jobs(worker_patience, known_absences), is_ending)


def do_jobs(database: Database, due_jobs: Iterable[Job], is_ending: Event | None = None) -> int:
    """Do what is due now of some jobs; see `do_due_work`."""
    done = 0
    for job in due_jobs:
        unit_ids: list[UUID] = []
        with _log_errors(job.name), database.reading() as session:
            unit_ids = job.find(session, MAX_UNITS)
        for unit_id in unit_ids:
            if is_ending is not None and is_ending.is_set():
                return done
            with _log_errors(job.name, unit_id), database.writing() as session:
                done += job.do(session, unit_id)
    return done


@contextmanager
def _log_errors(job: str, unit_id: UUID | None = None) -> Iterator[None]:
    """Log an error of the block, and go on behind it."""
    unit = None if unit_id is None else str(unit_id)
    try:
        yield
    except ServiceError as error:
        _logger.warning("due work is tried again", job=job, unit_id=unit, reason=error.reason or error.detail)
    except Exception:  # any other unit, and any later run, must not depend on this one
        _logger.exception("due work is tried again", job=job, unit_id=unit)
