"""The database's clock."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session


def database_time(session: Session) -> datetime:
    """Read the database's clock. Leases are judged by it alone, because the clocks of replicas and workers differ."""
    if session.get_bind().dialect.name == "sqlite":
        seconds = session.scalar(text("SELECT (julianday('now') - 2440587.5) * 86400.0"))
        return datetime.fromtimestamp(float(seconds or 0.0), UTC)
    now = session.scalar(select(func.clock_timestamp()))
    if not isinstance(now, datetime):
        raise TypeError(f"the database's clock shows {now!r}")
    return now.astimezone(UTC)
