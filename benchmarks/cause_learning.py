"""Learns the order of advice from races on the open split of the causes corpus, and writes `race_counts.json`.

The remedies of the catalogue that are the most promising for the causes of a run, and that the SDK can apply, are tried
on each failing run whose cause a rerun can treat (`cause_races.race_remedy`), on one seed: many runs show more than
many seeds. The catalogue's own numbers choose them, not the counts of earlier races. A remedy that turns out not to be
applicable counts for nothing.

What the order is worth on programs that it was not learned from is estimated by leaving each program out in turn. The
split that is set aside is not read.
"""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from unittest import mock

import msgspec

from benchmarks import cause_trials
from benchmarks.cause_races import RACED, SEEDS, RemedyRace, find_case, race_remedy
from benchmarks.causes import CAUSES_FIT, CauseReading, describe_share, read
from benchmarks.corpus.causes.loading import CauseRun
from gradmedic.protocol.diagnosis import Advice, Cause
from gradmedic.protocol.remedies import REMEDIES, Remedy
from gradmedic_diagnosis.advice import MIN_PRIOR_MERIT, advise, rank_rows
from gradmedic_diagnosis.race_counts import PATH, SCALE_FREE, SCALED, RaceCounts
from gradmedic_diagnosis.remedies import CATALOGUE
from gradmedic_diagnosis.repair_counts import REPAIR_COUNTS
from gradmedic_diagnosis.run_evidence import RunEvidence


@dataclass(frozen=True, kw_only=True)
class LearningRun:
    """A failing run, and what its advice is made from."""

    run: CauseRun
    evidence: RunEvidence
    causes: Sequence[Cause]

    @property
    def cause(self) -> str:
        """The most probable cause."""
        return self.causes[0].cause

    @property
    def optimizer_kind(self) -> str:
        """Kind of the optimizers."""
        return SCALE_FREE if self.evidence.is_optimizer_scale_free else SCALED

    def list_candidates(self, count: int) -> dict[str, Remedy]:
        """Return the `count` most promising remedies, by catalogue row, whatever races have shown."""
        rows = rank_rows(self.evidence, self.causes, REPAIR_COUNTS, {}, MIN_PRIOR_MERIT)
        raceable = [row for row in rows if not REMEDIES[row.id].needs_script]
        return {row.name: row.create_remedy(self.evidence) for row in raceable[:count]}


Outcomes = Mapping[str, Mapping[str, RemedyRace]]
"""What became of each remedy, by run and catalogue row."""


def learn(readings: Sequence[CauseReading], count: int, jobs: int, *, is_verbose: bool = False) -> None:
    """Try up to `count` remedies on each run, write the counts, and print what the order is worth."""
    cause_trials.RESULTS.mkdir(parents=True, exist_ok=True)
    treatable = [reading.run for reading in readings if reading.run.is_failing and reading.run.treatable]
    runs = [learning_run for run in treatable if (learning_run := examine(run)) is not None]
    print(f"trying up to {count} remedies on each of {len(runs)} runs (finished trials are kept) ...", flush=True)
    outcomes = try_all(runs, count, jobs)
    counts = count_outcomes(runs, outcomes)
    PATH.write_bytes(msgspec.json.encode(counts).replace(b"}},", b"}},\n") + b"\n")
    print("\n".join(describe_counts(counts)))
    if is_verbose:
        print("\n".join(describe_outcomes(runs, outcomes)))
    for name, known in (("without races", None), ("learned from the other programs", outcomes)):
        places = [find_place(run, runs, outcomes, known) for run in runs]
        first, any_of_three = (sum(0 <= place < count for place in places) for count in (1, RACED))
        print(f"{name}: first verified {describe_share(first, len(treatable))}")
        print(f"{name}: one of the first {RACED} {describe_share(any_of_three, len(treatable))}")
    repaired = sum(any(done.is_verified for done in outcomes[run.run.id].values()) for run in runs)
    print(f"verified by any remedy: {describe_share(repaired, len(treatable))}")


def examine(run: CauseRun) -> LearningRun | None:
    """Diagnose a run; return None if it has no cause, and so no advice."""
    seen: list[tuple[RunEvidence, Sequence[Cause]]] = []

    def note(evidence: RunEvidence, causes: Sequence[Cause]) -> list[Advice]:
        seen.append((evidence, causes))
        return advise(evidence, causes)

    with mock.patch("gradmedic_diagnosis.diagnostician.advise", note):
        read(run)
    return LearningRun(run=run, evidence=seen[-1][0], causes=seen[-1][1]) if seen and seen[-1][1] else None


def try_all(runs: Sequence[LearningRun], count: int, jobs: int) -> dict[str, dict[str, RemedyRace]]:
    """Race up to `count` remedies of each run: the most promising ones of all runs first."""
    candidates = [
        (run.run.id, place, *each) for run in runs for place, each in enumerate(run.list_candidates(count).items())
    ]
    tasks = [(id, name, remedy) for id, _, name, remedy in sorted(candidates, key=lambda candidate: candidate[1])]
    outcomes: dict[str, dict[str, RemedyRace]] = {run.run.id: {} for run in runs}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        races = pool.map(_race_by_id, [id for id, _, _ in tasks], [remedy for _, _, remedy in tasks])
        for (id, name, _), done in zip(tasks, races, strict=True):
            outcomes[id][name] = done
    return outcomes


def _race_by_id(id: str, remedy: Remedy) -> RemedyRace:
    return race_remedy(*find_case(CAUSES_FIT, id), remedy, SEEDS[:1])


def count_outcomes(runs: Iterable[LearningRun], outcomes: Outcomes) -> dict[str, dict[str, dict[str, tuple[int, int]]]]:
    """Count by row, most probable cause and kind of optimizer: runs on which the remedy was verified, and all."""
    table: defaultdict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for run in runs:
        for name, done in outcomes[run.run.id].items():
            if done.is_applicable:
                table[name, run.cause, run.optimizer_kind].append(done.is_verified)
    counts: dict[str, dict[str, dict[str, tuple[int, int]]]] = {}
    for (name, cause, kind), verified in sorted(table.items()):
        counts.setdefault(name, {}).setdefault(cause, {})[kind] = (sum(verified), len(verified))
    return counts


def find_place(run: LearningRun, runs: Sequence[LearningRun], outcomes: Outcomes, known: Outcomes | None) -> int:
    """Return the place, from 0, of the first advice that is verified on a run; -1 if none is.

    Args:
        run: the run.
        runs: all runs.
        outcomes: what became of their remedies.
        known: what the order is learned from. The run's own program is left out of it. None for no races at all.
    """
    others = [other for other in runs if other.run.program != run.run.program]
    races: RaceCounts = {} if known is None else count_outcomes(others, known)
    done = outcomes[run.run.id]
    order = [name for name in list_advised(run, races) if name in done]
    return next((place for place, name in enumerate(order) if done[name].is_verified), -1)


def list_advised(run: LearningRun, races: RaceCounts) -> list[str]:
    """Return the catalogue rows of a run's advice."""
    names = {row.reason: row.name for row in CATALOGUE}
    return [names[advice.reason] for advice in advise(run.evidence, run.causes, races=races)]


def describe_counts(counts: RaceCounts) -> list[str]:
    """Return a line for each row of the catalogue."""
    return [
        f"{name:36}"
        + ", ".join(
            f"{cause} ({kind}) {hits}/{of}" for cause, kinds in causes.items() for kind, (hits, of) in kinds.items()
        )
        for name, causes in counts.items()
    ]


def describe_outcomes(runs: Sequence[LearningRun], outcomes: Outcomes) -> list[str]:
    """Return lines on each run: its causes, and what became of each remedy, in the order of the catalogue's numbers."""
    lines = []
    for run in runs:
        causes = ", ".join(f"{cause.cause} {cause.score:.2f}" for cause in run.causes)
        lines.append(f"{run.run.id}: {causes}; {run.optimizer_kind}")
        advised = list_advised(run, {})
        lines += [
            f"  {'+' if done.is_verified else '-'}{'*' if name in advised[:RACED] else ' '} {name}: {done.why}"
            for name, done in outcomes[run.run.id].items()
        ]
    return lines
