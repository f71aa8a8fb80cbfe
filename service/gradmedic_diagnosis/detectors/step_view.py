"""One step of a run, as the detectors read it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.runs import Loss, Training
from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.layer_averages import DepthProfile, LayerAverages
from gradmedic_diagnosis.loss_progress import CONSTANT_SHARE, UNMOVED_SHARE, LossProgress
from gradmedic_diagnosis.measurements import Measurements
from gradmedic_diagnosis.probes import NO_PROBES, Probes

MAX_LAYERS_NAMED = 8
"""Most layers that a finding names, the worst first."""


@dataclass(slots=True, eq=False)
class StepView:
    """One step, with all measurements of its block. The object is reused for the next step.

    The fields from `gradient_norm` on are those of the last sampled step. They describe this step only where `row` is
    not None.
    """

    architecture: Architecture
    averages: LayerAverages
    """The averages after the whole block, not after this step."""
    measurements: Measurements
    depth_profile: DepthProfile
    progress: LossProgress = field(default_factory=LossProgress)
    """Progress of the loss of this step's stream, this loss included."""
    objective: LossProgress = field(default_factory=LossProgress)
    """Progress of what counts as progress: that of the loss, unless the user declared a metric."""
    measures_progress: bool = True
    """Whether the objective measures progress. The loss of a policy gradient, for example, does not."""
    step: int = 0
    row: int | None = None
    """Row of the step in `measurements` and `depth_profile`; None on a step without statistics."""
    is_skipped: bool = False
    """Whether a loss scaler or a guard skipped the step."""
    loss: float | None = None
    """The loss as it was sent, possibly NaN or infinite; None where the step has none."""
    loss_ratio: float = math.nan
    """The loss over its reference (`LossProgress.ratio_to_reference`); NaN without a finite loss."""
    loss_reference: float = math.nan
    """The level that the loss is compared with, from the steps before this one."""
    has_several_streams: bool = False
    """Whether several optimizers take turns, each with a loss of its own."""
    stream: str = ""
    """Key of the optimizer's turn that the step belongs to."""
    learning_rate: float = math.nan
    clip_coefficient: float = math.nan
    """Factor of the script's own clipping; NaN where the client did not see it."""
    is_loss_measure: bool = True
    """Whether the loss itself measures progress, also where a metric is the objective."""
    loss_facts: Loss | None = None
    """What the client saw of the loss."""
    constant_level: float = math.nan
    """Loss of a predictor with a constant output; NaN where it is unknown."""
    output_gradient_norm: float = math.nan
    """Norm of the loss's gradient at the model's output; NaN where the client did not measure it."""
    loss_scale: float = math.nan
    """Factor of a loss scaler; NaN where there is none."""
    probes: Probes = field(default_factory=lambda: NO_PROBES)
    """The probes of this step, by probe and subject. Empty on most steps."""
    training: Training = field(default_factory=Training)
    """Facts about the training."""
    gradient_norm: float = math.nan
    """Network-wide gradient norm."""
    weight_norm: float = math.nan
    """Network-wide weight norm."""
    update_ratio: float = math.nan
    """Network-wide update norm over weight norm."""
    input_side_update_ratio: float = math.nan
    """The same of the input-side half of the weight matrices on the gradient's path."""
    gradient_weight_product: float = 0.0
    """Largest product of a layer's gradient norm and weight norm."""
    input_side_product: float = 0.0
    """The same of the input-side half of the weight matrices on the gradient's path."""
    nonfinite_count: float = 0.0
    """NaN and Inf elements of all gradients."""
    has_nonfinite_weights: bool = False
    """Whether a weight or an update is non-finite."""
    depth_gap: float = math.nan
    """Decades between the strongest weight matrix and the typical one on the input side."""
    depth_growth: float = math.nan
    """Decades of the strongest weight matrix on the input side above the typical one on the output side."""
    dead_share: float = 0.0
    """Share of the weight matrices whose gradient is exactly zero."""
    typical_growth: float = 0.0
    """Decades of the median layer's gradient above its own baseline."""

    def set_statistics(self, row: int, values: tuple[Any, ...]) -> None:
        """Set the fields of a sampled step, from its row and one of the tuples of `read_rows`."""
        self.row = row
        (
            self.gradient_norm,
            self.weight_norm,
            self.update_ratio,
            self.input_side_update_ratio,
            self.gradient_weight_product,
            self.input_side_product,
            self.nonfinite_count,
            self.has_nonfinite_weights,
            self.depth_gap,
            self.depth_growth,
            self.dead_share,
            self.typical_growth,
        ) = values

    @property
    def is_stuck(self) -> bool:
        """Whether the objective is known to show no decline."""
        return self.measures_progress and self.objective.is_stuck

    @property
    def has_learned(self) -> bool:
        """Whether the objective has fallen, and below what a constant output gets, where that is known."""
        objective = self.objective
        is_below_constant = not objective.current >= (1 - CONSTANT_SHARE) * self.constant_level
        return objective.fallen_share >= UNMOVED_SHARE and is_below_constant

    @property
    def learned_share(self) -> float:
        """Share of its start by which the objective has fallen; of what a constant output gets, where that is lower.

        A run that began far above the level of a constant output has learned nothing on the way down to it.
        """
        if not self.objective.start > self.constant_level > 0:
            return self.objective.fallen_share
        return (self.constant_level - self.objective.current) / self.constant_level

    @property
    def has_statistics(self) -> bool:
        """Whether the step carries statistics of at least one layer."""
        return self.row is not None and (not math.isnan(self.gradient_norm) or self.nonfinite_count > 0)

    def layers_by_growth(self) -> list[int]:
        """Return the layers whose gradient is furthest above their own baseline, the furthest first."""
        if self.row is None:
            return []
        growth = self.depth_profile.growth[self.row]
        return rank_layers(growth if np.isfinite(growth).any() else self.measurements.log_rms[self.row])


def read_rows(measurements: Measurements, profile: DepthProfile) -> list[tuple[Any, ...]]:
    """Return one tuple of Python numbers per row, for `StepView.set_statistics`. Numpy's are slower one by one."""
    columns = (
        measurements.total_gradient_norm,
        measurements.total_weight_norm,
        measurements.update_ratio,
        measurements.input_side_update_ratio,
        measurements.gradient_weight_product,
        measurements.input_side_product,
        measurements.total_nonfinite_count,
        measurements.has_nonfinite_weights,
        profile.depth_gap,
        profile.depth_growth,
        profile.dead_share,
        profile.typical_growth,
    )
    return list(zip(*(column.tolist() for column in columns), strict=True))


def rank_layers(scores: NDArray[np.float64], *, largest_first: bool = True) -> list[int]:
    """Return the indices of finite scores in order, at most `MAX_LAYERS_NAMED`."""
    finite = np.flatnonzero(np.isfinite(scores))
    order = finite[np.argsort(-scores[finite] if largest_first else scores[finite], kind="stable")]
    return [int(i) for i in order[:MAX_LAYERS_NAMED]]
