"""Where a run failed first: the step at which a gradient, a weight or the loss was not finite."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from gradmedic_service.access.principal import OPERATOR
from gradmedic_service.database.engine import Connection
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry import chunk_reading, service

_DETECTOR = "nonfinite"
_SEARCHED_STEPS = 1_000
"""Steps before the failure among which the two logged ones before it are searched."""


@dataclass(frozen=True, slots=True)
class FailedStep:
    """The first step of a run that was not finite."""

    step: int
    start: int
    """Number of steps after which every operation must be checked, so that the failing step and the one before it are.
    A loss may show one step later what a gradient did."""
    interval: int
    """Distance to the step before it."""


def find_failed_step(connection: Connection, facts: FactsCache, run_id: UUID) -> FailedStep | None:
    """Return where a run failed first; None if every number was finite, apart from steps that a loss scaler skipped."""
    diagnosis = service.diagnose(connection, OPERATOR, facts, run_id)
    steps = [finding.first_step for finding in diagnosis.findings if finding.detector == _DETECTOR]
    if not steps:
        return None
    failed = min(steps)
    before: list[int] = []
    for chunk in chunk_reading.read_chunks(connection, run_id, max(0, failed - _SEARCHED_STEPS), failed - 1):
        before += [int(step) for step in chunk.steps if step < failed]
    start = before[-2] + 1 if len(before) > 1 else 0
    return FailedStep(failed, start, failed - before[-1] if before else 1)
