"""Pages of lists. A page token holds the position of a page's last item and the query of its list.

With the query in it, a token of one list is refused by every other list.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

import msgspec

from gradmedic.protocol.encoding import encode_json
from gradmedic.protocol.names import text_error
from gradmedic.protocol.schema import time_error
from gradmedic_service.http.errors import InvalidRequest

Item = TypeVar("Item")


def cut_page(
    rows: Sequence[Item], max_results: int, query: str, position: Callable[[Item], Sequence[str]]
) -> tuple[Sequence[Item], str | None]:
    """Return the items of a page and the token of the next page, None if there is no next page.

    Args:
        rows: the items from the page's first on. One more than `max_results` shows that there is a next page.
        max_results: the largest number of items on the page.
        query: the filters and the order of the list, as text.
        position: returns the position of an item in the list.

    >>> items, token = cut_page(["a", "b", "c"], 2, "names", lambda name: [name])
    >>> items, position_of(token, "names", 1)
    (['a', 'b'], ['b'])
    """
    items = rows[:max_results]
    return items, token_of(query, *position(items[-1])) if len(rows) > max_results else None


def token_of(query: str, *position: str) -> str:
    """Return the token of a position in the list of a query.

    >>> position_of(token_of("names", "a", "1"), "names", 2)
    ['a', '1']
    """
    return base64.urlsafe_b64encode(encode_json([query, *position])).decode().rstrip("=")


def position_of(token: str, query: str, length: int) -> list[str]:
    """Return the position, `length` strings, that a token holds. Raises InvalidRequest for a token of another list."""
    try:
        padded = token + "=" * (-len(token) % 4)
        content = msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=list[str])
        token_query, *position = content
    except ValueError:
        raise _invalid_token() from None
    if token_query != query or len(position) != length:
        raise InvalidRequest.at("page_token", "belongs to a list with other filters or another order")
    if any(text_error(part) is not None for part in position):
        raise _invalid_token()
    return position


def position_time(part: str) -> datetime:
    """Return the time that a part of a position holds. Raises InvalidRequest."""
    try:
        moment = datetime.fromisoformat(part)
    except ValueError:
        raise _invalid_token() from None
    if time_error(moment) is not None:
        raise _invalid_token()
    return moment


def position_id(part: str) -> UUID:
    """Return the id that a part of a position holds. Raises InvalidRequest."""
    try:
        return UUID(hex=part)
    except ValueError:
        raise _invalid_token() from None


def _invalid_token() -> InvalidRequest:
    return InvalidRequest.at("page_token", "is not a token of this list")
