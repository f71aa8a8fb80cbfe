"""Pages of lists and their tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.odd_values import TEXTS, TIMES, odd_tokens

from gradmedic.protocol.names import text_error
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.http.paging import cut_page, position_id, position_of, position_time, token_of


@given(st.integers(0, 8), st.integers(1, 5))
def test_pages_together_hold_every_item_once(count: int, size: int) -> None:
    """A reader who follows the tokens gets every item once, and only the last page has no token."""
    items = [str(number) for number in range(count)]
    first, read, pages = 0, list[str](), 0
    while True:
        page, token = cut_page(items[first : first + size + 1], size, "numbers", lambda item: [item])
        read += page
        pages += 1
        if token is None:
            break
        first = int(position_of(token, "numbers", 1)[0]) + 1
    assert read == items
    assert pages == max(1, -(-count // size))


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("!", "is not a token of this list"),
        ("W10", "is not a token of this list"),
        (token_of("other", "a"), "belongs to a list with other filters or another order"),
        (token_of("names", "a", "b"), "belongs to a list with other filters or another order"),
    ],
)
def test_foreign_tokens_are_refused(token: str, message: str) -> None:
    """A text that is no token and a token of another list are refused under `page_token`."""
    with pytest.raises(InvalidRequest) as caught:
        position_of(token, "names", 1)
    assert [(error.path, error.message) for error in caught.value.errors] == [("page_token", message)]


def test_odd_tokens_are_refused_or_hold_text() -> None:
    """Whatever a token holds, it is refused under `page_token`, or its position is text that a database stores."""
    for token in odd_tokens(token_of("names", "a")):
        paths, position = set(), []
        try:
            position = position_of(token, "names", 1)
        except InvalidRequest as refusal:
            paths = {error.path for error in refusal.errors}
        assert paths == {"page_token"} or text_error(position[0]) is None


@pytest.mark.parametrize("part", [*TIMES, *TEXTS])
def test_odd_times_and_ids_are_refused(part: str) -> None:
    """A part of a position that is no id, or no time within the calendar of every database, is refused."""
    for read in (position_time, position_id):
        with pytest.raises(InvalidRequest) as caught:
            read(part)
        assert [error.path for error in caught.value.errors] == ["page_token"]


def test_tokens_of_earlier_releases_are_read() -> None:
    """A token that an earlier release has made holds the same position."""
    assert position_of("WyJwcm9qZWN0cyBieSBuYW1lIiwiY2hhci1sbSJd", "projects by name", 1) == ["char-lm"]
