"""What repairs what: the counts that correct the published weights of the advice.

Every other configuration is what the counts come from; `make bench-reruns` reports on the rest apart. Each that fails
is tried with the remedies that the advice names for it by the published weights alone, and with those of `repairs` that
need no number. A trial counts for each cause that was found, in proportion to its score: which was the true one is not
known.
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
from benchmarks.reruns.trials import Laboratory, is_failing
from gradmedic.remedies import REMEDIES, Choice
from gradmedic.wire import Remedy
from gradmedic_service.diagnosis.evidence import PATH, name_kind
from gradmedic_service.reruns import experiment

WITHOUT_NUMBERS: Final = tuple(
    remedy
    for remedy in TRIED
    if all(isinstance(parameter, Choice) for parameter in REMEDIES[remedy.id].parameters.values())
)

Shown = tuple[str, str, float, bool]
"""A kind of remedy, a cause, its share of all causes, and whether the remedy repaired."""


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
    counts: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    for shown in pool.map(lambda one: _try(laboratory, one), chosen):
        for kind, cause, share, is_repaired in shown:
            counts[kind][cause][0] += share * is_repaired
            counts[kind][cause][1] += share
    rounded = {
        kind: {cause: [round(count, 2) for count in pair] for cause, pair in sorted(causes.items())}
        for kind, causes in sorted(counts.items())
    }
    PATH.write_bytes(msgspec.json.encode(rounded).replace(b"},", b"},\n") + b"\n")
    for kind, causes in rounded.items():
        print(f"{kind:32}" + ", ".join(f"{cause} {hits:g}/{of:g}" for cause, (hits, of) in causes.items()))


def _try(laboratory: Laboratory, configuration: Configuration) -> list[Shown]:
    suspect = laboratory.trial(configuration, (), SEED)
    if not is_failing(laboratory, configuration, SEED) or not suspect.causes:
        return []
    control = suspect.as_trial(experiment.CONTROL, SEED)
    named = {_kind(remedy) for remedy in suspect.advice}
    further = [remedy for remedy in WITHOUT_NUMBERS if _kind(remedy) not in named]
    shown = []
    for remedy in (*suspect.advice, *further):
        if REMEDIES[remedy.id].tier > 2:
            continue
        trial = laboratory.trial(configuration, (remedy,), SEED).as_trial(1, SEED)
        if trial.status != "not_applicable":
            is_repaired = experiment.is_better(trial, control)
            total = sum(suspect.causes.values())
            shown += [(_kind(remedy), cause, score / total, is_repaired) for cause, score in suspect.causes.items()]
    return shown


def _kind(remedy: Remedy) -> str:
    return name_kind(remedy.id, remedy.parameters)
