"""What the process on a Ray node tells its supervisor: lines among everything else that Ray logs of a job.

One idea: a line is complete in itself, and all of them together are short, however much and however long the trial
prints: the supervisor reads the whole log again and again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gradmedic.protocol.trials import TrialReport
from gradmedic_worker.executors.base import Lost, TrialEnd

MARK = "gradmedic-trial "
LIVE_CHARACTERS = 256 * 1024
"""Of output that is told while a trial runs; what comes later is told at its end."""


class LogWriter:
    """Writes the events of a trial."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._told = ""
        self._left = LIVE_CHARACTERS

    def output(self, text: str) -> None:
        """Tell what a trial has printed, unless much was told already."""
        if self._left > 0 and text != self._told:
            self._left -= self._tell_output(text)

    def end(self, ended: TrialEnd, output: str) -> None:
        """Tell how it ended."""
        if output != self._told:
            self._tell_output(output)
        fact = {
            "exit_code": ended.exit_code,
            "reason": ended.reason,
            "report": ended.report.to_fields(),
        }
        self._say({"ended": fact})

    def lost(self, reason: str) -> None:
        """Tell that it came to nothing."""
        self._say({"lost": reason})

    def _tell_output(self, text: str) -> int:
        kept = next((at for at, (old, new) in enumerate(zip(self._told, text, strict=False)) if old != new), None)
        kept = min(len(self._told), len(text)) if kept is None else kept
        self._told = text
        return self._say({"output": [kept, text[kept:]]})

    def _say(self, fact: dict[str, Any]) -> int:
        line = MARK + json.dumps(fact)
        self._write(line)
        return len(line)


@dataclass(slots=True)
class LogState:
    """What the events of a log say."""

    output: str = ""
    end: TrialEnd | Lost | None = None
    others: list[str] = field(default_factory=list)
    """Lines that are no events: Ray's own, and the complaints of an interpreter that could not start."""


def read_events(log: str) -> LogState:
    r"""Return what a log says; a line that is cut short says nothing yet.

    >>> read_events('Running entrypoint ...\ngradmedic-trial {"output": [0, "step 1"]}\ngradmedic-trial {"los')
    LogState(output='step 1', end=None, others=['Running entrypoint ...'])
    """
    told = LogState()
    for line in log.split("\n"):
        mark, event, content = line.partition(MARK)
        if not event:
            if mark.strip():
                told.others.append(mark)
            continue
        try:
            _add(told, json.loads(content))
        except (ValueError, KeyError, TypeError):
            continue
    return told


def _add(told: LogState, fact: dict[str, Any]) -> None:
    if "output" in fact:
        kept, added = fact["output"]
        told.output = told.output[:kept] + added
    elif "ended" in fact:
        ended = dict(fact["ended"])
        told.end = TrialEnd(**ended | {"report": TrialReport.from_fields(ended.get("report", {}))})
    elif "lost" in fact:
        told.end = Lost(str(fact["lost"]))
