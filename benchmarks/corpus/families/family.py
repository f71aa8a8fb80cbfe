"""A family: one program in its sound form, its faults, and sound variants that look risky.

A fault is an override of a configuration that learns. So every faulty run has a repaired twin (the same program, data
and seed without the override), and the cause of its failure is known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

FORMAT: Final = 4
"""Raise it when the same configuration would be recorded or labelled otherwise."""
CAUSES: Final = (
    "learning_rate_too_high",
    "poor_initialization",
    "saturating_activation",
    "dead_units",
    "unscaled_inputs",
    "unscaled_targets",
    "long_recurrence",
    "missing_normalization",
    "missing_clipping",
    "precision_overflow",
    "precision_underflow",
    "excessive_weight_decay",
    "numerical_instability",
    "excessive_clipping",
)

Config = Mapping[str, Any]
"""A recipe's fields and a program's arguments, together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run to be made."""

    id: str
    family: str
    program: str
    intended: str
    causes: tuple[str, ...]
    config: Config
    """Complete."""
    fault: Config | None
    """What in it differs from the twin."""
    twin: str | None
    """Id of the repaired run."""
    min_skill: float
    seed_name: str
    """Runs of one seed name draw the same weights and data."""

    @property
    def digest(self) -> str:
        """What the recording depends on, in sixteen characters."""
        return hashlib.sha256(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Family:
    """Sound form, faults and variants; cases are made by `cases`."""

    name: str
    program: str
    min_skill: float
    base: Config
    """The sound form, a recording of its own: the repaired twin of all faults that name no other."""
    made: list[Case] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._append("base", "healthy", (), {}, None, None)

    def _append(
        self,
        name: str,
        intended: str,
        causes: tuple[str, ...],
        override: Config,
        fault: Config | None,
        twin: str | None,
        seed_name: str | None = None,
    ) -> None:
        unknown = set(causes) - set(CAUSES)
        if unknown:
            raise ValueError(f"unknown causes {unknown}")
        self.made.append(
            Case(
                id=f"{self.name}.{name}",
                family=self.name,
                program=self.program,
                intended=intended,
                causes=causes,
                config={**self.base, **override},
                fault=fault,
                twin=twin,
                min_skill=self.min_skill,
                seed_name=seed_name or self.name,
            )
        )

    def fault(self, intended: str, name: str, causes: str, override: Config, *, twin: Config | None = None) -> Family:
        """Add a faulty run. `causes`: those that count as right, separated by blanks; `twin`: a repair of its own."""
        self._append(
            name,
            intended,
            tuple(causes.split()),
            override,
            override,
            f"{self.name}.{name}.fixed" if twin is not None else f"{self.name}.base",
        )
        if twin is not None:
            self._append(f"{name}.fixed", "healthy", (), {**override, **twin}, None, None)
        return self

    def vanishing(self, name: str, causes: str, override: Config, *, twin: Config | None = None) -> Family:
        """Add a run whose gradients are meant to vanish."""
        return self.fault("vanishing", name, causes, override, twin=twin)

    def exploding(self, name: str, causes: str, override: Config, *, twin: Config | None = None) -> Family:
        """Add a run that is meant to explode."""
        return self.fault("exploding", name, causes, override, twin=twin)

    def healthy(self, name: str, override: Config) -> Family:
        """Add a sound variant, with a seed of its own."""
        self._append(name, "healthy", (), override, None, None, f"{self.name}.{name}")
        return self

    def other(self, name: str, override: Config) -> Family:
        """Add a run that does not learn, and not for its gradients."""
        self._append(name, "other", (), override, None, None)
        return self

    def cases(self) -> tuple[Case, ...]:
        """Return all runs, repaired twins before the faults that need them."""
        return tuple(sorted(self.made, key=lambda case: case.twin is not None))
