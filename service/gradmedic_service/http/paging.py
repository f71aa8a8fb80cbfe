"""Pages of lists. A page token holds the position of a page's last item and the query of its list.

With the query in it, a token of one list is refused by every other list.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from gradmedic.protocol.encoding import encode_json
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
        content: list[str] = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        token_query, *position = content
    except (ValueError, TypeError):
        raise InvalidRequest.at("page_token", "is not a token of this list") from None
    if token_query != query or len(position) != length or not all(isinstance(part, str) for part in position):
        raise InvalidRequest.at("page_token", "belongs to a list with other filters or another order")
    return position
