"""Fits the score of the diagnosis to generated runs, and measures how well scores match what happened.

A run is cut at several steps; the verdict at each cut is right or wrong by the label of the whole run, which comes from
its outcome. The cuts of one run weigh as much as one run. The command prints the constants for
`gradmedic_diagnosis.calibration`, and how well they do, on the splits that it was fitted on and on others:

    python -m benchmarks.calibration [--fit SPLIT ...] [--check SPLIT ...]

A split is a folder in `benchmarks/.cache`, as `benchmarks.diagnosis` makes it. That of foreign trainings is
`foreign-fit-auto`.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.runs import Layer, Training
from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS
from gradmedic_diagnosis import Block, Diagnostician
from gradmedic_diagnosis.calibration import AlarmEvidence, HealthEvidence, calibrate

BINS: Final = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Edges of the reliability table: finer where most scores are."""
CUTS: Final = 12
"""Steps at which a run is cut, evenly spaced in the logarithm of the step."""
FIRST_CUT: Final = 20
BLOW_UP: Final = 10.0
"""A loss this many times its first one has blown up (the rule of the labels)."""
PENALTY: Final = 1.0
"""Weight of the squared weights in the fit, in runs. It keeps weights finite where no run contradicts them."""
IMAGINED_RUNS: Final = 1.0
"""Runs of each outcome that are added to every model (Laplace's rule of succession): a kind of verdict that was right
in all of n runs has a chance of about 1 - 1 / n, not of 1."""
SIGNS_OF_ALARM: Final = (0, 0, 1, 1, 1)
SIGNS_OF_HEALTH: Final = (0, 1, 1, -1, -1, -1, -1)
"""Sign that each weight may have; 0 means either. More evidence never lowers a score."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict at one step of a run, and whether it is right."""

    evidence: AlarmEvidence | HealthEvidence
    is_right: bool
    weight: float
    """Share of a run that it stands for."""

    @property
    def score(self) -> float:
        """The score that the diagnosis gives to it now."""
        return calibrate(self.evidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRun:
    """A run whose right verdict is known."""

    label: str
    layers: tuple[Layer, ...]
    training: Training
    block: Block


def read_split(name: str) -> list[LabelledRun]:
    """Read the runs of a split in `benchmarks/.cache`, ours or foreign ones."""
    from benchmarks.diagnosis import CACHE, read_corpus

    if name.startswith("foreign-"):
        loading = import_module("benchmarks.corpus.foreign.loading")
        split, _, sampling = name.rpartition("-")
        runs = loading.load_foreign(split, sampling, CACHE / name)
        return [
            LabelledRun(label=run.verdict, layers=run.layers, training=run.training, block=run.block) for run in runs
        ]
    return [
        LabelledRun(label=r.label, layers=r.layers, training=r.training, block=r.block)
        for r in read_corpus(CACHE / name)
    ]


def judge_run(run: LabelledRun) -> list[Judged]:
    """Return the verdicts at the cuts of a run, without undetermined ones, and healthy ones before an explosion."""
    steps = len(run.block)
    cuts = sorted({round(cut) for cut in np.geomspace(min(FIRST_CUT, steps), steps, CUTS)})
    loss = np.asarray(run.block.series["loss"].values, dtype=np.float64)
    diagnostician = Diagnostician(run.layers, run.training)
    judged, start = list[tuple[AlarmEvidence | HealthEvidence, bool]](), 0
    for cut in cuts:
        verdict = diagnostician.update(run.block.cut(start, cut)).verdict
        evidence, start = diagnostician.collect_evidence(), cut
        if evidence is None:
            continue
        if verdict in UNHEALTHY_VERDICTS:
            judged.append((evidence, verdict == run.label))
        elif run.label != "exploding" or has_blown_up(loss[:cut]):
            judged.append((evidence, run.label not in UNHEALTHY_VERDICTS))
    return [Judged(evidence, is_right, 1 / len(judged)) for evidence, is_right in judged]


def has_blown_up(loss: NDArray[np.float64]) -> bool:
    """Whether a loss is non-finite, or ten times its first one."""
    return not np.isfinite(loss).all() or bool((np.abs(loss) > BLOW_UP * abs(loss[0])).any())


def fit_weights(judged: Sequence[Judged], signs: Sequence[int], rounds: int = 20_000) -> list[float]:
    """Fit a logistic model with the allowed signs by gradient descent; the intercept has no penalty."""
    features = np.array([each.evidence.features() for each in judged])
    right = np.array([each.is_right for each in judged], dtype=np.float64)
    amounts = np.array([each.weight for each in judged])
    typical = np.average(features, axis=0, weights=amounts)
    features = np.vstack([features, typical, typical])
    right = np.concatenate([right, [1.0, 0.0]])
    amounts = np.concatenate([amounts, [IMAGINED_RUNS] * 2])
    penalty = np.full(len(signs), PENALTY)
    penalty[0] = 0.0
    weights = np.zeros(len(signs))
    lowest = np.where(np.array(signs) > 0, 0.0, -np.inf)
    highest = np.where(np.array(signs) < 0, 0.0, np.inf)
    # A step below the inverse of the largest curvature always descends.
    rate = 1 / (0.25 * np.linalg.norm(features * np.sqrt(amounts)[:, None], 2) ** 2 + PENALTY)
    for _ in range(rounds):
        chances = 1 / (1 + np.exp(-features @ weights))
        gradient = features.T @ (amounts * (chances - right)) + penalty * weights
        weights = np.clip(weights - rate * gradient, lowest, highest)
    return [round(float(weight), 3) for weight in weights]


def brier(judged: Iterable[tuple[float, bool, float]]) -> float:
    """Return the mean squared difference of score and outcome, from tuples of score, outcome and weight."""
    rows = list(judged)
    total = sum(weight for _, _, weight in rows)
    return sum(weight * (score - is_right) ** 2 for score, is_right, weight in rows) / total if total else math.nan


def tabulate(judged: Iterable[tuple[float, bool, float]]) -> list[tuple[float, float, float, float, float]]:
    """Return the reliability table: edges of each bin, weight in it, mean score, and share of right verdicts."""
    rows, table = list(judged), []
    for low, high in pairwise(BINS):
        inside = [row for row in rows if low <= row[0] < high or row[0] == high == BINS[-1]]
        weight = sum(row[2] for row in inside)
        if weight:
            mean = sum(score * amount for score, _, amount in inside) / weight
            share = sum(is_right * amount for _, is_right, amount in inside) / weight
            table.append((low, high, weight, mean, share))
    return table


def describe(judged: Iterable[tuple[float, bool, float]]) -> str:
    """Describe Brier score and reliability in one line."""
    rows = list(judged)
    bins = "; ".join(
        f"{low:g}-{high:g}: {weight:.0f} runs, score {mean:.2f}, right {share:.2f}"
        for low, high, weight, mean, share in tabulate(rows)
    )
    return f"Brier {brier(rows):.3f}; {bins}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit the weights and print them with their reliability."""
    parser = argparse.ArgumentParser(prog="benchmarks.calibration", description=__doc__)
    parser.add_argument(
        "--fit", nargs="+", default=["fit", "foreign-fit-auto"], help="splits in benchmarks/.cache to fit on"
    )
    parser.add_argument("--check", nargs="*", default=[], help="splits to check the present constants on")
    options = parser.parse_args(arguments)

    def judge_split(name: str) -> list[Judged]:
        return [each for run in read_split(name) for each in judge_run(run)]

    judged = [each for name in options.fit for each in judge_split(name)]
    alarms = [each for each in judged if isinstance(each.evidence, AlarmEvidence)]
    healthy = [each for each in judged if isinstance(each.evidence, HealthEvidence)]
    for name, group, signs in (
        ("ALARM_WEIGHTS", alarms, SIGNS_OF_ALARM),
        ("HEALTH_WEIGHTS", healthy, SIGNS_OF_HEALTH),
    ):
        wrong = statistics.fmean(not each.is_right for each in group)
        print(f"{name}: Final = {tuple(fit_weights(group, signs))}  # {len(group)} verdicts, {wrong:.1%} wrong")
    for name in [*options.fit, *options.check]:
        print(f"{name}: {describe((each.score, each.is_right, each.weight) for each in judge_split(name))}")


if __name__ == "__main__":
    main()
