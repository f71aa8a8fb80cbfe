"""The case of one unhealthy run: what its findings, layers, training facts and history say together.

Causes and advice both read it; it computes each derived number once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gradmedic_diagnosis.facts import LayerFacts, TrainingFacts
from gradmedic_diagnosis.history import RunHistory
from gradmedic_diagnosis.measurements import Architecture
from gradmedic_diagnosis.network import NetworkAverages
from gradmedic_diagnosis.report import Finding, Verdict

SATURATING = ("sigmoid", "tanh", "softsign", "hardsigmoid", "hardtanh", "logsigmoid")
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
UNBOUNDED = ("exp", "square", "cube")


@dataclass(frozen=True, eq=False)
class Case:
    """Everything known of a run that is called vanishing or exploding."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    layers: Sequence[LayerFacts]
    architecture: Architecture
    training: TrainingFacts
    averages: NetworkAverages
    history: RunHistory

    def finding(self, detector: str) -> Finding | None:
        """Return the detector's finding, if it has one."""
        return next((f for f in self.findings if f.detector == detector), None)

    @cached_property
    def path(self) -> list[int]:
        """Weight matrices in forward order; in a model of embeddings alone, those."""
        is_path = self.architecture.is_path if self.architecture.is_path.any() else self.architecture.is_embedding
        return [int(i) for i in self.architecture.order if is_path[i]]

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
        """Known activations of the path, forward order."""
        found = (self.layers[i].activation for i in self.path)
        return [a.lower() for a in found if a]

    @cached_property
    def is_normalized(self) -> bool:
        """Whether the network has normalization anywhere."""
        names = ("norm", "bn", "ln")
        by_kind = any("norm" in (layer.kind or "").lower() or layer.normalized for layer in self.layers)
        return by_kind or any(part.startswith(names) for layer in self.layers for part in layer.name.lower().split("."))

    @cached_property
    def init_decades(self) -> float:
        """Decades by which the initial weights scale a signal on its way through, against variance preservation.

        Each matrix contributes log10 sqrt(fan_in * var / c), with c = 2 behind a rectifier (He et al. 2015) and 1
        otherwise (LeCun et al. 1998). NaN where the scales are not known. Recurrent matrices are left out.
        """
        total, known = 0.0, False
        for i in self.path:
            layer = self.layers[i]
            if i in self.recurrent or layer.branch:
                continue
            rms = layer.initial_rms
            if rms is None:
                norm = float(self.averages.initial_weight[i])
                rms = norm / float(self.architecture.sqrt_numel[i]) if math.isfinite(norm) else math.nan
            fan_in = layer.fan_in or float(self.architecture.sqrt_numel[i])
            if not math.isfinite(rms) or fan_in <= 0:
                continue
            known = True
            gain = 2.0 if (layer.activation or "relu").lower() in RECTIFIERS else 1.0
            total += 0.5 * math.log10(max(fan_in * rms * rms / gain, 1e-30))
        return total if known else math.nan

    @cached_property
    def zero_initialized(self) -> list[int]:
        """Path matrices whose initial weights are exactly zero."""
        return [i for i in self.path if self.averages.initial_weight[i] == 0]

    @cached_property
    def recurrent_factor(self) -> float:
        """Per-time-step factor of the largest recurrent matrix (spectral norm if known); NaN without one."""
        factors = []
        for i in self.recurrent:
            norm = self.layers[i].spectral_norm
            if norm is None:
                norm = float(self.averages.initial_weight[i]) / math.sqrt(float(self.architecture.sqrt_numel[i]))
            factors.append(norm * float(self.architecture.recurrent_slope[i]))
        return max(factors) if factors else math.nan

    @cached_property
    def weight_shrinkage(self) -> float:
        """Median of weight norm now over initially, over the path; NaN where unknown."""
        ratio = [
            float(self.averages.weight[i] / self.averages.initial_weight[i])
            for i in self.path
            if self.averages.initial_weight[i] > 0 and np.isfinite(self.averages.weight[i])
        ]
        return float(np.median(ratio)) if ratio else math.nan

    @cached_property
    def typical_ratio(self) -> float:
        """Network-wide update over weight in the calm part of the run; its first value where there is no other."""
        calm = self.history.typical_ratio()
        return calm if math.isfinite(calm) else self.history.first_ratio

    @cached_property
    def numel(self) -> float:
        """Number of parameters, at least 1."""
        return max(1.0, float(np.square(self.architecture.sqrt_numel).sum()))


def _is_recurrent(layer: LayerFacts) -> bool:
    return (layer.kind or "").lower().startswith(("rnn", "lstm", "gru"))
