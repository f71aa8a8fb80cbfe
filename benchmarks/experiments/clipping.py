"""How the threshold of clipping by the norm affects stability and skill.

Low thresholds keep every run finite and let it learn slowly; high ones let it explode. Three seeds of each failing
configuration of three families.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks.reruns.configurations import Configuration
from benchmarks.reruns.trials import Laboratory, skill
from gradmedic.protocol.remedies import Remedy

FAMILIES: Final = ("recurrent-language-model", "learning-rate", "large-recurrence")
THRESHOLDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
SEEDS: Final = (0, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """All runs of a family at one threshold."""

    threshold: float
    stable: float
    """Share of the runs that are not exploding and have a skill above 0."""
    skill: float
    """Median skill: how far the loss is below that of the best constant answer; negative skills count as 0."""


def sweep(laboratory: Laboratory, configurations: list[Configuration]) -> list[Point]:
    """Clip the configurations of a family at every threshold."""
    points = []
    for threshold in THRESHOLDS:
        clipped = (Remedy(id="clip_grad_norm", parameters={"max_norm": threshold}),)
        results = [
            (configuration, laboratory.trial(configuration, clipped, seed))
            for configuration in configurations
            for seed in SEEDS
        ]
        skills = [max(0.0, skill(result, configuration.faulty)) for configuration, result in results]
        stable = [
            result.verdict != "exploding" and value > 0.0 for (_, result), value in zip(results, skills, strict=True)
        ]
        points.append(Point(threshold=threshold, stable=sum(stable) / len(stable), skill=median(skills)))
    return points
