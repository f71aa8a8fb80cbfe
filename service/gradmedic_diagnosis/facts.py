"""What is known of a run beyond its steps: its layers and how it trains.

One idea: every fact is optional. A detector or a cause that needs a fact it does not have stays silent.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """One parameter tensor; the fields are those of a layer on the wire."""

    name: str
    kind: str | None = None
    shape: tuple[int, ...] | None = None
    numel: int | None = None
    depth: int | None = None
    frozen: bool = False
    role: str | None = None
    fan_in: int | None = None
    fan_out: int | None = None
    activation: str | None = None
    normalized: bool | None = None
    branch: bool | None = None
    initial_rms: float | None = None
    spectral_norm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerFacts:
    """An optimizer as it was when the run began."""

    name: str
    learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFacts:
    """How the run trains; the fields are those of `training` on the wire."""

    framework: str | None = None
    """Of the run, for example `torch 2.13.0`: the language that code in advice is written in."""
    optimizers: tuple[OptimizerFacts, ...] = ()
    precision: str | None = None
    input_rms: float | None = None
    input_abs_max: float | None = None
    target_rms: float | None = None
    batch_size: int | None = None
    clips_gradients: bool | None = None
