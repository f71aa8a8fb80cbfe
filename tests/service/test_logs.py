"""The lines of the log."""

from __future__ import annotations

import io

from gradmedic_service.logs import LineLogger


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
