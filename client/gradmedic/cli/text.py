"""Plain text for a terminal: paragraphs, tables, numbers and outcomes."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from gradmedic.protocol.diagnosis import Outcome
from gradmedic.protocol.origins import DiagnosedOrigin

_WIDEST = 100
"""Columns of a line at most: longer lines are hard to read."""


def terminal_width() -> int:
    """Return the number of columns to use."""
    return min(_WIDEST, shutil.get_terminal_size().columns)


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Break a paragraph into lines."""
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


def list_item(heading: str, paragraphs: Iterable[str], width: int) -> list[str]:
    """Return the lines of a heading with indented paragraphs below it."""
    lines = [f"  {heading}"]
    for paragraph in paragraphs:
        lines += wrap(paragraph, width, indent=" " * 6)
    return lines


def describe_origin(origin: DiagnosedOrigin, width: int) -> list[str]:
    """Return the lines about an origin: its sentence, how often it was reproduced, and what to change."""
    lines = wrap(origin.text or origin.reason or "", width)
    if origin.reproduced is not None and origin.operation is not None:
        lines += wrap(f"Kind: {(origin.kind or 'unknown').replace('_', ' ')}, reproduced {origin.reproduced}.", width)
    if (fix := origin.fix) is not None:
        lines += ["", *wrap(f"{fix.advice} More: /operations/{fix.page} of the service.", width), ""]
        lines.append(textwrap.indent(fix.snippet, " " * 8))
    return lines


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def format_time(moment: datetime) -> str:
    """Return a time to the minute, in the time zone of this machine, with the zone's name.

    >>> from datetime import UTC
    >>> local = datetime(2026, 3, 1, 12, 30, tzinfo=UTC).astimezone()
    >>> format_time(local) == f"{local:%Y-%m-%d %H:%M} {local.tzname()}"
    True
    """
    local = moment.astimezone()
    return f"{local:%Y-%m-%d %H:%M} {local.tzname()}"


def format_evidence(evidence: Mapping[str, float]) -> str:
    """Return evidence as `name = value, ...` with four digits."""
    return ", ".join(f"{name} = {_format_number(value)}" for name, value in evidence.items())


def format_loss(loss: float | None) -> str:
    """Return a loss with four digits; `?` for None.

    >>> [format_loss(loss) for loss in (1.23456, float("nan"), None)]
    ['1.235', 'NaN', '?']
    """
    return "?" if loss is None else "NaN" if math.isnan(loss) else f"{loss:.4g}"


def format_outcome(outcome: Outcome) -> str:
    """Return an outcome in one line.

    >>> from uuid import UUID
    >>> format_outcome(Outcome(state="verified", rerun_id=UUID(int=0), seeds=3, healthy=3, loss=1.31,
    ...                        control_loss=float("nan"), cost_seconds=41.2))
    'verified: healthy in 3 of 3 seeds, loss 1.31 against NaN; 41 s'
    >>> format_outcome(Outcome(state="verified", rerun_id=UUID(int=0), seeds=3, healthy=3, loss=None, control_loss=None,
    ...     cost_seconds=41.2, judged_by="maximize accuracy", judged_value=0.91, control_judged_value=0.1))
    'verified: healthy in 3 of 3 seeds, accuracy 0.91 against 0.1; 41 s'
    """
    if outcome.state == "not_applicable":
        return "not applicable"
    seeds = "1 seed" if outcome.seeds == 1 else f"{outcome.seeds} seeds"
    has_loss = outcome.loss is not None
    losses = f", loss {format_loss(outcome.loss)} against {format_loss(outcome.control_loss)}" if has_loss else ""
    if outcome.judged_by is not None and outcome.judged_value is not None:
        name = outcome.judged_by.removeprefix("maximize ").removeprefix("minimize ")
        losses += f", {name} {format_loss(outcome.judged_value)} against {format_loss(outcome.control_judged_value)}"
    return f"{outcome.state}: healthy in {outcome.healthy} of {seeds}{losses}; {outcome.cost_seconds:.0f} s"


def format_environment(outcome: Outcome) -> str:
    """Return the versions and the device of an outcome as a sentence; empty where they are not known."""
    names = [f"{name} {outcome.environment[name]}" for name in ("python", "torch") if name in outcome.environment]
    if "device" in outcome.environment:
        names.append(outcome.environment["device"])
    return f" On {', '.join(names)}." if names else ""


def _format_number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else str(value)
