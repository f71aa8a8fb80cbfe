"""Checks of guard actions beyond their schema: known values, numbers of entries, and lengths of texts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from gradmedic.protocol.guards import (
    GUARD_ACTIONS,
    GUARD_REASONS,
    LONGEST_EXPLANATION,
    LONGEST_NUMBER_NAME,
    MOST_GUARD_ACTIONS,
    MOST_GUARD_NUMBERS,
    GuardAction,
)
from gradmedic.protocol.names import name_error
from gradmedic.protocol.numbers import MAX_EXACT_INTEGER
from gradmedic.protocol.service import FieldError
from gradmedic.protocol.steps import RunRewind
from gradmedic_service.http.errors import MAX_PATH_LENGTH

REWIND = "rewind"
"""The action that is sent with `POST /runs/{id}/rewind`."""
BLOCK_ACTIONS = tuple(action for action in GUARD_ACTIONS if action != REWIND)


def block_errors(actions: Sequence[GuardAction], steps: Collection[int]) -> Iterator[FieldError]:
    """Yield an error for each field of a block's actions that is refused; only the number of too many actions."""
    if len(actions) > MOST_GUARD_ACTIONS:
        message = f"has {len(actions)} actions; at most {MOST_GUARD_ACTIONS} are allowed"
        yield FieldError(path="guard_actions", message=message)
        return
    for index, action in enumerate(actions):
        path = f"guard_actions[{index}]"
        if action.step not in steps:
            yield FieldError(path=f"{path}.step", message=f"must be one of the block's steps; got {action.step}")
        if action.action == REWIND:
            message = "must not be 'rewind', which is sent with POST /runs/{id}/rewind"
            yield FieldError(path=f"{path}.action", message=message)
        elif action.action not in BLOCK_ACTIONS:
            yield _unknown(f"{path}.action", action.action, BLOCK_ACTIONS)
        yield from _action_errors(path, action)


def rewind_errors(body: RunRewind) -> Iterator[FieldError]:
    """Yield an error for each field of a rewind's action that is refused."""
    action, path = body.guard_action, "guard_action"
    if action is None:
        return
    if not body.step < action.step <= MAX_EXACT_INTEGER:
        message = f"must be after step {body.step}, which stays, and at most {MAX_EXACT_INTEGER}; got {action.step}"
        yield FieldError(path=f"{path}.step", message=message)
    if action.action != REWIND:
        yield _unknown(f"{path}.action", action.action, (REWIND,))
    yield from _action_errors(path, action)


def _action_errors(path: str, action: GuardAction) -> Iterator[FieldError]:
    if action.reason not in GUARD_REASONS:
        yield _unknown(f"{path}.reason", action.reason, GUARD_REASONS)
    if len(action.numbers) > MOST_GUARD_NUMBERS:
        message = f"has {len(action.numbers)} numbers; at most {MOST_GUARD_NUMBERS} are allowed"
        yield FieldError(path=f"{path}.numbers", message=message)
    else:
        for name in action.numbers:
            if (error := name_error(name, LONGEST_NUMBER_NAME)) is not None:
                yield FieldError(path=f"{path}.numbers.{name}"[:MAX_PATH_LENGTH], message=f"the name {error}")
    if (error := name_error(action.explanation, LONGEST_EXPLANATION)) is not None:
        yield FieldError(path=f"{path}.explanation", message=error)


def _unknown(path: str, value: str, known: Sequence[str]) -> FieldError:
    return FieldError(path=path, message=f"{value[:40]!r} is not one of {', '.join(known)}")
