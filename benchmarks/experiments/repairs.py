"""Which remedy repairs which failure: every remedy that needs no knowledge of the run, on every failing configuration.

One seed each. Repaired means what `verified` means on one seed: healthy, below the control's best level, and a tenth
below its own start.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.reruns.configurations import FAMILIES, Configuration
from benchmarks.reruns.trials import Laboratory
from gradmedic.protocol.remedies import Remedy, describe_remedies
from gradmedic_service.reruns import experiment, judging

SEED: Final = 0
NOT_APPLICABLE: Final = -1


def _remedy(id: str, **parameters: Any) -> Remedy:
    return Remedy(id=id, parameters=parameters)


TRIED: Final = (
    _remedy("clip_grad_norm", max_norm=1.0),
    _remedy("clip_grad_norm", max_norm=0.1),
    _remedy("clip_grad_value", clip_value=0.01),
    _remedy("adaptive_clip", clipping=0.01),
    _remedy("scale_learning_rate", factor=0.1),
    _remedy("scale_learning_rate", factor=0.01),
    _remedy("warm_up", steps=100),
    _remedy("switch_optimizer", optimizer="Adam", learning_rate=1e-3),
    _remedy("reduce_weight_decay", factor=0.01),
    _remedy("reinitialize", scheme="kaiming_normal"),
    _remedy("reinitialize", scheme="xavier_uniform"),
    _remedy("reinitialize", scheme="orthogonal"),
    _remedy("replace_activation", activation="ReLU"),
    _remedy("replace_activation", activation="ELU"),
    _remedy("replace_activation", activation="SELU"),
    _remedy("insert_normalization", kind="BatchNorm"),
    _remedy("insert_normalization", kind="LayerNorm"),
    _remedy("add_residual"),
    _remedy("replace_recurrent_cell", cell="GRU"),
    _remedy("standardize_inputs"),
    _remedy("standardize_targets"),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """Counts of one remedy in one family."""

    repaired: int
    applicable: int

    def __str__(self) -> str:
        return f"{self.repaired}/{self.applicable}" if self.applicable else "-"


def try_all(laboratory: Laboratory, configuration: Configuration) -> dict[str, int]:
    """Return by remedy 1 if it repairs the configuration, 0 if not, or NOT_APPLICABLE."""
    control = laboratory.trial(configuration, (), SEED).as_trial(experiment.CONTROL, SEED)
    results = {}
    for remedy in TRIED:
        trial = laboratory.trial(configuration, (remedy,), SEED).as_trial(1, SEED)
        is_refused = trial.status == "not_applicable"
        results[describe_remedies([remedy])] = NOT_APPLICABLE if is_refused else int(judging.is_better(trial, control))
    return results


def tabulate(found: list[tuple[Configuration, dict[str, int]]]) -> dict[str, dict[str, Cell]]:
    """Count the repaired and the applicable configurations by family and remedy."""
    by_family: defaultdict[str, list[dict[str, int]]] = defaultdict(list)
    for configuration, results in found:
        by_family[configuration.family].append(results)
    return {
        family: {
            name: Cell(
                sum(results[name] == 1 for results in by_family[family]),
                sum(results[name] != NOT_APPLICABLE for results in by_family[family]),
            )
            for name in (describe_remedies([remedy]) for remedy in TRIED)
        }
        for family in FAMILIES
        if family in by_family
    }
