"""Page tokens: where a list goes on, and of which list.

One idea: a token holds the place behind the last item and a digest of the query, so that a place in one list is never
taken for one in another.
"""

from __future__ import annotations

import base64
import json

from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.http.responses import to_json


def token_of(query: str, *position: str) -> str:
    """Return the token of a position in the list of a query.

    >>> position_of(token_of("names", "a", "1"), "names", 2)
    ['a', '1']
    """
    return base64.urlsafe_b64encode(to_json([query, *position]).encode()).decode().rstrip("=")


def position_of(token: str, query: str, length: int) -> list[str]:
    """Return the position, of `length` parts, that a token holds. Raises InvalidRequest for one of another list."""
    try:
        padded = token + "=" * (-len(token) % 4)
        content: list[str] = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        found, *position = content
    except (ValueError, TypeError):
        raise InvalidRequest.at("page_token", "is not a token of this list") from None
    if found != query or len(position) != length or not all(isinstance(part, str) for part in position):
        raise InvalidRequest.at("page_token", "belongs to a list with other filters or another order")
    return position
