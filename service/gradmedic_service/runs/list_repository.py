"""Lists of runs in the database: pages in any order, counts, and groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    Select,
    Text,
    and_,
    case,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    tuple_,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import Session, selectinload

from gradmedic.protocol.ids import SHORT_ID, id_digits
from gradmedic.protocol.reviews import NO_REVIEW
from gradmedic.protocol.runs import STATUSES
from gradmedic.protocol.verdicts import LEVELS, VERDICTS
from gradmedic_service.database import models
from gradmedic_service.database.json_values import JsonNumber, JsonText
from gradmedic_service.runs.run_query import CONFIG_PREFIX, INDEXED_SORTS, Position, RunQuery, ValueFilter

Row = tuple[models.Run, Position | None]
"""A run, and its place in the order of the list; None where the order is that of an indexed column."""


def read_page(session: Session, query: RunQuery, size: int) -> Sequence[Row]:
    """Read the first `size` runs of a query, with their tags."""
    if query.sort_key in INDEXED_SORTS:
        return [(run, None) for run in _read_indexed_page(session, query, size)]
    run = models.Run
    place = _place(query.sort_key)
    statement = _filtered(select(run.id, *place), query, query.sort_key).limit(size).offset(query.skip)
    missing, *value = place
    if query.after is not None:
        position = cast("tuple[Position, UUID]", query.after)
        statement = statement.where(_is_after(position, missing, value, is_descending=query.is_descending))
    key = (*value, run.id)
    statement = statement.order_by(missing, *(part.desc() for part in key) if query.is_descending else key)
    rows = session.execute(statement).all()
    runs = _read_runs(session, [row[0] for row in rows])
    return [(runs[row[0]], cast("Position", tuple(row[1:]))) for row in rows if row[0] in runs]


def read_configs(session: Session, run_ids: Collection[UUID]) -> dict[UUID, dict[str, Any]]:
    """Read the hyperparameters of runs."""
    details = models.RunDetails
    rows = session.execute(select(details.run_id, details.config).where(details.run_id.in_(run_ids)))
    return {row.run_id: row.config for row in rows}


def read_newest_columns(session: Session, query: RunQuery, size: int) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """Read the hyperparameters and the last values of the newest `size` runs of a query."""
    run = models.Run
    statement = select(models.RunDetails.config, run.last_values).join(run, run.id == models.RunDetails.run_id)
    newest = statement.where(*_conditions(query)).order_by(run.created_at.desc(), run.id.desc()).limit(size)
    return [(config, last_values or {}) for config, last_values in session.execute(newest)]


@dataclass(frozen=True, slots=True)
class CountedRuns:
    """Numbers of runs by level, verdict and status."""

    levels: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)


def count_runs(session: Session, query: RunQuery) -> CountedRuns:
    """Count the runs of a query."""
    run = models.Run
    kinds = (run.level, run.verdict, run.status)
    counted = CountedRuns()
    rows = session.execute(_filtered(cast("Select[Any]", select(*kinds, func.count())), query).group_by(*kinds))
    for level, verdict, status, count in rows:
        counted.levels[level] += count
        counted.verdicts[verdict] += count
        counted.statuses[status] += count
    return counted


def count_groups(session: Session, query: RunQuery, key: str) -> dict[float | str | None, Counter[str]]:
    """Count the runs of a query by the value of a key, and by level."""
    number, text = _values_of(key)
    keyed = _filtered(select(number.label("number"), text.label("text"), models.Run.level), query, key)
    values = keyed.subquery()
    columns = (values.c.number, values.c.text, values.c.level)
    groups: dict[float | str | None, Counter[str]] = {}
    for found_number, found_text, level, count in session.execute(select(*columns, func.count()).group_by(*columns)):
        value = found_text if found_number is None else found_number
        groups.setdefault(value, Counter())[level] += count
    return groups


def _read_indexed_page(session: Session, query: RunQuery, size: int) -> Sequence[models.Run]:
    column = getattr(models.Run, query.sort_key)
    position = tuple_(column, models.Run.id)
    statement = _filtered(select(models.Run).options(selectinload(models.Run.tags)), query)
    statement = statement.limit(size).offset(query.skip)
    if query.after is not None:
        after = tuple_(*query.after, types=[column.type, models.Run.id.type])
        statement = statement.where(position < after if query.is_descending else position > after)
    if query.is_descending:
        return session.scalars(statement.order_by(column.desc(), models.Run.id.desc())).all()
    return session.scalars(statement.order_by(column, models.Run.id)).all()


def _read_runs(session: Session, run_ids: Collection[UUID]) -> dict[UUID, models.Run]:
    query = select(models.Run).where(models.Run.id.in_(run_ids)).options(selectinload(models.Run.tags))
    return {run.id: run for run in session.scalars(query)}


def _filtered(statement: Select[Any], query: RunQuery, *keys: str) -> Select[Any]:
    """Add the conditions of a query, and the table of what the keys or the filters on values read."""
    if any(key.startswith(CONFIG_PREFIX) for key in (*keys, *(condition.key for condition in query.values))):
        statement = statement.join(models.RunDetails, models.RunDetails.run_id == models.Run.id)
    return statement.where(*_conditions(query))


def _values_of(key: str) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """Return the number and the text under a key of a run; at most one of them is not null."""
    run = models.Run
    if key.startswith(CONFIG_PREFIX):
        config, name = models.RunDetails.config, key.removeprefix(CONFIG_PREFIX)
        return JsonNumber(config, name), JsonText(config, name)
    no_number, no_text = sql_cast(null(), Double), sql_cast(null(), Text)
    match key:
        case "level" | "verdict" | "status":
            order = {"level": LEVELS, "verdict": VERDICTS, "status": STATUSES}[key]
            ranks = {value: literal(float(rank), Double) for rank, value in enumerate(order)}
            return case(ranks, value=getattr(run, key)), no_text
        case "last_step":
            return sql_cast(run.last_step, Double), no_text
        case "duration":
            return cast("ColumnElement[Any]", run.duration), no_text
        case "project" | "group" | "first_bad_layer":
            return no_number, getattr(run, key)
        case _:  # the loss or a metric, whose names are those of the last values
            return JsonNumber(run.last_values, key, is_path=False), JsonText(run.last_values, key, is_path=False)


def _place(key: str) -> tuple[ColumnElement[Any], ...]:
    """Return the place of a run in the order by a key, see `Position`."""
    number, text = _values_of(key)
    is_missing = and_(number.is_(None), text.is_(None))
    return (
        case((is_missing, 1), else_=0).label("is_missing"),
        case((number.is_(None), 1), else_=0).label("is_text"),
        func.coalesce(number, literal(0.0, Double)).label("number"),
        func.coalesce(text, literal("", Text)).label("text"),
    )


def _is_after(
    position: tuple[Position, UUID],
    missing: ColumnElement[Any],
    value: Sequence[ColumnElement[Any]],
    *,
    is_descending: bool,
) -> ColumnElement[bool]:
    """Return the condition of the runs behind a position: those without a value are always last."""
    (is_missing, *place), run_id = position
    types = [Integer(), Double(), Text(), models.Run.id.type]
    here, there = tuple_(*map(_element, value), models.Run.id), tuple_(*place, run_id, types=types)
    follows = here < there if is_descending else here > there
    missing = _element(missing)
    return or_(missing > is_missing, and_(missing == is_missing, follows))


def _element(label: Any) -> ColumnElement[Any]:
    """Return what a label of a column stands for: a condition cannot name the label."""
    return cast("ColumnElement[Any]", label.element)


def _conditions(query: RunQuery) -> list[ColumnElement[bool]]:
    run = models.Run
    conditions: list[ColumnElement[bool]] = []
    if query.reachable_project is not None:
        conditions.append(run.project == query.reachable_project)
    if query.reachable_run is not None:
        conditions.append(run.id == query.reachable_run)
    for name in ("project", "verdict", "learning", "level", "status"):
        wanted = getattr(query, name)
        if wanted is not None:
            conditions.append(getattr(run, name) == wanted)
    if query.review == NO_REVIEW:
        conditions.append(~exists().where(models.RunReview.run_id == run.id))
    elif query.review is not None:
        review = models.RunReview
        conditions.append(exists().where(review.run_id == run.id, review.answer == query.review))
    if query.tag is not None:
        conditions.append(exists().where(models.RunTag.run_id == run.id, models.RunTag.tag == query.tag))
    if query.group is not None:
        conditions.append(run.group == query.group if query.group else run.group.is_(None))
    conditions.append(run.parent_id.is_(None) if query.parent_id is None else run.parent_id == query.parent_id)
    if query.text is not None:
        conditions.append(_text_condition(query.text))
    conditions += map(_value_condition, query.values)
    return conditions


def _text_condition(text: str) -> ColumnElement[bool]:
    run = models.Run
    places = [
        run.name.icontains(text, autoescape=True),
        run.group.icontains(text, autoescape=True),
        run.details.has(models.RunDetails.notes.icontains(text, autoescape=True)),
    ]
    digits = id_digits(text)
    if len(digits) >= SHORT_ID:
        # SQLite stores the digits alone, PostgreSQL writes hyphens between them.
        id_text = func.replace(sql_cast(run.id, Text), "-", "", type_=Text)
        places += [id_text.startswith(digits), id_text.endswith(digits)]
    return or_(*places)


def _value_condition(condition: ValueFilter) -> ColumnElement[bool]:
    number, text = _values_of(condition.key)
    operand = condition.operand
    if operand is None:
        is_missing = and_(number.is_(None), text.is_(None))
        return is_missing if condition.operator == "=" else ~is_missing
    value: ColumnElement[Any] = number if isinstance(operand, float) else text
    bound = literal(operand, Double if isinstance(operand, float) else Text)
    match condition.operator:
        case "=":
            return value == bound
        case "!=":
            return or_(value.is_(None), value != bound)
        case "<":
            return value < bound
        case "<=":
            return value <= bound
        case ">":
            return value > bound
        case ">=":
            return value >= bound
