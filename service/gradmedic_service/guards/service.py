"""Reading the guard actions of runs."""

from __future__ import annotations

from uuid import UUID

from gradmedic.protocol.guards import GuardActionList
from gradmedic.protocol.numbers import LARGEST_INT32
from gradmedic_service.access.principal import Principal
from gradmedic_service.database.engine import Session
from gradmedic_service.guards import repository
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.http.paging import cut_page, position_of
from gradmedic_service.runs import service as runs


def list_actions(
    session: Session, principal: Principal, run_id: UUID, page_token: str | None, max_results: int
) -> GuardActionList:
    """Return a page of the guard actions of a run, of all generations, the newest first.

    Raises RunNotFound, InvalidRequest for a token of another list.
    """
    run = runs.find_run(session, principal, run_id)
    query = f"guard actions of {run.id}"
    before = None if page_token is None else _number_of(*position_of(page_token, query, 1))
    rows = repository.list_actions(session.connection(), run.id, max_results + 1, before)
    items, token = cut_page(rows, max_results, query, lambda action: [str(action.sequence)])
    return GuardActionList(items=[*items], next_page_token=token)


def _number_of(part: str) -> int:
    is_number = part.isascii() and part.isdecimal() and len(part) <= len(str(LARGEST_INT32))
    if not is_number or int(part) > LARGEST_INT32:
        raise InvalidRequest.at("page_token", "is not a token of this list")
    return int(part)
