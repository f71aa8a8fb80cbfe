"""Learns the order of advice from races on the open split of the causes corpus, and writes `race_counts.json`.

On each failing run whose cause a rerun can treat, the remedies of the catalogue that the SDK can apply are tried in the
order of the catalogue's own numbers, until one is verified: what has to change is a remedy that fails before one that
holds. Each is tried on one seed, because many runs show more than many seeds, and against the control of that seed. The
recording of the control is diagnosed. A remedy that turns out not to be applicable counts for nothing.

What the order is worth on programs that it was not learned from is estimated by leaving each program out in turn. The
split that is set aside is not read. Finished trials are kept.

    python -m benchmarks.cause_learning [--tried N] [--variants N] [--verbose] [--jobs N]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Final
from unittest import mock

import msgspec

from benchmarks import cause_trials
from benchmarks.cause_races import RACED, SEEDS, RemedyRace, find_case, race_remedy
from benchmarks.cause_trials import read_recording, try_remedies
from benchmarks.causes import describe_share, read
from benchmarks.corpus.causes.cases import CauseCase, CauseProgram
from benchmarks.corpus.causes.labels import KEPT_SHARE
from benchmarks.corpus.causes.loading import CauseRun
from benchmarks.corpus.causes.splits import CAUSES_FIT, CAUSES_SPLITS
from gradmedic.protocol.diagnosis import Advice, Cause
from gradmedic.protocol.remedies import REMEDIES, Remedy
from gradmedic.protocol.runs import Training
from gradmedic_diagnosis.advice import MIN_PRIOR_MERIT, advise, rank_rows
from gradmedic_diagnosis.race_counts import PATH, SCALE_FREE, SCALED, RaceCounts
from gradmedic_diagnosis.remedies import CATALOGUE
from gradmedic_diagnosis.repair_counts import REPAIR_COUNTS
from gradmedic_diagnosis.run_evidence import RunEvidence

ROW_NAMES: Final = {row.reason: row.name for row in CATALOGUE}
"""Names of the catalogue's rows, by the reason that the advice contains."""


@dataclass(frozen=True, kw_only=True)
class LearningRun:
    """A failing run, what its advice is made from, and what became of its remedies."""

    run: CauseRun
    evidence: RunEvidence
    causes: Sequence[Cause]
    outcomes: Mapping[str, RemedyRace]
    """By catalogue row."""

    @property
    def cause(self) -> str:
        """The most probable cause."""
        return self.causes[0].cause

    @property
    def optimizer_kind(self) -> str:
        """Kind of the optimizers."""
        return SCALE_FREE if self.evidence.is_optimizer_scale_free else SCALED

    def list_candidates(self, count: int) -> dict[str, Remedy]:
        """Return the `count` most promising remedies, by catalogue row, without the corrections of races."""
        rows = rank_rows(self.evidence, self.causes, REPAIR_COUNTS, {}, MIN_PRIOR_MERIT)
        raceable = [row for row in rows if not REMEDIES[row.id].needs_script]
        return {row.name: row.create_remedy(self.evidence) for row in raceable[:count]}

    def list_advised(self, races: RaceCounts) -> list[str]:
        """Return the catalogue rows of the advice that the SDK can apply."""
        advised = advise(self.evidence, self.causes, races=races)
        return [ROW_NAMES[advice.reason] for advice in advised if not REMEDIES[advice.remedy.id].needs_script]


def learn(count: int, variants: int, jobs: int, *, is_verbose: bool = False) -> None:
    """Try the remedies, write the counts, and print what the order is worth.

    Args:
        count: the largest number of remedies that are tried on a run.
        variants: number of variants of each program that are used.
        jobs: number of processes.
        is_verbose: whether to print what became of each remedy.
    """
    cause_trials.RESULTS.mkdir(parents=True, exist_ok=True)
    ids = [case.id for case in list_treatable_cases(variants)]
    print(f"trying up to {count} remedies on each of {len(ids)} runs (finished trials are kept) ...", flush=True)
    runs: list[LearningRun] = []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        started = {pool.submit(_learn_from_id, id, count): id for id in ids}
        for done in as_completed(started):
            run = done.result()
            if run is not None:
                runs.append(run)
                write_counts(count_outcomes(runs))  # an interrupted command leaves what it has learned
            if is_verbose:
                lines = describe_run(run) if run is not None else [f"{started[done]}: left out"]
                print("\n".join(lines), flush=True)
    print("\n".join(describe_counts(count_outcomes(runs))))
    for name, is_learned in (("by the catalogue alone", False), ("learned from the other programs", True)):
        places = [find_place(run, runs, is_learned=is_learned) for run in runs]
        first, any_of_three = (sum(0 <= place < count for place in places) for count in (1, RACED))
        print(f"{name}: first verified {describe_share(first, len(runs))}")
        print(f"{name}: one of the first {RACED} {describe_share(any_of_three, len(runs))}")


def write_counts(counts: RaceCounts) -> None:
    """Write the file that the advice reads."""
    PATH.write_bytes(msgspec.json.encode(counts).replace(b"}},", b"}},\n") + b"\n")


def list_treatable_cases(variants: int) -> list[CauseCase]:
    """Return the cases of the open split whose cause a rerun can treat, of the first variants of each program."""
    found = [
        case for program in CAUSES_SPLITS[CAUSES_FIT] for case in program.cases() if case.causes and case.treatable
    ]
    return [case for case in found if int(case.id.split(".")[1]) < variants]


def _learn_from_id(id: str, count: int) -> LearningRun | None:
    return learn_from_case(*find_case(CAUSES_FIT, id), count)


def learn_from_case(case: CauseCase, program: CauseProgram, count: int) -> LearningRun | None:
    """Race the remedies of a case until one is verified; None if its control learns, or has no cause."""
    control = try_remedies(case, program, (), SEEDS[0])
    if control.trained.status != "done" or control.trained.skill > KEPT_SHARE * case.min_skill:
        return None
    description, block = read_recording(control.recording)
    examined = examine(
        CauseRun(
            id=case.id,
            program=case.program,
            kind=case.kind,
            causes=case.causes,
            treatable=case.treatable,
            layers=tuple(description.layers),
            training=description.training or Training(),
            framework=description.framework,
            block=block,
        )
    )
    if examined is None:
        return None
    outcomes: dict[str, RemedyRace] = {}
    for name, remedy in examined.list_candidates(count).items():
        outcomes[name] = race_remedy(case, program, remedy, SEEDS[:1])
        if outcomes[name].is_verified:
            break
    return replace(examined, outcomes=outcomes)


def examine(run: CauseRun) -> LearningRun | None:
    """Diagnose a run; return None if it has no cause, and so no advice."""
    seen: list[tuple[RunEvidence, Sequence[Cause]]] = []

    def note(evidence: RunEvidence, causes: Sequence[Cause]) -> list[Advice]:
        seen.append((evidence, causes))
        return advise(evidence, causes)

    with mock.patch("gradmedic_diagnosis.diagnostician.advise", note):
        read(run)
    if not seen or not seen[-1][1]:
        return None
    return LearningRun(run=run, evidence=seen[-1][0], causes=seen[-1][1], outcomes={})


def count_outcomes(runs: Iterable[LearningRun]) -> dict[str, dict[str, dict[str, tuple[int, int]]]]:
    """Count by row, most probable cause and kind of optimizer: runs on which the remedy was verified, and all."""
    table: defaultdict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for run in runs:
        for name, done in run.outcomes.items():
            if done.is_applicable:
                table[name, run.cause, run.optimizer_kind].append(done.is_verified)
    counts: dict[str, dict[str, dict[str, tuple[int, int]]]] = {}
    for (name, cause, kind), verified in sorted(table.items()):
        counts.setdefault(name, {}).setdefault(cause, {})[kind] = (sum(verified), len(verified))
    return counts


def find_place(run: LearningRun, runs: Sequence[LearningRun], *, is_learned: bool) -> int:
    """Return the place, from 0, of the first advice that is verified on a run; -1 if none is known to be.

    Args:
        run: the run.
        runs: all runs.
        is_learned: whether the order is learned from the other programs. Else it is that of the catalogue.
    """
    races = count_outcomes(other for other in runs if other.run.program != run.run.program) if is_learned else {}
    verified = [name for name, done in run.outcomes.items() if done.is_verified]
    return next((place for place, name in enumerate(run.list_advised(races)) if name in verified), -1)


def describe_counts(counts: RaceCounts) -> list[str]:
    """Return a line for each row of the catalogue."""
    return [
        f"{name:36}"
        + ", ".join(
            f"{cause} ({kind}) {hits}/{of}" for cause, kinds in causes.items() for kind, (hits, of) in kinds.items()
        )
        for name, causes in counts.items()
    ]


def describe_run(run: LearningRun) -> list[str]:
    """Return lines on a run: its causes, and what became of each remedy."""
    causes = ", ".join(f"{cause.cause} {cause.score:.2f}" for cause in run.causes)
    lines = [f"{run.run.id}: {causes}; {run.optimizer_kind}"]
    lines += [f"  {'+' if done.is_verified else '-'} {name}: {done.why}" for name, done in run.outcomes.items()]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn the order, and print the counts."""
    parser = argparse.ArgumentParser(prog="benchmarks.cause_learning", description=__doc__)
    parser.add_argument("--tried", type=int, default=4, help="largest number of remedies that are tried on a run")
    parser.add_argument("--variants", type=int, default=1, help="number of variants of each program")
    parser.add_argument("--verbose", action="store_true", help="print what became of each remedy")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes that train")
    options = parser.parse_args(arguments)
    learn(options.tried, options.variants, options.jobs, is_verbose=options.verbose)
    return 0


if __name__ == "__main__":
    sys.exit(main())
