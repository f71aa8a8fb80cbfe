"""What repairs what: the counts that correct the published weights of the advice.

Every other configuration is what the counts come from; `make bench-reruns` reports on the rest apart. Each that fails
is tried with the remedies that the advice names for it by the published weights alone, and with those of `repairs` that
need no number. A trial counts for the most probable cause. Where two remedies repair together what neither does alone,
both count as having repaired: two things were wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Final

import msgspec

from benchmarks.experiments.repairs import SEED, TRIED
from benchmarks.reruns.configurations import CONFIGURATIONS, FITTED, Configuration
from benchmarks.reruns.trials import KINDS, Laboratory, is_failing
from gradmedic.protocol.remedies import REMEDIES
from gradmedic_diagnosis.repair_counts import PATH
from gradmedic_service.reruns import experiment
from gradmedic_service.reruns.candidates import COMBINATIONS

CHOICES: Final = {
    kind: remedy
    for remedy in TRIED
    if (kind := " ".join([remedy.id, *map(str, remedy.parameters.values())])) in KINDS.values()
}
"""Kinds with one row in the catalogue that does not depend on the run."""

Shown = tuple[str, str, bool]
"""A kind of remedy, the cause, and whether it repaired."""


@contextmanager
def published_beliefs() -> Iterator[None]:
    """Let services that are started meanwhile advise by the published weights alone."""
    before = PATH.read_bytes()
    PATH.write_bytes(b"{}\n")
    try:
        yield
    except BaseException:
        PATH.write_bytes(before)
        raise


def gather(laboratory: Laboratory, pool: Executor) -> None:
    """Try the remedies, and write down what they have shown."""
    chosen = [one for name, one in CONFIGURATIONS.items() if name in FITTED]
    counts: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for shown in pool.map(lambda one: _try(laboratory, one), chosen):
        for kind, cause, is_repaired in shown:
            counts[kind][cause][0] += is_repaired
            counts[kind][cause][1] += 1
    ordered = {kind: dict(sorted(causes.items())) for kind, causes in sorted(counts.items())}
    PATH.write_bytes(msgspec.json.encode(ordered).replace(b"},", b"},\n") + b"\n")
    for kind, causes in ordered.items():
        print(f"{kind:36}" + ", ".join(f"{cause} {hits}/{of}" for cause, (hits, of) in causes.items()))


def _try(laboratory: Laboratory, configuration: Configuration) -> list[Shown]:
    suspect = laboratory.trial(configuration, (), SEED)
    if not is_failing(laboratory, configuration, SEED) or not suspect.causes:
        return []
    control = suspect.as_trial(experiment.CONTROL, SEED)
    tried = dict(zip(suspect.kinds, suspect.advice, strict=True))
    tried |= {kind: remedy for kind, remedy in CHOICES.items() if kind not in tried}
    cause = max(suspect.causes, key=lambda name: suspect.causes[name])
    repaired: dict[str, bool] = {}
    for kind, remedy in tried.items():
        if not REMEDIES[remedy.id].needs_script:
            trial = laboratory.trial(configuration, (remedy,), SEED).as_trial(1, SEED)
            if trial.status != "not_applicable":
                repaired[kind] = experiment.is_better(trial, control)
    alone = dict(repaired)
    first = {remedy.id: (kind, remedy) for kind, remedy in reversed(tried.items()) if kind in suspect.kinds}
    for one, other in COMBINATIONS:
        if one not in first or other not in first:
            continue
        (kind, remedy), (other_kind, other_remedy) = first[one], first[other]
        if alone.get(kind, True) or alone.get(other_kind, True):
            continue  # it does not apply, or repairs alone
        trial = laboratory.trial(configuration, (remedy, other_remedy), SEED).as_trial(1, SEED)
        if experiment.is_better(trial, control):
            repaired[kind] = repaired[other_kind] = True
    return [(kind, cause, is_repaired) for kind, is_repaired in repaired.items()]
