"""Versioned descriptions of a run."""

from __future__ import annotations

from typing import Any

from gradmedic.protocol.runs import Layer, Loss, Objective, Optimizer, RunCreate, Training
from gradmedic.recording.description import RunDescriber
from gradmedic.recording.instrumentation import Instrumentation, PendingMeasurement
from gradmedic.recording.layers import LayerRegistry


class DescribedInstrumentation:
    """An instrumentation that only describes its training."""

    framework = "torch 9"
    statistics: tuple[str, ...] = ("grad_norm", "weight_norm")

    def __init__(self, training: Training | None) -> None:
        self.current_training = training

    def describe(self) -> None:
        """Do nothing: the layers are registered by the test."""

    def training(self) -> Training | None:
        """Return the training."""
        return self.current_training

    def finish_step(self, loss: Any = None) -> PendingMeasurement:
        """Not used here."""
        raise NotImplementedError

    def clip(self, max_norm: float) -> None:
        """Do nothing."""

    def start_reading(self, number: Any) -> None:
        """Own no number."""

    def close(self) -> None:
        """Do nothing."""


def test_the_version_grows_when_anything_changes_and_only_then() -> None:
    """New layers, statistics, dropped steps and another training make a new description."""
    layers = LayerRegistry()
    instrumentations: list[Instrumentation] = []
    describer = RunDescriber(RunCreate(project="p", layers=[]), layers, instrumentations)
    first = describer.current()
    assert describer.current() is first
    assert first.content.statistics == ["grad_norm"]
    layers.add(Layer(name="w"))
    versions = [first.version, describer.current().version]
    describer.note_statistics(("grad_norm", "grad_mean"))
    versions.append(describer.current().version)
    versions.append(describer.current(3).version)
    instrumentation = DescribedInstrumentation(Training(batch_size=4))
    instrumentations.append(instrumentation)
    versions.append(describer.current(3).version)
    instrumentation.current_training = Training(batch_size=5)
    last = describer.current(3)
    versions.append(last.version)
    assert versions == sorted(set(versions))
    assert describer.current(3) is last
    assert [layer.name for layer in last.content.layers] == ["w"]
    assert last.content.statistics == ["grad_norm", "grad_mean"]
    assert last.content.framework == "torch 9"
    assert last.content.training == Training(batch_size=5, dropped_steps=3)


def test_the_statistics_of_the_first_row_are_the_runs() -> None:
    """Later rows with other statistics do not change the description."""
    describer = RunDescriber(RunCreate(project="p", layers=[]), LayerRegistry(), [])
    describer.note_statistics(("grad_norm", "grad_mean"))
    describer.note_statistics(("weight_norm",))
    assert describer.current().content.statistics == ["grad_norm", "grad_mean"]


def test_trainings_of_several_instrumentations_are_merged() -> None:
    """The description has the optimizers of all, the first target, and everything else of the first."""
    trainings = [
        Training(optimizers=[Optimizer(name="SGD")], batch_size=4, clips_gradients=False),
        Training(
            optimizers=[Optimizer(name="Adam")],
            batch_size=8,
            clips_gradients=True,
            target_rms=2.0,
            loss=Loss(kind="ctc"),
        ),
    ]
    describer = RunDescriber(
        RunCreate(project="p", layers=[]),
        LayerRegistry(),
        [DescribedInstrumentation(training) for training in (None, *trainings)],
    )
    assert describer.current().content.training == Training(
        optimizers=[Optimizer(name="SGD"), Optimizer(name="Adam")],
        batch_size=4,
        clips_gradients=True,
        target_rms=2.0,
        loss=Loss(kind="ctc"),
    )


def test_the_objective_stays_with_what_instrumentations_show() -> None:
    """What `init()` declared is in every description, before and after the first facts."""
    objective = Objective(kind="none")
    instrumentation = DescribedInstrumentation(None)
    describer = RunDescriber(
        RunCreate(project="p", layers=[], training=Training(objective=objective)), LayerRegistry(), [instrumentation]
    )
    assert describer.current().content.training == Training(objective=objective)
    instrumentation.current_training = Training(batch_size=4)
    assert describer.current(1).content.training == Training(batch_size=4, objective=objective, dropped_steps=1)
