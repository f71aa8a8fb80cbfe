"""Reads what a `Watch` measures, without a service."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from gradmedic.protocol.runs import Layer
from gradmedic.recording.instrumentation import Measurement
from gradmedic.recording.layers import LayerRegistry
from gradmedic.recording.sampler import Sampler
from gradmedic.torch.watch import Watch

Statistics = dict[str, dict[str, float]]


class Recording:
    """A `Watch`, with what `Run` does with it at each `log()`."""

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
        *,
        log_freq: int | None = 1,
        **arguments: Any,
    ) -> None:
        self.layer_registry = LayerRegistry()
        self.sampler = Sampler(log_freq)
        self.watch = Watch(model, optimizer, **arguments)
        self.watch.begin(
            layer_registry=self.layer_registry, sampler=self.sampler, before_first_step=self.watch.describe
        )

    @property
    def layers(self) -> dict[str, Layer]:
        """Return the layers by name."""
        self.watch.describe()
        return {layer.name: layer for layer in self.layer_registry.snapshot()}

    def log(self) -> Measurement:
        """Return what was measured since the last call."""
        self.watch.describe()
        measurement = self.watch.finish_step().read()
        self.sampler.advance()
        return measurement

    def statistics(self) -> Statistics:
        """Return the same as statistics by layer; empty if the step was not sampled."""
        return self.by_layer(self.log())

    def by_layer(self, measurement: Measurement) -> Statistics:
        """Return the statistics of a measurement by layer."""
        if measurement.row is None:
            return {}
        layers = self.layer_registry.snapshot()
        return {
            layers[position].name: dict(zip(measurement.row.statistics, map(float, values), strict=True))
            for position, values in zip(measurement.row.layers, measurement.row.values, strict=True)
        }

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.close()
