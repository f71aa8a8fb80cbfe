"""Projects in the database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import exists, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from gradmedic_service.database import models


def add_missing(session: Session, name: str, created_at: datetime) -> None:
    """Store a project unless it exists."""
    project = models.Project
    if session.scalar(select(exists().where(project.name == name))):
        return
    try:
        with session.begin_nested():
            session.add(project(name=name, muted_detectors=[], created_at=created_at))
    except IntegrityError:  # another transaction has stored it
        return


def find(session: Session, name: str, *, is_locked: bool = False) -> models.Project | None:
    """Return a project; with `is_locked`, no other transaction can change it until this one ends."""
    query = select(models.Project).where(models.Project.name == name)
    return session.scalars(query.with_for_update() if is_locked else query).one_or_none()


def list_by_name(
    session: Session, *, only: str | None, is_descending: bool, after: str | None, size: int
) -> Sequence[models.Project]:
    """Return the first `size` projects that follow `after` by name; with `only`, at most the project of that name."""
    name = models.Project.name
    query = select(models.Project).order_by(name.desc() if is_descending else name).limit(size)
    if only is not None:
        query = query.where(name == only)
    if after is not None:
        query = query.where(name < after if is_descending else name > after)
    return session.scalars(query).all()
