"""Cases: a program, one of its variants, and a fault with its true cause, or a look-alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from benchmarks.corpus.foreign.cases import LOGS

if TYPE_CHECKING:
    from benchmarks.corpus.causes.session import CauseSession

FORMAT: Final = 1
"""Version of the recordings. Raise it when a case would be recorded or labelled in another way."""

Settings = dict[str, Any]

DIES: Final = "dies"
"""The loss or the weights turn non-finite for good."""
STALLS: Final = "stalls"
"""The loss stays finite, and the run has at most half of its twin's skill."""
FAILS: Final = "fails"
"""It dies, or has at most half of its twin's skill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to make a training fail, with its true cause."""

    kind: str
    """Name of the way, for example `log-of-zero`. Several kinds may have the same cause."""
    causes: tuple[str, ...]
    """Names of the cause: one, or several where they name the same fact."""
    treatable: bool
    """Whether a remedy that the SDK applies in a rerun can treat the cause."""
    manner: str
    """How the run must fail: `DIES`, `STALLS` or `FAILS`."""
    override: Settings
    """Settings that differ from the twin's."""
    twin: Settings
    """Settings of the twin that the fault takes away, in place of the program's own; usually empty."""
    name: str = ""
    """Tells faults of one kind in one program apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookalike:
    """A variation that looks risky and learns."""

    kind: str
    override: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseCase:
    """A run to record."""

    id: str
    program: str
    kind: str
    """Kind of the fault or of the look-alike; `twin` for a run without either."""
    causes: tuple[str, ...]
    """Accepted names of the cause; empty for a run without a fault."""
    treatable: bool
    manner: str
    settings: Settings
    twin: str | None
    """Id of the repaired twin; None for a run without a fault."""
    min_skill: float
    seed: int
    """Runs of one variant have the same weights and data."""

    @property
    def digest(self) -> str:
        """A digest of the case in sixteen characters."""
        return hashlib.sha256(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseProgram:
    """A training script with its variants, faults and look-alikes."""

    name: str
    train: Callable[[CauseSession], None]
    min_skill: float
    """Smallest skill of a run that learns."""
    base: Settings
    variants: tuple[Settings, ...]
    conditions: tuple[Fault | Lookalike, ...]

    def cases(self) -> Iterator[CauseCase]:
        """Yield the cases, each twin before its faults."""
        for index, variant in enumerate(self.variants):
            settings = {"logs": LOGS[index % len(LOGS)], **self.base, **variant}
            yield self._case(index, "twin", settings)
            made: dict[str, str] = {json.dumps({}): f"{self.name}.{index}.twin"}
            for condition in self.conditions:
                if isinstance(condition, Lookalike):
                    yield self._case(index, condition.kind, {**settings, **condition.override})
                    continue
                key = json.dumps(condition.twin, sort_keys=True)
                if key not in made:
                    twin = self._case(index, f"twin-{len(made)}", {**settings, **condition.twin})
                    made[key] = twin.id
                    yield twin
                yield self._case(
                    index, condition.kind, {**settings, **condition.twin, **condition.override}, condition, made[key]
                )

    def _case(
        self, index: int, kind: str, settings: Settings, fault: Fault | None = None, twin: str | None = None
    ) -> CauseCase:
        name = f"{kind}-{fault.name}" if fault is not None and fault.name else kind
        return CauseCase(
            id=f"{self.name}.{index}.{name}",
            program=self.name,
            kind="twin" if kind.startswith("twin") else kind,
            causes=() if fault is None else fault.causes,
            treatable=fault is not None and fault.treatable,
            manner="" if fault is None else fault.manner,
            settings=settings,
            twin=twin,
            min_skill=self.min_skill,
            seed=int.from_bytes(hashlib.sha256(f"{self.name}.{index}".encode()).digest()[:4], "little") // 2,
        )


class CausePrograms(list[CauseProgram]):
    """The programs of a module; `add` is the decorator that registers a training script."""

    def add(
        self, *conditions: Fault | Lookalike, min_skill: float, variants: tuple[Settings, ...] = ({},), **base: Any
    ) -> Callable[[Callable[[CauseSession], None]], Callable[[CauseSession], None]]:
        """Register a training script under the name of its function.

        Args:
            conditions: the faults and look-alikes.
            min_skill: smallest skill of a run that learns.
            variants: settings that differ between the configurations.
            base: settings of all configurations.
        """

        def register(train: Callable[[CauseSession], None]) -> Callable[[CauseSession], None]:
            self.append(
                CauseProgram(
                    name=train.__name__.replace("_", "-"),
                    train=train,
                    min_skill=min_skill,
                    base=base,
                    variants=variants,
                    conditions=conditions,
                )
            )
            return train

        return register
