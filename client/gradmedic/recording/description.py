"""The description of a run for the service: its configuration, layers, statistics and training."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gradmedic.protocol.runs import Objective, RunCreate, Training
from gradmedic.recording.draft import largest
from gradmedic.recording.facts import check_training
from gradmedic.recording.instrumentation import Instrumentation
from gradmedic.recording.layers import LayerRegistry
from gradmedic.recording.one_time_warnings import OneTimeWarnings

T = TypeVar("T")

_DEFAULT_STATISTICS = ("grad_norm",)
"""The statistics of a run that is registered before its first row: every kind of row has this one."""


@dataclass(frozen=True, slots=True)
class RunDescription:
    """The description of a run at one moment. Two descriptions of a run with the same version are equal."""

    version: int
    content: RunCreate


class RunDescriber:
    """Describes a run as it is now. Any thread may use it; the training thread does not.

    Args:
        content: the part of the description that `init()` was given.
        layers: layers of the run.
        instrumentations: instrumentations of the run; more may be appended.
    """

    def __init__(self, content: RunCreate, layers: LayerRegistry, instrumentations: Sequence[Instrumentation]) -> None:
        self._content = content
        self._layers = layers
        self._instrumentations = instrumentations
        self._statistics: tuple[str, ...] | None = None
        self._warn = OneTimeWarnings().warn
        self._lock = threading.Lock()
        self._facts: object = None
        self._framework: str | None = None
        self._training: Training | None = None
        self._description = RunDescription(0, content)

    @property
    def objective(self) -> Objective | None:
        """What counts as progress, as `init()` was given it."""
        return None if self._content.training is None else self._content.training.objective

    def note_statistics(self, statistics: tuple[str, ...]) -> list[str]:
        """Note the statistics of a row. Those of the first row are the run's; return those that this row lacks."""
        if self._statistics is None:
            self._statistics = statistics
        return [name for name in self._statistics if name not in statistics]

    def current(self, dropped_steps: int = 0) -> RunDescription:
        """Return the description. Its version grows when anything changed.

        Args:
            dropped_steps: number of steps that were dropped so far.
        """
        with self._lock:
            trainings = [instrumentation.training() for instrumentation in self._instrumentations]
            facts = (len(self._layers), self._statistics, dropped_steps, *trainings)
            if facts != self._facts:
                self._facts = facts
                self._description = RunDescription(
                    self._description.version + 1, self._describe(trainings, dropped_steps)
                )
            return self._description

    def reset_lock(self) -> None:
        """Make the lock free in a forked child, where no thread releases it."""
        self._lock = threading.Lock()

    def _describe(self, trainings: Iterable[Training | None], dropped_steps: int) -> RunCreate:
        statistics = self._statistics or _first(
            instrumentation.statistics for instrumentation in self._instrumentations
        )
        training = _merge([check_training(training, self._warn) for training in trainings if training is not None])
        # What the instrumentations showed stays known after they are closed.
        training = self._training = training or self._training
        if self.objective is not None:
            training = dataclasses.replace(training or Training(), objective=self.objective)
        self._framework = self._framework or _first(each.framework for each in self._instrumentations)
        if dropped_steps:
            training = dataclasses.replace(training or Training(), dropped_steps=dropped_steps)
        return dataclasses.replace(
            self._content,
            framework=self._framework,
            layers=self._layers.snapshot(),
            statistics=list(statistics or _DEFAULT_STATISTICS),
            training=training,
        )


def _merge(trainings: Sequence[Training]) -> Training | None:
    """Return the training of several instrumentations: everything of the first, and the optimizers of all."""
    if not trainings:
        return None
    return dataclasses.replace(
        trainings[0],
        optimizers=[optimizer for training in trainings for optimizer in training.optimizers],
        target_rms=_first(training.target_rms for training in trainings),
        loss=_first(training.loss for training in trainings),
        origin=_first(training.origin for training in trainings),
        clips_gradients=largest(training.clips_gradients for training in trainings),
        carries_gradients=largest(training.carries_gradients for training in trainings),
    )


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)
