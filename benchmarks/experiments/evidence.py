"""Counts how often remedies repair causes; the counts correct the published chances of the advice.

The counts come from every other configuration; `make bench-reruns` reports on the others separately. Each failing
configuration is tried with the remedies that the advice names for it by the published chances alone, and with those of
`repairs` that need no numbers of the run. A trial counts for the most probable cause. If two remedies together repair a
run that neither repairs alone, both count as repairs, because the run had two faults.
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
from gradmedic_service.reruns import experiment, judging
from gradmedic_service.reruns.candidates import COMBINATIONS

CHOICES: Final = {
    kind: remedy
    for remedy in TRIED
    if (kind := " ".join([remedy.id, *map(str, remedy.parameters.values())])) in KINDS.values()
}
"""Remedies of `repairs` that are also a row of the catalogue, by the name of the row."""

Observation = tuple[str, str, bool]
"""Name of a catalogue row, the cause, and whether the remedy repaired it."""


@contextmanager
def published_chances_only() -> Iterator[None]:
    """Make services that start within the block advise by the published chances alone."""
    before = PATH.read_bytes()
    PATH.write_bytes(b"{}\n")
    try:
        yield
    except BaseException:
        PATH.write_bytes(before)
        raise


def gather(laboratory: Laboratory, pool: Executor) -> None:
    """Try the remedies, and write the counts to the file of the advice."""
    chosen = [configuration for name, configuration in CONFIGURATIONS.items() if name in FITTED]
    counts: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for observations in pool.map(lambda configuration: _try(laboratory, configuration), chosen):
        for kind, cause, is_repaired in observations:
            counts[kind][cause][0] += is_repaired
            counts[kind][cause][1] += 1
    ordered = {kind: dict(sorted(causes.items())) for kind, causes in sorted(counts.items())}
    PATH.write_bytes(msgspec.json.encode(ordered).replace(b"},", b"},\n") + b"\n")
    for kind, causes in ordered.items():
        print(f"{kind:36}" + ", ".join(f"{cause} {hits}/{of}" for cause, (hits, of) in causes.items()))


def _try(laboratory: Laboratory, configuration: Configuration) -> list[Observation]:
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
                repaired[kind] = judging.is_better(trial, control)
    alone = dict(repaired)
    first_by_id = {remedy.id: (kind, remedy) for kind, remedy in reversed(tried.items()) if kind in suspect.kinds}
    for first_id, second_id in COMBINATIONS:
        if first_id not in first_by_id or second_id not in first_by_id:
            continue
        (kind, remedy), (other_kind, other_remedy) = first_by_id[first_id], first_by_id[second_id]
        if alone.get(kind, True) or alone.get(other_kind, True):
            continue  # it does not apply, or repairs alone
        trial = laboratory.trial(configuration, (remedy, other_remedy), SEED).as_trial(1, SEED)
        if judging.is_better(trial, control):
            repaired[kind] = repaired[other_kind] = True
    return [(kind, cause, is_repaired) for kind, is_repaired in repaired.items()]
