"""Advice: the remedies for a run's causes, ranked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gradmedic.protocol.diagnosis import Advice, Cause
from gradmedic.protocol.remedies import REMEDIES
from gradmedic_diagnosis.race_counts import RACE_COUNTS, RaceCounts, correct_merit
from gradmedic_diagnosis.remedies import CATALOGUE
from gradmedic_diagnosis.remedies.row import RemedyRow
from gradmedic_diagnosis.repair_counts import REPAIR_COUNTS, RepairCounts, estimate_repair_chance
from gradmedic_diagnosis.run_evidence import RunEvidence
from gradmedic_diagnosis.snippets import write_snippet

MAX_ADVICE = 8
"""Most remedies of one diagnosis."""
MAX_VARIANTS = 2
"""Most rows of one remedy with different parameters: a list of activations alone would be no choice."""
MIN_MERIT = 0.1
"""Merit below which a remedy is not advised."""
MIN_PRIOR_MERIT = 0.05
"""Merit before any race below which a remedy is not considered: races can raise it from there."""
MERIT_STEP = 0.1
"""Difference of merits that counts."""
UNSTOPPABLE = frozenset({"nonfinite_input", "nonfinite_loss", "numerical_instability"})
"""Causes of a NaN or an infinity among ordinary numbers."""


def advise(
    run: RunEvidence,
    causes: Sequence[Cause],
    counts: RepairCounts = REPAIR_COUNTS,
    races: RaceCounts = RACE_COUNTS,
) -> list[Advice]:
    """Return at most `MAX_ADVICE` remedies, the most promising first, at most `MAX_VARIANTS` of one remedy."""
    variants: Counter[str] = Counter()
    chosen: list[RemedyRow] = []
    for row in rank_rows(run, causes, counts, races):
        variants[row.id] += 1
        if variants[row.id] <= MAX_VARIANTS:
            chosen.append(row)
    return [_write_advice(rank, row, run) for rank, row in enumerate(chosen[:MAX_ADVICE], start=1)]


def rank_rows(
    run: RunEvidence, causes: Sequence[Cause], counts: RepairCounts, races: RaceCounts, min_merit: float = MIN_MERIT
) -> list[RemedyRow]:
    """Return the rows of the catalogue that have at least `min_merit` for a run, the most promising first.

    A remedy's merit is the chance that it repairs at least one of the causes, times its fit to the run. It takes a
    cause's score times the chance of repair as independent chances. What became of the remedy in races of runs with the
    same most probable cause corrects it. Merits are compared after rounding to `MERIT_STEP`: they are no more exact.
    Among equal ones the catalogue's order decides. Where every optimizer divides the gradient by its size, bounds of
    the gradient stand behind what changes the update itself. Clipping is left out where a number that is not finite
    was born among ordinary ones: NaN times any factor is NaN.
    """
    if not causes:
        return []
    is_unstoppable = any(cause.cause in UNSTOPPABLE for cause in causes) and not _has_grown(run)
    promising: list[tuple[float, RemedyRow]] = []
    for row in CATALOGUE:
        merit = _compute_merit(row, causes, counts)
        if row.clips and is_unstoppable:
            continue
        if merit >= MIN_PRIOR_MERIT and row.is_applicable(run):  # in this order: the second reads all layers
            merit *= row.estimate_fit(run)
            merit = correct_merit(merit, row.name, causes[0].cause, run.is_optimizer_scale_free, races)
            if merit >= min_merit:
                promising.append((merit, row))
    ranked = [row for _, row in sorted(promising, key=lambda pair: -round(pair[0] / MERIT_STEP))]
    return _put_updates_first(ranked) if run.is_optimizer_scale_free else ranked


def _has_grown(run: RunEvidence) -> bool:
    """Return whether gradients or the loss still grew when a number became non-finite."""
    return any(
        finding.verdict == "exploding" and finding.detector != "nonfinite" and finding.resolved_step is None
        for finding in run.findings
        if finding.consequence_of is None
    )


def _compute_merit(row: RemedyRow, causes: Sequence[Cause], counts: RepairCounts) -> float:
    chance_of_none = 1.0
    for cause in causes:
        published = row.chances.get(cause.cause, 0.0)
        chance_of_none *= 1 - cause.score * estimate_repair_chance(published, row.name, cause.cause, counts)
    return 1 - chance_of_none


def _put_updates_first(rows: Sequence[RemedyRow]) -> list[RemedyRow]:
    """Return the rows with bounds of the gradient behind the last row that changes the update."""
    bounds = [row for row in rows if row.bounds_gradients]
    others = [row for row in rows if not row.bounds_gradients]
    last = max((i for i, row in enumerate(others) if row.changes_update), default=-1)
    if last < 0:
        return list(rows)
    position = max(last + 1, rows.index(bounds[0]) if bounds else 0)
    return [*others[:position], *bounds, *others[position:]]


def _write_advice(rank: int, row: RemedyRow, run: RunEvidence) -> Advice:
    remedy = row.create_remedy(run)
    return Advice(
        remedy=remedy,
        rank=rank,
        reason=row.reason,
        cost=row.cost,
        snippet=write_snippet(remedy, run.framework),
        sources=list(row.sources),
        needs_script=REMEDIES[row.id].needs_script,
    )
