"""Guard actions in the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import cast
from uuid import UUID

from sqlalchemy import Connection, Table, false, func, insert, select, update

from gradmedic.protocol.encoding import without_nonfinite
from gradmedic.protocol.guards import GuardAction, RecordedGuardAction
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.guards.report import STEP_ACTIONS

_ACTIONS = cast("Table", models.GuardAction.__table__)


def add_actions(
    connection: Connection,
    run_id: UUID,
    generation: int,
    actions: Sequence[GuardAction],
    now: datetime,
    *,
    to_step: int | None = None,
    verdict: str | None = None,
    since_step: int | None = None,
) -> None:
    """Store actions behind those that the run has. The caller holds the lock of the run's row.

    Args:
        connection: connection of the transaction that stores the steps or rewinds the run.
        run_id: id of the run.
        generation: generation of the run in which the guard acted.
        actions: the actions, in the order of their steps.
        now: time of the request.
        to_step: of a rewind, the last step that stays.
        verdict: of a rewind, the verdict on the run before it.
        since_step: of a rewind, the first step of that verdict.
    """
    last = connection.scalar(select(func.max(_ACTIONS.c.sequence)).where(_ACTIONS.c.run_id == run_id)) or 0
    connection.execute(
        insert(_ACTIONS),
        [
            {
                "run_id": run_id,
                "sequence": sequence,
                "generation": generation,
                "step": action.step,
                "to_step": to_step,
                "verdict": verdict,
                "since_step": since_step,
                "action": action.action,
                "reason": action.reason,
                "numbers": without_nonfinite(action.numbers),
                "explanation": action.explanation,
                "created_at": now,
            }
            for sequence, action in enumerate(actions, last + 1)
        ],
    )


def mark_dropped(connection: Connection, run_id: UUID, after_step: int) -> None:
    """Mark the actions whose steps a rewind drops; the rewinds among them stay as they are."""
    connection.execute(
        update(_ACTIONS)
        .where(_ACTIONS.c.run_id == run_id, _ACTIONS.c.step > after_step, _ACTIONS.c.action != "rewind")
        .values(is_dropped=True)
    )


def list_actions(
    connection: Connection, run_id: UUID, limit: int, before: int | None = None
) -> list[RecordedGuardAction]:
    """Read the newest actions of a run, the newest first; with `before`, those with a smaller number."""
    query = select(_ACTIONS).where(_ACTIONS.c.run_id == run_id)
    if before is not None:
        query = query.where(_ACTIONS.c.sequence < before)
    rows = connection.execute(query.order_by(_ACTIONS.c.sequence.desc()).limit(limit))
    return [
        RecordedGuardAction(
            sequence=row.sequence,
            generation=row.generation,
            step=row.step,
            to_step=row.to_step,
            verdict=row.verdict,
            since_step=row.since_step,
            action=row.action,
            reason=row.reason,
            numbers={name: float(number) for name, number in row.numbers.items()},
            explanation=row.explanation,
            is_dropped=row.is_dropped,
            created_at=row.created_at,
        )
        for row in rows
    ]


def count_all_actions(session: Session, run_ids: Collection[UUID]) -> dict[UUID, int]:
    """Count the actions of each of some runs, of all generations.

    The number of the last action is their count, so that one place of the primary key is read for each run.
    """
    last = select(func.max(_ACTIONS.c.sequence)).where(_ACTIONS.c.run_id == models.Run.id).scalar_subquery()
    rows = session.execute(select(models.Run.id, last).where(models.Run.id.in_(run_ids)))
    return {run_id: count or 0 for run_id, count in rows}


def count_actions(connection: Connection, run_id: UUID) -> Counter[str]:
    """Count the actions of a run, of all generations, by kind."""
    query = (
        select(_ACTIONS.c.action, func.count().label("number"))
        .where(_ACTIONS.c.run_id == run_id)
        .group_by(_ACTIONS.c.action)
    )
    return Counter({row.action: row.number for row in connection.execute(query)})


def list_rewinds(connection: Connection, run_id: UUID, limit: int) -> list[tuple[int, int]]:
    """Read the last rewinds of a run by a guard, the oldest first: the step of each, and the step that it kept."""
    query = (
        select(_ACTIONS.c.step, _ACTIONS.c.to_step)
        .where(_ACTIONS.c.run_id == run_id, _ACTIONS.c.action == "rewind")
        .order_by(_ACTIONS.c.sequence.desc())
        .limit(limit)
    )
    return [(step, to_step) for step, to_step in connection.execute(query)][::-1]


def count_steps_with_actions(connection: Connection, run_id: UUID, first: int) -> int:
    """Count the steps of a run from `first` on that a guard skipped or clipped, without those that were dropped."""
    query = select(func.count(_ACTIONS.c.step.distinct())).where(
        _ACTIONS.c.run_id == run_id,
        _ACTIONS.c.is_dropped == false(),
        _ACTIONS.c.step >= first,
        _ACTIONS.c.action.in_(STEP_ACTIONS),
    )
    return connection.scalar(query) or 0
