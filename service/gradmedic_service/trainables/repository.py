"""Trainables in the database. A name is unique in a project; None stands for the trainables of all projects."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from gradmedic.protocol.encoding import encode_json
from gradmedic_service.database import models


def find(session: Session, owner: str, name: str) -> models.Trainable | None:
    """Read a trainable of an owner as it is now, also where this transaction has read it before."""
    return _first(session, select(models.Trainable).where(models.Trainable.owner == owner, _has_name(name)))


def find_in_project(session: Session, project: str | None, name: str) -> models.Trainable | None:
    """Read the trainable that has a name in a project, as it is now."""
    return _first(session, select(models.Trainable).where(_is_in(project), _has_name(name)))


def find_offered(session: Session, project: str, name: str) -> models.Trainable | None:
    """Read the trainable that the runs of a project mean by a name: the project's own, else one of all projects."""
    query = select(models.Trainable).where(_has_name(name), *_is_offered(project))
    return _first(session, query.order_by(models.Trainable.project.is_(None)))


def lock(session: Session, owner: str, project: str | None, names: Sequence[str]) -> dict[str, models.Trainable]:
    """Read all trainables of an owner, and those with the given names in its project; lock them for the transaction."""
    trainable = models.Trainable
    query = select(trainable).where((trainable.owner == owner) | (_is_in(project) & trainable.name.in_(names)))
    query = query.order_by(trainable.place).with_for_update()
    return {row.name: row for row in session.scalars(query.execution_options(populate_existing=True))}


def add(session: Session, trainable: models.Trainable, name: str) -> models.Trainable | None:
    """Store a trainable under a name; if its project has the name meanwhile, return the trainable that has it."""
    own_place = "\n" + hashlib.sha256(encode_json([trainable.project, name])).hexdigest()  # a name has no line break
    for place in (name, own_place):
        trainable.place, trainable.given_name = place, None if place == name else name
        try:
            with session.begin_nested():
                session.add(trainable)
        except IntegrityError:
            existing = find_in_project(session, trainable.project, name)
            if existing is not None:
                return existing
        else:
            return None
    raise RuntimeError(f"the place of the trainable {name!r} was taken and left at once")


def remove(session: Session, trainable: models.Trainable) -> None:
    """Delete a trainable."""
    session.delete(trainable)


def list_offered(session: Session, project: str | None) -> Sequence[models.Trainable]:
    """Read the trainables that a project's runs may name, or those of all projects, by name.

    Where a project and all projects have a trainable of one name, that of the project comes last.
    """
    trainable = models.Trainable
    query = select(trainable).where(*_is_offered(project))
    return session.scalars(query.order_by(trainable.name, trainable.project.is_not(None), trainable.project)).all()


def _first(session: Session, query: Select[models.Trainable]) -> models.Trainable | None:
    return session.scalars(query.limit(1).execution_options(populate_existing=True)).one_or_none()


def _has_name(name: str) -> ColumnElement[bool]:
    return models.Trainable.name == name


def _is_in(project: str | None) -> ColumnElement[bool]:
    return models.Trainable.project.is_not_distinct_from(project)


def _is_offered(project: str | None) -> tuple[ColumnElement[bool], ...]:
    trainable = models.Trainable
    is_offered = trainable.withdrawn_at.is_(None)
    return (
        (is_offered,) if project is None else (is_offered, (trainable.project == project) | trainable.project.is_(None))
    )
