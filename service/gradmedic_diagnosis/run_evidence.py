"""The evidence about one run in which something is wrong: its findings, layers, training, history, and what they imply.

Causes and advice read it. Each derived number is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from gradmedic.protocol.diagnosis import Finding
from gradmedic.protocol.layer_roles import is_named_after_normalization
from gradmedic.protocol.runs import Layer, Training
from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS, Learning, Verdict
from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.layer_averages import LayerAverages
from gradmedic_diagnosis.optimizers import has_scale_free_optimizers
from gradmedic_diagnosis.run_history import RunHistory

SATURATING = ("sigmoid", "tanh", "softsign", "hardsigmoid", "hardtanh", "logsigmoid")
"""Activations whose slope goes to zero on both sides."""
RECTIFIERS = (
    "relu",
    "leaky_relu",
    "leakyrelu",
    "prelu",
    "elu",
    "gelu",
    "silu",
    "relu6",
    "hardswish",
    "mish",
    "softplus",
)
"""Activations that pass positive inputs and suppress negative ones."""
UNBOUNDED = ("exp", "square", "cube", "power")
"""Activations that grow faster than their input."""
CLASS_LOSSES = ("cross_entropy", "binary_cross_entropy", "negative_log_likelihood", "ctc", "kl_divergence", "margin")
RECTIFIER_GAIN = 2.0
"""Behind a rectifier, weights need this many times the variance to preserve a signal (He et al. 2015)."""
NORMALIZED_DECADES = 2.5
"""Decades by which a normalization can raise a signal: torch's adds 1e-5 to the variance that it divides by."""
SLOW_UPDATE_RATIO = 1e-5
"""Update over weight below the practical band of 1e-5 to 1e-2 for a whole network."""
ENDED_SHARE = 0.01
"""Share of the largest learning rate at or below which a schedule has ended the training."""
TINY = 1e-30
"""Lower bound of a number whose logarithm is taken."""


@dataclass(frozen=True, eq=False)
class RunEvidence:
    """The evidence about a run that is called vanishing or exploding, that has a condition, or that does not learn."""

    verdict: Verdict
    findings: Sequence[Finding]
    layers: Sequence[Layer]
    architecture: Architecture
    training: Training
    framework: str | None
    averages: LayerAverages
    history: RunHistory
    conditions: Mapping[str, float] = field(default_factory=dict)
    """Score as a cause (`Detector.cause_score`) of each finding that is one, by detector."""
    learning: Learning = "unknown"
    """What the objective does."""

    def find(self, detector: str) -> Finding | None:
        """Return the detector's finding; None if it has none."""
        return next((finding for finding in self.findings if finding.detector == detector), None)

    @cached_property
    def path(self) -> list[int]:
        """Weight matrices in forward order; embeddings where there are no weight matrices."""
        is_path = self.architecture.is_path if self.architecture.is_path.any() else self.architecture.is_embedding
        return [int(i) for i in self.architecture.order if is_path[i]]

    @cached_property
    def main_path(self) -> list[int]:
        """Weight matrices that a signal cannot pass by, in forward order: neither recurrent nor on a branch."""
        return [i for i in self.path if i not in self.recurrent and not self.layers[i].branch]

    @cached_property
    def embeddings(self) -> list[int]:
        """Embeddings that train and whose width is known."""
        shown = (int(i) for i in np.flatnonzero(self.architecture.is_embedding))
        return [i for i in shown if len(self.layers[i].shape or ()) == 2 and not self.layers[i].frozen]

    def embedding_width(self, layer: int) -> int:
        """Return the width of the vectors of one of `embeddings`."""
        return int((self.layers[layer].shape or (1,))[-1])

    @property
    def recurrent(self) -> tuple[int, ...]:
        """Plain recurrent matrices."""
        return self.architecture.recurrent

    @cached_property
    def has_recurrence(self) -> bool:
        """Whether any layer belongs to a recurrent cell, gated or not."""
        return bool(self.recurrent) or any(_is_recurrent(layer) for layer in self.layers)

    @cached_property
    def is_all_recurrent(self) -> bool:
        """Whether every weight matrix but the head belongs to a recurrent cell: there is no other hidden layer."""
        others = [i for i in self.path if i not in self.recurrent and not _is_recurrent(self.layers[i])]
        return self.has_recurrence and len(others) <= 1

    @cached_property
    def activations(self) -> list[str]:
        """Known activations behind the weight matrices, in forward order."""
        activations = (self.layers[i].activation for i in self.path)
        return [activation.lower() for activation in activations if activation]

    @cached_property
    def is_normalized(self) -> bool:
        """Whether the network has any normalization."""
        return any(_is_normalization(layer) or layer.normalized for layer in self.layers)

    @cached_property
    def initial_signal_decades(self) -> float:
        """Decades by which the initial weights amplify a signal on its way through the network.

        It is 0 where the initialization preserves variance. Each matrix contributes log10 sqrt(fan_in * var / c), with
        c = 2 behind a rectifier (He et al. 2015) and 1 otherwise (LeCun et al. 1998). Recurrent matrices and branches
        beside an identity path are left out: a signal passes them by. A normalization takes the signal back to its
        size; one on a branch only adds a signal of that size. NaN where the scales are unknown.
        """
        total, is_known = 0.0, False
        main_path = set(self.main_path)
        for i in map(int, self.architecture.order):
            layer = self.layers[i]
            if layer.branch:
                total = max(total, _normalize(total)) if layer.input_normalized else total
            elif layer.input_normalized or _is_normalization(layer):
                total = _normalize(total)
            if i not in main_path:
                continue
            rms = layer.initial_rms
            if rms is None:
                norm = float(self.averages.first_weight_norm[i])
                rms = norm / float(self.architecture.sqrt_numel[i]) if math.isfinite(norm) else math.nan
            fan_in = layer.fan_in or float(self.architecture.sqrt_numel[i])
            if not math.isfinite(rms) or fan_in <= 0:
                continue
            is_known = True
            unknown = "linear" if i == self.path[-1] else "relu"
            gain = RECTIFIER_GAIN if (layer.activation or unknown).lower() in RECTIFIERS else 1.0
            total += 0.5 * math.log10(max(fan_in * rms * rms / gain, TINY))
            if layer.normalized:
                total = _normalize(total)
        return total if is_known else math.nan

    @cached_property
    def zero_initialized(self) -> list[int]:
        """Weight matrices whose initial weights are exactly zero."""
        return [i for i in self.path if self.averages.first_weight_norm[i] == 0]

    @cached_property
    def starts_at_zero(self) -> bool:
        """Whether all weight matrices start at exactly zero. Any first update is infinitely large against them."""
        return bool(self.path) and len(self.zero_initialized) == len(self.path)

    @cached_property
    def is_optimizer_scale_free(self) -> bool:
        """Whether every optimizer divides the gradient by its own size, so that a large gradient is no large update."""
        return has_scale_free_optimizers(self.training)

    @cached_property
    def is_classification(self) -> bool:
        """Whether the loss compares probabilities of classes, so that its targets have no scale."""
        return self.training.loss is not None and self.training.loss.kind in CLASS_LOSSES

    @cached_property
    def recurrent_factor(self) -> float:
        """Largest factor per time step of a recurrent matrix, by its spectral norm if known; NaN without a matrix."""
        factors = []
        for i in self.recurrent:
            norm = self.layers[i].spectral_norm
            if norm is None:
                norm = float(self.averages.first_weight_norm[i]) / math.sqrt(float(self.architecture.sqrt_numel[i]))
            factors.append(norm * float(self.architecture.largest_slope[i]))
        return max(factors) if factors else math.nan

    @cached_property
    def weight_shrinkage(self) -> float:
        """Median over the weight matrices of the last norm over the first one; NaN where unknown."""
        ratios = [
            float(self.averages.last_weight_norm[i] / self.averages.first_weight_norm[i])
            for i in self.path
            if self.averages.first_weight_norm[i] > 0 and np.isfinite(self.averages.last_weight_norm[i])
        ]
        return float(np.median(ratios)) if ratios else math.nan

    @cached_property
    def typical_update_ratio(self) -> float:
        """Network-wide update over weight in the calm steps of the run; the first one where none is calm."""
        calm = self.history.typical_update_ratio()
        return calm if math.isfinite(calm) else self.history.first_update_ratio

    @property
    def open_findings(self) -> list[Finding]:
        """The findings that hold now."""
        return [finding for finding in self.findings if finding.resolved_step is None]

    @property
    def slow_update_ratio(self) -> float:
        """Typical update over weight, of a run without alarm in which none was in the practical band; else NaN."""
        is_slow = self.history.largest_update_ratio <= SLOW_UPDATE_RATIO and self.verdict not in UNHEALTHY_VERDICTS
        return self.typical_update_ratio if is_slow else math.nan

    @cached_property
    def has_ended_schedule(self) -> bool:
        """Whether a schedule took the learning rate to nearly nothing before the loss moved."""
        rate, largest = self.history.last_learning_rate, self.history.largest_learning_rate
        has_failed = self.verdict not in UNHEALTHY_VERDICTS and self.learning == "stuck"
        return has_failed and largest > 0 and 0 <= rate <= ENDED_SHARE * largest

    @cached_property
    def numel(self) -> float:
        """Number of parameters, at least 1."""
        return max(1.0, float(np.square(self.architecture.sqrt_numel).sum()))


def _normalize(decades: float) -> float:
    """Return the decades of a signal's size behind a normalization."""
    return min(0.0, decades + NORMALIZED_DECADES)


def _is_normalization(layer: Layer) -> bool:
    return "norm" in (layer.kind or "").lower() or is_named_after_normalization(layer)


def _is_recurrent(layer: Layer) -> bool:
    return (layer.kind or "").lower().startswith(("rnn", "lstm", "gru"))
