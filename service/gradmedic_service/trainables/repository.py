"""Trainables in the database."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from gradmedic_service.database import models


def find(session: Session, name: str) -> models.Trainable | None:
    """Read a trainable as it is now, also where this transaction has read it before."""
    query = select(models.Trainable).where(models.Trainable.name == name)
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def lock(session: Session, owner: str, names: Sequence[str]) -> dict[str, models.Trainable]:
    """Read all trainables of an owner, and those with the given names; lock them until the transaction ends."""
    trainable = models.Trainable
    query = select(trainable).where((trainable.owner == owner) | trainable.name.in_(names)).order_by(trainable.name)
    rows = session.scalars(query.with_for_update().execution_options(populate_existing=True))
    return {row.name: row for row in rows}


def add(session: Session, trainable: models.Trainable) -> bool:
    """Store a trainable; return False if its name was taken meanwhile."""
    try:
        with session.begin_nested():
            session.add(trainable)
    except IntegrityError:
        return False
    return True


def list_offered(session: Session, project: str | None) -> Sequence[models.Trainable]:
    """Read the trainables that a project's runs may name, or those of all projects, by name."""
    query = select(models.Trainable).where(models.Trainable.withdrawn_at.is_(None)).order_by(models.Trainable.name)
    if project is not None:
        query = query.where(models.Trainable.project.in_([project]) | models.Trainable.project.is_(None))
    return session.scalars(query).all()
