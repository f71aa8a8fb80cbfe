"""How long alerts are kept, and when deliveries are given up."""

from __future__ import annotations

from datetime import timedelta

from gradmedic_service.alerts import repository
from gradmedic_service.alerts.delivering import GIVE_UP_SECONDS
from gradmedic_service.database.clock import database_time
from gradmedic_service.database.engine import Database

ALERT_DAYS = 30.0
"""Days for which an alert is kept."""
MAX_ALERTS = 10_000
"""Largest number of alerts of a project that are kept."""
UNTOLD_EVENT_DAYS = 1.0
"""Days for which an event is kept of which no alert was made. Those with an alert stay with their run, because they
show that the run was alerted."""
BATCH = 1_000
"""Largest number of alerts that one transaction deletes."""


def remove_old_alerts(database: Database) -> int:
    """Give up old deliveries, delete old alerts and old events, and return the number of alerts that were deleted."""
    with database.writing() as session:
        now = database_time(session)
        repository.end_old_deliveries(session, now - timedelta(seconds=GIVE_UP_SECONDS))
        repository.remove_untold_events(session, now - timedelta(days=UNTOLD_EVENT_DAYS))
    removed, before = 0, now - timedelta(days=ALERT_DAYS)
    while True:
        with database.writing() as session:
            count = repository.remove_alerts_before(session, before, BATCH)
        removed += count
        if count < BATCH:
            break
    with database.reading() as session:
        projects = repository.list_projects_with_alerts(session)
    for project in projects:
        with database.writing() as session:
            removed += repository.remove_alerts_beyond(session, project, MAX_ALERTS)
    return removed
