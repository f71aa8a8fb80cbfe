"""What detectors are given and what they hold."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from gradmedic_diagnosis.measurements import Architecture, Measurements
from gradmedic_diagnosis.network import Depth, NetworkAverages
from gradmedic_diagnosis.progress import LossProgress
from gradmedic_diagnosis.report import Finding, Severity, Verdict
from gradmedic_diagnosis.state import Persistent

MAX_LAYERS_NAMED = 8
"""Layers that a finding names, worst first."""


@dataclass(slots=True, eq=False)
class Moment:
    """One step as the detectors see it; the object is used again for the next one.

    What follows from statistics is of the last sampled step: it holds only where `row` is not None.
    """

    architecture: Architecture
    averages: NetworkAverages
    measurements: Measurements
    depth: Depth
    progress: LossProgress = field(default_factory=LossProgress)
    """Of the stream that this step belongs to, this loss included."""
    step: int = 0
    row: int | None = None
    """Index into `measurements` and `depth`; None on a step without statistics."""
    skipped: bool = False
    loss: float | None = None
    """As sent, possibly NaN or infinite; None where the step has none."""
    excess: float = math.nan
    """The loss over its reference (`LossProgress.excess`); NaN without a finite loss."""
    reference: float = math.nan
    """What the loss is held against, from the steps before this one."""
    is_multi_stream: bool = False
    """Several optimizers take turns, each with a loss of its own."""
    learning_rate: float = math.nan
    clip_coefficient: float = math.nan
    """What the script's clipping multiplied the gradient by; NaN where the client did not see it."""
    gradient: float = math.nan
    """Network-wide gradient norm."""
    weight: float = math.nan
    ratio: float = math.nan
    """Network-wide update over weight."""
    grip: float = 0.0
    """Largest product of a layer's gradient and weight norms."""
    nonfinite: float = 0.0
    """NaN and Inf elements of all gradients."""
    reaches_weights: bool = False
    """A weight or an update is non-finite."""
    gap: float = math.nan
    input_excess: float = math.nan
    """Decades of the strongest input-side weight matrix above the typical output-side one."""
    dead_share: float = 0.0
    typical_growth: float = 0.0
    """Decades by which the median layer's gradient stands above its own baseline."""

    def read(self, row: tuple[Any, ...]) -> None:
        """Take over the facts of a sampled step."""
        (
            self.gradient,
            self.weight,
            self.ratio,
            self.grip,
            self.nonfinite,
            self.reaches_weights,
            self.gap,
            self.input_excess,
            self.dead_share,
            self.typical_growth,
        ) = row

    @property
    def is_stuck(self) -> bool:
        """Whether the loss is going nowhere."""
        return self.progress.is_stuck

    @property
    def has_row(self) -> bool:
        """Whether the step carries statistics of at least one layer."""
        return self.row is not None and (not math.isnan(self.gradient) or self.nonfinite > 0)

    def layers_by_growth(self) -> list[int]:
        """Return the layers whose gradient stands furthest above their own baseline, worst first."""
        if self.row is None:
            return []
        growth = self.depth.growth[self.row]
        score = growth if np.isfinite(growth).any() else self.measurements.log_rms[self.row]
        return rank(score)


def rank(score: NDArray[np.float64], *, largest_first: bool = True) -> list[int]:
    """Return up to `MAX_LAYERS_NAMED` indices of finite scores, ordered."""
    finite = np.flatnonzero(np.isfinite(score))
    order = finite[np.argsort(-score[finite] if largest_first else score[finite], kind="stable")]
    return [int(i) for i in order[:MAX_LAYERS_NAMED]]


@dataclass(slots=True)
class Episode(Persistent):
    """A stretch of steps over which a detector saw something."""

    first_step: int = 0
    last_step: int = 0
    resolved_step: int | None = None
    severity: Severity = "warning"
    layers: list[int] = field(default_factory=list)
    evidence: dict[str, float] = field(default_factory=dict)


class Detector(ABC):
    """A small state machine over moments. Subclasses list what they remember in `remembered`."""

    id: ClassVar[str]
    verdict: ClassVar[Verdict]
    """The verdict it speaks for."""
    remembered: ClassVar[tuple[str, ...]] = ()
    """Attributes beside the episode that are part of the state."""

    def __init__(self) -> None:
        self.episode: Episode | None = None
        self.signal = 0.0
        """How strongly it speaks for its verdict at the last step, 0 (silent) to 1."""
        self.stuck_level = math.nan
        """Loss at which it began to speak, for detectors that speak while the loss is stuck."""

    def applies(self, architecture: Architecture, measurements: Measurements) -> bool:  # noqa: ARG002 (for subclasses)
        """Whether there is anything to see in a block: a detector of what the run does not have is not asked."""
        return True

    @abstractmethod
    def observe(self, moment: Moment) -> None:
        """Take the next step; update `episode` and `signal`."""

    @abstractmethod
    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Say in a sentence or two what was seen, against what it should be. `names` are the episode's layers."""

    def speak_while_stuck(self, moment: Moment, strength: float, *, holds: bool) -> bool:
        """Begin to speak if the evidence `holds` and the loss is stuck; go on until the loss moves. Return whether."""
        if self.signal == 0:
            if holds and moment.is_stuck:
                self.signal, self.stuck_level = strength, moment.progress.slow
        elif moment.progress.has_left(self.stuck_level):
            self.signal = 0.0
        else:
            self.signal = max(self.signal, strength if holds else 0.0)
        return self.signal > 0

    @property
    def is_open(self) -> bool:
        """Whether something is being seen now."""
        return self.episode is not None and self.episode.resolved_step is None

    def open(
        self, step: int, severity: Severity, layers: list[int], evidence: dict[str, float], since: int | None = None
    ) -> None:
        """Begin an episode, or go on with the open one: its first step and layers stay, its evidence is renewed."""
        if self.is_open and self.episode is not None:
            self.episode.last_step = step
            self.episode.evidence = evidence
            self.episode.severity = severity
            return
        self.episode = Episode(
            first_step=step if since is None else since,
            last_step=step,
            severity=severity,
            layers=layers,
            evidence=evidence,
        )

    def close(self, step: int) -> None:
        """End the open episode, if there is one, and fall silent."""
        self.signal = 0.0
        if self.episode is not None and self.episode.resolved_step is None:
            self.episode.resolved_step = step

    def finding(self, architecture: Architecture) -> Finding | None:
        """Return the episode in the words of the report."""
        episode = self.episode
        if episode is None:
            return None
        names = tuple(architecture.names[i] for i in episode.layers)
        return Finding(
            detector=self.id,
            class_=self.verdict,
            severity=episode.severity,
            layers=names,
            first_step=episode.first_step,
            last_step=episode.last_step,
            resolved_step=episode.resolved_step,
            evidence=dict(episode.evidence),
            explanation=self.explain(episode, names),
        )

    def to_state(self) -> dict[str, Any]:
        """Return what must be remembered."""
        state: dict[str, Any] = {}
        for name in self.remembered:
            value = getattr(self, name)
            state[name] = value.to_state() if isinstance(value, Persistent) else value
        return {
            **state,
            "signal": self.signal,
            "stuck_level": self.stuck_level,
            "episode": self.episode and self.episode.to_state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Restore what `to_state` returned."""
        self = cls()
        self.signal, self.stuck_level = state["signal"], state["stuck_level"]
        for name in cls.remembered:
            if name not in state:
                continue
            current = getattr(self, name)
            if isinstance(current, Persistent):
                current.restore(state[name])
            else:
                setattr(self, name, state[name])
        if state["episode"] is not None:
            self.episode = Episode()
            self.episode.restore(state["episode"])
        return self
