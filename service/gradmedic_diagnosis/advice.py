"""From causes to ranked remedies for this run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gradmedic_diagnosis.evidence import EVIDENCE, Evidence, weigh
from gradmedic_diagnosis.remedies import CATALOGUE, RemedySpec
from gradmedic_diagnosis.report import Advice, Cause, Remedy
from gradmedic_diagnosis.run_evidence import Case
from gradmedic_diagnosis.snippets import write_snippet

MAX_ADVICE = 8
MAX_VARIANTS = 2
"""Rows of one remedy with different parameters: a reader wants alternatives, not a list of activations."""
LEAST_MERIT = 0.1
"""Below this a remedy is not worth a reader's time."""


def advise(case: Case, causes: Sequence[Cause], evidence: Evidence = EVIDENCE) -> tuple[Advice, ...]:
    """Return at most `MAX_ADVICE` remedies, the most promising first.

    A remedy's merit is the chance that it meets at least one of the causes, taking each cause's score times the
    remedy's weight against it as independent chances. Merits are known to a tenth at best: among equals, what stands
    first in the catalogue comes first.
    """
    scored = [(_merit(spec, causes, evidence), spec) for spec in CATALOGUE if spec.applies(case)]
    ranked = sorted((row for row in scored if row[0] >= LEAST_MERIT), key=lambda row: -round(row[0], 1))
    variants: Counter[str] = Counter()
    chosen: list[RemedySpec] = []
    for _, spec in ranked:
        variants[spec.id] += 1
        if variants[spec.id] <= MAX_VARIANTS:
            chosen.append(spec)
    return tuple(_advice(rank, spec, case) for rank, spec in enumerate(chosen[:MAX_ADVICE], start=1))


def _merit(spec: RemedySpec, causes: Sequence[Cause], evidence: Evidence) -> float:
    miss = 1.0
    for cause in causes:
        miss *= 1 - cause.score * weigh(spec.weights.get(cause.cause, 0.0), spec.kind, cause.cause, evidence)
    return 1 - miss


def _advice(rank: int, spec: RemedySpec, case: Case) -> Advice:
    remedy = Remedy(id=spec.id, parameters=spec.parameters(case))
    return Advice(
        remedy=remedy,
        rank=rank,
        reason=spec.reason,
        cost=spec.cost,
        snippet=write_snippet(remedy, case.training.framework),
        sources=spec.sources,
    )
