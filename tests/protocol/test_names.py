"""The names that the service accepts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmedic.protocol.names import LONGEST_NAME, name_error, text_error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must not be empty"),
        (" ", "must not be empty"),
        ("a" * (LONGEST_NAME + 1), "has 513 characters; at most 512 are allowed"),
        ("nul\x00", "must not contain the NUL character"),
        ("tab\t", "must not contain control characters"),
        ("lone\ud800", "is not valid Unicode"),
    ],
)
def test_bad_names_have_a_reason(name: str, message: str) -> None:
    """Each kind of bad name has a message of its own."""
    assert name_error(name) == message


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=LONGEST_NAME))
def test_printable_names_are_accepted(name: str) -> None:
    """Letters, digits, punctuation and symbols of any language make a good name."""
    assert name_error(name) is None
    assert text_error(name) is None
