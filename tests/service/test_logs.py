"""The lines of the log."""

from __future__ import annotations

import io
from enum import StrEnum
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from gradmedic_service.logs import LineLogger, PlainRenderer


class FullDisk(io.StringIO):
    """A stream to which nothing can be written."""

    def write(self, _text: str) -> int:
        """Fail."""
        raise OSError(28, "No space left on device")


def test_a_line_is_written_at_once() -> None:
    """A line is written with its end in one call, so that threads do not mix their lines."""
    written: list[str] = []
    stream = io.StringIO()
    stream.write = lambda text: written.append(text) or len(text)  # type: ignore[method-assign, func-returns-value]
    LineLogger(stream, "gradmedic.test").info("a line")
    assert written == ["a line\n"]


def test_a_line_that_cannot_be_written_is_lost() -> None:
    """A full disk or a closed stream fails no request."""
    closed = io.StringIO()
    closed.close()
    for stream in (FullDisk(), closed):
        LineLogger(stream, "gradmedic.test").warning("a line")


VALUES = st.none() | st.integers() | st.floats() | st.text() | st.binary(max_size=3) | st.lists(st.text(max_size=3))
LEVELS = st.sampled_from(["debug", "info", "warning", "error", "critical", "exception"])
NAMES = st.text(min_size=1, max_size=20)
EVENTS = st.fixed_dictionaries({"timestamp": NAMES, "level": LEVELS, "event": NAMES, "logger": NAMES})


@given(event=EVENTS, values=st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), VALUES, max_size=5))
def test_plain_lines_are_those_of_structlogs_console(event: dict[str, Any], values: dict[str, Any]) -> None:
    """A line without colors is the same as that of structlog's own renderer, for any values."""
    console = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    event = {**values, **event}
    assert PlainRenderer()(None, "info", dict(event)) == console(None, "info", dict(event))


class Color(StrEnum):
    """A text that is more than a text."""

    RED = "red"


@pytest.mark.parametrize(
    "event",
    [
        {"timestamp": "t", "level": "info", "event": "e", "logger": "l", "color": Color.RED, "other": str(Color.RED)},
        {"timestamp": "t", "level": "info", "event": "e"},
        {"timestamp": "t", "level": "info", "event": "", "logger": "l"},
        {"level": "info", "event": "e", "logger": "l", "n": 1},
        {"timestamp": "t", "level": "info", "event": "e", "logger": "", "logger_name": "n"},
        {"timestamp": "t", "level": "info", "event": "e", "logger": "l", "logger_name": "n"},
    ],
)
def test_odd_plain_lines_are_those_of_structlogs_console(event: dict[str, Any]) -> None:
    """Also an event without some of the columns, or with a text of another type, has the console's line."""
    console = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    assert PlainRenderer()(None, "info", dict(event)) == console(None, "info", dict(event))


def test_a_plain_line_with_a_traceback() -> None:
    """An event with an error has the traceback below its line, without the values of variables."""
    event: dict[str, Any] = {"timestamp": "t", "level": "error", "event": "failed", "logger": "gradmedic.test"}
    with pytest.raises(ValueError, match="the reason") as caught:
        raise ValueError("the reason")
    lines = PlainRenderer()(None, "error", {**event, "exc_info": caught.value}).splitlines()
    assert lines[0] == "t [error    ] failed [gradmedic.test]"
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: the reason"
