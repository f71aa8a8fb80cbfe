"""Shows how far long work is: a bar on a terminal, and else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

BAR_COLUMNS = 24
REDRAW_SECONDS = 0.1
LINE_SECONDS = 10.0
"""Seconds between two lines where the output is a file."""
_CLEAR_LINE = "\r\x1b[K"


class Progress:
    """Shows how much of some work is done, and about how long the rest takes.

    Args:
        title: what is being done.
        total: amount of work; None if it is not known.
        unit: what is counted, in the plural.
        stream: where it is shown; None shows nothing.
        clock: returns seconds.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str,
        stream: TextIO | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._stream = stream
        self._clock = clock
        self._is_terminal = stream is not None and stream.isatty()
        self._started_at = self._shown_at = clock()
        self._done = 0
        self._is_shown = False

    def update(self, done: int, total: int | None = None) -> None:
        """Show that so much is done in all, unless something was shown a moment ago."""
        self._done = done
        self._total = self._total if total is None else total
        now = self._clock()
        if self._stream is None or now - self._shown_at < (REDRAW_SECONDS if self._is_terminal else LINE_SECONDS):
            return
        self._shown_at = now
        self._is_shown = True
        if self._is_terminal:
            self._stream.write(f"{_CLEAR_LINE}{self._describe(now)}")
        else:
            self._stream.write(f"{self._describe(now)}\n")
        self._stream.flush()

    def print_line(self, text: str) -> None:
        """Print a line above the bar."""
        if self._stream is not None:
            self.clear()
            print(text, file=self._stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove the bar, so that something else can be printed. The next update draws it again."""
        if self._is_terminal and self._is_shown and self._stream is not None:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()
            self._is_shown = False

    def _describe(self, now: float) -> str:
        if not self._total:
            return f"{self._title}: {self._done:,} {self._unit}"
        share = min(1.0, self._done / self._total)
        filled = round(share * BAR_COLUMNS)
        bar = f" [{'#' * filled}{'.' * (BAR_COLUMNS - filled)}]" if self._is_terminal else ":"
        left = (now - self._started_at) * (1 - share) / share if share > 0 else None
        rest = "" if left is None or share == 1 else f", {format_duration(left)} left"
        return f"{self._title}{bar} {self._done:,} of {self._total:,} {self._unit}{rest}"


def progress_stream(*, is_quiet: bool) -> TextIO | None:
    """Return where commands show progress: standard error, or nothing with `--json`."""
    return None if is_quiet else sys.stderr


def format_duration(seconds: float) -> str:
    """Return a duration with its two largest units.

    >>> [format_duration(seconds) for seconds in (4.2, 75, 3700)]
    ['4 s', '1 min 15 s', '1 h 1 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
