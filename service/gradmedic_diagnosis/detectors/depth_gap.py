"""Gradients that fade on their way to the input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic_diagnosis.detectors.base import STUCK_PATIENCE, Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView, rank_layers
from gradmedic_diagnosis.series_history import SeriesHistory

GAP_DECADES = 1.5
"""Decades between the strongest weight matrix and the typical one on the input side. Networks that train have up to
about one (residual, normalized, well initialized). A gap alone supports no verdict, since some networks train with
two."""
LARGE_GAP_DECADES = 3.0
"""Three decades from end to end (|slope| x depth beyond ln 1000) exclude the early layers from training."""
LARGE_GAP_PATIENCE = 60
"""Losses of the run before a stuck loss and a large gap together support a verdict."""
CLOSING_DECADES = 0.3
"""A gap of less than `LARGE_GAP_DECADES` that has narrowed by this much over the later half of the run is closing: the
loss is about to fall."""
LEARNED_SHARE = 0.5
"""A run whose loss fell by this share of its start learns through its layers, whatever their gradients are, unless the
gap is large."""
LEARNED_SHARE_LARGE_GAP = 0.9
"""The share where the gap is large. Then an output bias alone can take the loss from its start to that of a constant
predictor, early and for good. A loss that fell only at first is evidence, however far it fell."""
CLOSED_DECADES = 0.5
"""Decades to which the gap must close before a verdict is withdrawn while the loss is stuck."""
TRAINABLE_DECADES = 2.0
"""Gap with which some networks train, as above."""
INSENSITIVE = 0.01
"""A gap of less than `TRAINABLE_DECADES` counts only if the loss would change by less than this share of itself when
the input-side matrices changed by their own size along the gradient, as in `InsensitiveLoss`. Where there is nothing
more to learn, the examples' gradients cancel each other, which opens such gaps, too. Plain recurrent networks are left
out: their input side gets the gradient of the last time step in any case."""
HORIZON = 20
"""Sampled steps over which that share is averaged."""
UNMOVED = 1e-3
"""Sum of the updates over the weights at which the weight matrices of the input side are still those of the start."""
MOVED_FACTOR = 100.0
"""The network as a whole must have moved by this many times as much: then its output alone brings the loss down."""
STRENGTH = 0.8
LARGE_GAP_STRENGTH = 0.9


class DepthGap(Detector):
    """The input side's gradients are decades below the strongest ones, and the loss is stuck."""

    id = "depth_gap"
    verdict = "vanishing"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "since_step": "since",
        "gap_history": "history",
        "movement": "movement",
        "input_side_movement": "input_side_movement",
        "input_sensitivity": "input_sensitivity",
    }

    def __init__(self) -> None:
        super().__init__()
        self.since_step: int | None = None
        self.gap_history = SeriesHistory()
        self.movement = 0.0
        """Sum of the network-wide updates over the weights, on sampled steps."""
        self.input_side_movement = 0.0
        """The same of the input-side half of the weight matrices."""
        self.input_sensitivity = 0.0
        """Average share by which the loss would change if an input-side matrix changed by its own size; 0 before."""

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the first one with a gap."""
        if not self.is_at_rest or self.since_step is not None:
            return 0
        gaps = columns.depth_profile.depth_gap
        stop = columns.first_row(gaps >= GAP_DECADES)
        rows = columns.rows_before[stop]
        measurements = columns.measurements
        numbers = (gaps, measurements.update_ratio, measurements.input_side_update_ratio)
        for gap, update, input_side_update in zip(*(column[:rows].tolist() for column in numbers), strict=True):
            if math.isnan(gap):
                continue
            self.gap_history.add(gap)
            if math.isfinite(update) and math.isfinite(input_side_update):
                self.movement += update
                self.input_side_movement += input_side_update
        return stop

    def observe(self, view: StepView) -> None:
        """Compare the gap with its thresholds, and check whether the loss is stuck."""
        if view.row is None or math.isnan(view.depth_gap):
            return
        self.gap_history.add(view.depth_gap)
        if math.isfinite(view.update_ratio) and math.isfinite(view.input_side_update_ratio):
            self.movement += view.update_ratio
            self.input_side_movement += view.input_side_update_ratio
        if view.depth_gap < (CLOSED_DECADES if self.strength else GAP_DECADES):
            self.since_step = None
            self.close_finding(view.step)
            return
        if self.since_step is None:
            self.since_step = view.step
        if (level := abs(view.progress.current)) > 0:
            change = view.input_side_product / level - self.input_sensitivity
            self.input_sensitivity += change / HORIZON
        is_large = view.depth_gap >= LARGE_GAP_DECADES
        if is_large and self._only_the_output_moves(view):
            self.strength, self.stuck_level = LARGE_GAP_STRENGTH, view.objective.slow_average
        else:
            self.update_strength_while_stuck(
                view,
                LARGE_GAP_STRENGTH if is_large else STRENGTH,
                has_evidence=self._has_evidence(view, is_large=is_large),
            )
        if self.strength or is_large:
            level = view.depth_profile.smoothed_log_rms[view.row].copy()
            level[~view.architecture.is_path] = np.nan
            evidence = {
                "gap_decades": view.depth_gap,
                "weakest_log10_rms": float(np.nanmin(level)),
                "strongest_log10_rms": float(np.nanmax(level)),
                "loss_fallen": view.progress.fallen_share,
            }
            severity = "critical" if self.strength else "note"
            layers = rank_layers(level, largest_first=False)
            self.update_finding(view.step, severity, layers, evidence, since=self.since_step)

    def _only_the_output_moves(self, view: StepView) -> bool:
        """Whether the input-side matrices have stayed as they were, while the network as a whole moved."""
        is_old = view.progress.count >= STUCK_PATIENCE and not view.has_several_streams
        if view.dead_share > 0:  # a backbone that the script froze does not move either
            return False
        has_moved = self.input_side_movement >= UNMOVED or self.movement < MOVED_FACTOR * self.input_side_movement
        return is_old and self.movement > 0 and not has_moved

    def _has_evidence(self, view: StepView, *, is_large: bool) -> bool:
        """Whether the run is old enough for the gap, and has not learned in spite of it."""
        progress = view.progress
        if view.has_several_streams:
            return False
        if is_large:
            # A gap down to exactly zero may be a backbone that the script froze: then only an unmoved loss counts.
            learned_share = LEARNED_SHARE if view.dead_share > 0 else LEARNED_SHARE_LARGE_GAP
            patience = LARGE_GAP_PATIENCE if progress.fallen_share < LEARNED_SHARE else STUCK_PATIENCE
            fell_by_bias_alone = view.dead_share == 0 and progress.fell_only_at_first()
            return progress.count >= patience and (progress.fallen_share < learned_share or fell_by_bias_alone)
        if progress.count < STUCK_PATIENCE or progress.fallen_share >= LEARNED_SHARE:
            return False
        is_small = view.depth_gap < TRAINABLE_DECADES
        if is_small and self.input_sensitivity >= INSENSITIVE and not view.architecture.recurrent:
            return False
        return view.depth_gap >= self.gap_history.mean(0.5, 0.75)[0] - CLOSING_DECADES

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain the gap, and how far the loss fell."""
        evidence = finding.evidence
        where = f", weakest in {layers[0]}" if layers else ""
        stuck = " while the loss is stuck" if finding.severity == "critical" else ""
        return (
            f"Gradients on the input side are 10^{evidence['gap_decades']:.1f} times smaller than at the strongest "
            f"layer{where}{stuck} (it fell by {max(0.0, evidence['loss_fallen']):.0%} since the start)."
        )
