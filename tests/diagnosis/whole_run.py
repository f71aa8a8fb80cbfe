"""Diagnoses of whole synthetic runs, and what tests read from them."""

from __future__ import annotations

from collections.abc import Iterable

from tests.diagnosis.synthetic_run import layers

from gradmedic.protocol.diagnosis import Finding, VerdictChange
from gradmedic_diagnosis import Block, Diagnostician, UpdatedDiagnosis

STEPS = 300


def diagnose(block: Block) -> UpdatedDiagnosis:
    """Diagnose a whole run at once."""
    return Diagnostician(layers(block.present.shape[1])).update(block)


def find_finding(diagnosis: UpdatedDiagnosis, detector: str) -> Finding | None:
    """Return a detector's finding; None if it has none."""
    return next((finding for finding in diagnosis.findings if finding.detector == detector), None)


def keep_verdicts(changes: Iterable[VerdictChange], before: str = "undetermined") -> list[VerdictChange]:
    """Return the changes that changed the verdict, without those of learning and level alone.

    Args:
        changes: changes in the order of their steps.
        before: the verdict before the first of them.
    """
    kept = []
    for change in changes:
        if change.verdict != before:
            kept.append(change)
            before = change.verdict
    return kept


def list_alarms(diagnosis: UpdatedDiagnosis) -> list[tuple[int, str]]:
    """Return the unhealthy verdicts of the whole run with their steps."""
    return [(c.step, c.verdict) for c in keep_verdicts(diagnosis.changes) if c.verdict in ("vanishing", "exploding")]


def without_weights(block: Block) -> Block:
    """Return the block without weight and update norms, as from a client that sends only gradients."""
    keep = [block.statistics.index(name) for name in ("grad_norm", "nonfinite_count")]
    fields = {name: getattr(block, name) for name in Block.__dataclass_fields__}
    return Block(**{**fields, "statistics": ("grad_norm", "nonfinite_count"), "values": block.values[:, :, keep]})
