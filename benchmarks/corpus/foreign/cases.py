"""Cases: a program, one of its configurations, and a fault or a look-alike.

A program has a *configuration* that learns, several *variants* of it (width, depth, optimizer, rate, data), *faults*
and *look-alikes*. Every variant is run as it is, with each fault, and with each look-alike. The run of a variant as it
is, is the repaired twin of its faults.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from benchmarks.corpus.foreign.session import Session

FORMAT: Final = 1
"""Version of the recordings. Raise it when a case would be recorded or labelled in another way."""

Settings = dict[str, Any]

LOGS: Final = ("tensor", "float")
"""How the variants log their loss, by turns: as a tensor, or as a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A fault or a look-alike: what differs from the configuration that learns."""

    name: str
    override: Settings
    kind: str
    """`blow_up`, `signal` (gradients do not reach the weights), `irreducible` (nothing to learn) or `other` for a
    fault, `healthy` for a look-alike."""
    born_in: str | None = None
    """Pattern of the layers in which the first non-finite value is born, where construction decides it."""


def blow_up(name: str, *, born_in: str | None = None, **override: Any) -> Condition:
    """Describe a fault that is meant to make the training explode or die."""
    return Condition(name=name, override=override, kind="blow_up", born_in=born_in)


def signal(name: str, **override: Any) -> Condition:
    """Describe a fault that keeps the gradients from the weights."""
    return Condition(name=name, override=override, kind="signal")


def other(name: str, **override: Any) -> Condition:
    """Describe a fault that keeps the training from learning while its gradients are fine."""
    return Condition(name=name, override=override, kind="other")


def irreducible(name: str, **override: Any) -> Condition:
    """Describe targets of which nothing can be learned but the examples themselves."""
    return Condition(name=name, override=override, kind="irreducible")


def lookalike(name: str, **override: Any) -> Condition:
    """Describe a variation that looks risky and learns."""
    return Condition(name=name, override=override, kind="healthy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A run to record."""

    id: str
    program: str
    family: str
    kind: str
    """`healthy`, or the kind of its fault."""
    settings: Settings
    born_in: str | None
    twin: str | None
    """Id of the repaired twin; None for a run without a fault."""
    min_skill: float
    surrogate: bool
    seed: int
    """Runs of one variant have the same weights and data."""

    @property
    def digest(self) -> str:
        """A digest of the case in sixteen characters."""
        return hashlib.sha256(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A training script with its configuration, variants, faults and look-alikes."""

    name: str
    family: str
    train: Callable[[Session], None]
    min_skill: float
    """Smallest skill of a run that learns."""
    surrogate: bool
    """Whether the loss does not measure progress, so that only the skill does."""
    base: Settings
    variants: tuple[Settings, ...]
    conditions: tuple[Condition, ...]

    def cases(self) -> Iterator[Case]:
        """Yield the cases, each repaired twin before its faults."""
        for index, variant in enumerate(self.variants):
            twin = f"{self.name}.{index}.base"
            yield self._case(twin, {**self.base, **variant}, "healthy", None, None, index)
            for condition in self.conditions:
                yield self._case(
                    f"{self.name}.{index}.{condition.name}",
                    {**self.base, **variant, **condition.override},
                    condition.kind,
                    condition.born_in,
                    None if condition.kind == "healthy" else twin,
                    index,
                )

    def _case(
        self, identity: str, settings: Settings, kind: str, born_in: str | None, twin: str | None, index: int
    ) -> Case:
        return Case(
            id=identity,
            program=self.name,
            family=self.family,
            kind=kind,
            settings={"logs": LOGS[index % len(LOGS)], **settings},
            born_in=born_in,
            twin=twin,
            min_skill=self.min_skill,
            surrogate=self.surrogate,
            seed=int.from_bytes(hashlib.sha256(f"{self.name}.{index}".encode()).digest()[:4], "little"),
        )


class Programs(list[Program]):
    """The programs of a module; `add` is the decorator that registers a training script."""

    def add(
        self,
        family: str,
        *conditions: Condition,
        min_skill: float,
        variants: tuple[Settings, ...],
        surrogate: bool = False,
        **base: Any,
    ) -> Callable[[Callable[[Session], None]], Callable[[Session], None]]:
        """Register a training script under the name of its function.

        Args:
            family: kind of training. No family is in two splits.
            conditions: the faults and look-alikes.
            min_skill: smallest skill of a run that learns.
            variants: settings that differ between the configurations.
            surrogate: whether the loss does not measure progress.
            base: settings of all configurations.
        """

        def register(train: Callable[[Session], None]) -> Callable[[Session], None]:
            self.append(
                Program(
                    name=train.__name__.replace("_", "-"),
                    family=family,
                    train=train,
                    min_skill=min_skill,
                    surrogate=surrogate,
                    base=base,
                    variants=variants,
                    conditions=conditions,
                )
            )
            return train

        return register
