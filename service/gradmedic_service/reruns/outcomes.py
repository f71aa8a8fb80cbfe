"""Outcomes: what the reruns of a run have shown, written into its diagnosis."""

from __future__ import annotations

import math
from dataclasses import replace
from uuid import UUID

from pydantic import TypeAdapter

from gradmedic.protocol.diagnosis import Advice, Diagnosis, Outcome, Tried
from gradmedic.protocol.encoding import encode_json
from gradmedic.protocol.remedies import Remedy
from gradmedic_service.database.engine import Connection
from gradmedic_service.http.validation import BUILT_WHEN_USED
from gradmedic_service.reruns import repository
from gradmedic_service.reruns.experiment import CandidateOutcome

CANDIDATES = TypeAdapter(list[list[Remedy]], config=BUILT_WHEN_USED)
OUTCOMES = TypeAdapter(list[CandidateOutcome], config=BUILT_WHEN_USED)


def add_outcomes(connection: Connection, diagnosis: Diagnosis) -> Diagnosis:
    """Return a diagnosis with the outcomes of its run's reruns. Verified remedies come first, by their loss."""
    tried = [
        Tried(
            remedies=CANDIDATES.validate_python(rerun.candidates)[outcome.candidate],
            outcome=published_outcome(rerun.id, outcome),
            reason=outcome.reason,
        )
        for rerun in repository.list_concluded(connection, diagnosis.run_id)
        for outcome in OUTCOMES.validate_python(rerun.outcomes)
    ]
    if not tried:
        return diagnosis
    # The latest rerun comes first in `tried`, so that its outcome replaces those of earlier reruns.
    outcomes = {_key(entry.remedies[0]): entry.outcome for entry in reversed(tried) if len(entry.remedies) == 1}
    advice = [replace(entry, outcome=outcomes.get(_key(entry.remedy))) for entry in diagnosis.advice]
    advice.sort(key=_verified_loss)
    ranked = [replace(entry, rank=rank) for rank, entry in enumerate(advice, start=1)]
    return replace(diagnosis, advice=ranked, tried=tried)


def published_outcome(rerun_id: UUID, outcome: CandidateOutcome) -> Outcome:
    """Return a candidate's outcome as the API shows it."""
    return Outcome(
        state=outcome.state,
        rerun_id=rerun_id,
        seeds=outcome.seeds,
        healthy=outcome.healthy,
        loss=outcome.loss,
        control_loss=outcome.control_loss,
        cost_seconds=outcome.cost_seconds,
        environment=dict(outcome.environment),
    )


def _verified_loss(advice: Advice) -> float:
    """Return the loss of a verified remedy; infinity for any other, so that it is sorted behind."""
    outcome = advice.outcome
    if outcome is None or outcome.state != "verified" or outcome.loss is None:
        return math.inf
    return outcome.loss


def _key(remedy: Remedy) -> bytes:
    return encode_json([remedy.id, sorted(remedy.parameters.items())])
