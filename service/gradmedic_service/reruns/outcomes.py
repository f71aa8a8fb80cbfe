"""Outcomes: what the reruns of a run have shown, written into its diagnosis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID

from pydantic import TypeAdapter

from gradmedic.protocol.diagnosis import Advice, Diagnosis, Outcome, Tried
from gradmedic.protocol.encoding import encode_json
from gradmedic.protocol.origins import Origin
from gradmedic.protocol.remedies import SET_PARAMETER, Remedy
from gradmedic_diagnosis.origin import diagnose_origin
from gradmedic_diagnosis.remedies import CATALOGUE
from gradmedic_diagnosis.snippets import write_snippet
from gradmedic_service.database.engine import Connection
from gradmedic_service.http.validation import BUILT_WHEN_USED
from gradmedic_service.reruns import repository
from gradmedic_service.reruns.experiment import CandidateOutcome
from gradmedic_service.reruns.repository import RerunResult

CANDIDATES = TypeAdapter(list[list[Remedy]], config=BUILT_WHEN_USED)
OUTCOMES = TypeAdapter(list[CandidateOutcome], config=BUILT_WHEN_USED)
ORIGIN = TypeAdapter(Origin | None, config=BUILT_WHEN_USED)
PROOF: Final = ("verified", "healthy", None, "failed", "not_applicable")
"""States of outcomes, the best proof first. None: it was not tried."""


def add_results(connection: Connection, diagnosis: Diagnosis, *, is_latest: bool) -> Diagnosis:
    """Return a diagnosis with the results of its run's reruns: the origin, and the outcomes of the remedies.

    `is_latest` says that the diagnosis is not one of an earlier step. A rerun may fail later than its run did.
    """
    reruns = repository.list_results(connection, diagnosis.run_id)
    located = (each for each in reruns if each.origin is not None and each.origin["operation"] is not None)
    if (found := next(located, None)) is not None:
        origin = ORIGIN.validate_python(found.origin)
        last_step = origin.step if is_latest and origin is not None else diagnosis.step
        diagnosed = diagnose_origin(origin, last_step, found.framework)
        diagnosis = diagnosis if diagnosed is None else replace(diagnosis, origin=diagnosed)
    compared = [each for each in reruns if each.outcomes is not None]
    return _add_outcomes(diagnosis, compared) if compared else diagnosis


def _add_outcomes(diagnosis: Diagnosis, reruns: Sequence[RerunResult]) -> Diagnosis:
    """Return a diagnosis with the outcomes of its run's reruns, the latest first, and its advice sorted by proof.

    What was verified and is not advised, such as a combination of remedies, becomes advice.
    """
    by_rerun = [
        [
            Tried(
                remedies=CANDIDATES.validate_python(rerun.candidates)[outcome.candidate],
                outcome=published_outcome(rerun.id, outcome),
                reason=outcome.reason,
            )
            for outcome in OUTCOMES.validate_python(rerun.outcomes)
        ]
        for rerun in reruns
    ]
    # The outcome of a later rerun replaces those of earlier ones, and so does that of a later round, whose trials are
    # longer.
    latest = {_key(entry.remedies): entry for entries in reversed(by_rerun) for entry in entries}
    advice = [
        replace(entry, outcome=found.outcome) if (found := latest.get(_key(entry.remedies))) is not None else entry
        for entry in diagnosis.advice
    ]
    advised = {_key(entry.remedies) for entry in advice}
    advice += [
        _advise(entry, diagnosis.advice, reruns[0].framework)
        for key, entry in latest.items()
        if key not in advised and entry.outcome.state == "verified"
    ]
    advice.sort(key=_order_of_proof)
    ranked = [replace(entry, rank=rank) for rank, entry in enumerate(advice, start=1)]
    return replace(diagnosis, advice=ranked, tried=[entry for entries in by_rerun for entry in entries])


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
        judged_by=outcome.judged_by,
        judged_value=outcome.judged_value,
        control_judged_value=outcome.control_judged_value,
    )


def _advise(tried: Tried, advice: Sequence[Advice], framework: str | None) -> Advice:
    """Return advice for remedies that were verified together, with code for the run's framework.

    `advice` is that of the diagnosis.
    """
    first, *others = tried.remedies
    rows = {row.id: row for row in CATALOGUE}  # of several rows of a remedy, any has its cost
    parts = [rows[remedy.id] for remedy in tried.remedies if remedy.id in rows]
    reasons = {entry.remedy.id: entry.reason for entry in advice}
    return Advice(
        remedy=first,
        with_remedies=others,
        rank=0,
        reason=" ".join(reasons.get(part.id, part.reason) for part in parts) or "It was verified on this job.",
        cost=" ".join(part.cost for part in parts) or "None.",
        snippet="\n".join(_write_code(remedy, framework) for remedy in tried.remedies),
        sources=list(dict.fromkeys(source for part in parts for source in part.sources)),
        outcome=tried.outcome,
    )


def _write_code(remedy: Remedy, framework: str | None) -> str:
    """Return code that applies a remedy; `set_parameter` sets parameters of the script by their own names."""
    if remedy.id == SET_PARAMETER:
        return "\n".join(f"{name} = {value!r}" for name, value in remedy.parameters.items())
    return write_snippet(remedy, framework)


def _order_of_proof(advice: Advice) -> tuple[int, float]:
    """Return the key by which advice is sorted: its place by proof and, if it is verified, what it is judged by."""
    outcome = advice.outcome
    if outcome is None or outcome.state != "verified":
        return PROOF.index(None if outcome is None else outcome.state), 0.0
    value = outcome.loss if outcome.judged_value is None else outcome.judged_value
    sign = -1.0 if (outcome.judged_by or "").startswith("maximize ") else 1.0
    return PROOF.index(outcome.state), math.inf if value is None else sign * value


def _key(remedies: Sequence[Remedy]) -> bytes:
    return encode_json(sorted([remedy.id, sorted(remedy.parameters.items())] for remedy in remedies))
