"""The events that the process on a Ray node writes for the worker, as lines of the job's log.

Each line is complete in itself. All lines together are short, however much the trial prints, because the worker reads
the whole log repeatedly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gradmedic.protocol.trial_report import TrialReport
from gradmedic_worker.executors.base import LostAttempt, TrialEnd

EVENT_PREFIX = "gradmedic-trial "
"""Start of a line that is an event."""
LIVE_OUTPUT_CHARACTERS = 256 * 1024
"""Characters of output events that are written while a trial runs. Later output is written at its end."""


class LogWriter:
    """Writes the events of a trial."""

    def __init__(self, write_line: Callable[[str], None]) -> None:
        self._write_line = write_line
        self._output = ""
        self._characters_left = LIVE_OUTPUT_CHARACTERS

    def write_output(self, output: str) -> None:
        """Write the output so far. Does nothing if it has not changed, or if too much has been written."""
        if self._characters_left > 0 and output != self._output:
            self._characters_left -= self._write_change(output)

    def write_end(self, end: TrialEnd, output: str) -> None:
        """Write how the trial ended, and its whole output."""
        if output != self._output:
            self._write_change(output)
        event = {"exit_code": end.exit_code, "reason": end.reason, "report": end.report.to_fields()}
        self._write_event({"ended": event})

    def write_loss(self, reason: str) -> None:
        """Write that the attempt is lost."""
        self._write_event({"lost": reason})

    def _write_change(self, output: str) -> int:
        """Write how the output differs from the last one: the length of the common start, and the rest."""
        pairs = enumerate(zip(self._output, output, strict=False))
        shorter = min(len(self._output), len(output))
        common = next((index for index, (old, new) in pairs if old != new), shorter)
        self._output = output
        return self._write_event({"output": [common, output[common:]]})

    def _write_event(self, event: dict[str, Any]) -> int:
        """Write an event and return the length of its line."""
        line = EVENT_PREFIX + json.dumps(event)
        self._write_line(line)
        return len(line)


@dataclass(slots=True)
class LogState:
    """The state of a trial after all events of a log."""

    output: str = ""
    """The trial's output so far."""
    end: TrialEnd | LostAttempt | None = None
    """How the trial ended; None while it runs."""
    other_lines: list[str] = field(default_factory=list)
    """Lines that are no events: Ray's own, and the errors of an interpreter that could not start."""


def read_log(log: str) -> LogState:
    r"""Return the state of a trial from its job's log. An incomplete line is ignored.

    >>> read_log('Running entrypoint ...\ngradmedic-trial {"output": [0, "step 1"]}\ngradmedic-trial {"los')
    LogState(output='step 1', end=None, other_lines=['Running entrypoint ...'])
    """
    state = LogState()
    for line in log.split("\n"):
        before, prefix, content = line.partition(EVENT_PREFIX)
        if not prefix:
            if before.strip():
                state.other_lines.append(before)
            continue
        try:
            _apply_event(state, json.loads(content))
        except (ValueError, KeyError, TypeError):
            continue
    return state


def _apply_event(state: LogState, event: dict[str, Any]) -> None:
    if "output" in event:
        common, added = event["output"]
        state.output = state.output[:common] + added
    elif "ended" in event:
        end = dict(event["ended"])
        state.end = TrialEnd(**end | {"report": TrialReport.from_fields(end.get("report", {}))})
    elif "lost" in event:
        state.end = LostAttempt(str(event["lost"]))
