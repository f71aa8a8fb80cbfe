"""A family: one program that learns, its faults, and variants that learn but look risky.

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
"""Version of the recordings. Raise it when a configuration would be recorded or labelled in another way."""
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
    """A run to record."""

    id: str
    family: str
    program: str
    intended: str
    causes: tuple[str, ...]
    config: Config
    """The complete configuration."""
    fault: Config | None
    """The part of the configuration that differs from the twin."""
    twin: str | None
    """Id of the repaired run."""
    min_skill: float
    seed_name: str
    """Runs of one seed name draw the same weights and data."""

    @property
    def digest(self) -> str:
        """A digest of everything that the recording depends on, in sixteen characters."""
        return hashlib.sha256(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Family:
    """The configuration that learns, its faults and its variants."""

    name: str
    program: str
    min_skill: float
    base: Config
    """The configuration that learns. Its run is the repaired twin of all faults that have no twin of their own."""
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
        """Add a faulty run. `causes` lists those that count as right, separated by blanks; `twin` is its own repair."""
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
        """Add a variant that learns, with a seed of its own."""
        self._append(name, "healthy", (), override, None, None, f"{self.name}.{name}")
        return self

    def other(self, name: str, override: Config) -> Family:
        """Add a run that does not learn for another reason than its gradients."""
        self._append(name, "other", (), override, None, None)
        return self

    def cases(self) -> tuple[Case, ...]:
        """Return all runs, repaired twins before the faults that need them."""
        return tuple(sorted(self.made, key=lambda case: case.twin is not None))
