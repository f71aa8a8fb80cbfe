"""What the diagnosis is told about a run: its layers and training, in the core's own words.

One idea: facts are found by the digest of what they are made from. A digest never means anything else, so that every
replica may keep what it has seen, and runs of the same model share it.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from gradmedic.protocol.encoding import encode_json
from gradmedic.protocol.runs import Layer, Training
from gradmedic_diagnosis import LayerFacts, OptimizerFacts, TrainingFacts

LAYERS = TypeAdapter(list[Layer])
TRAINING = TypeAdapter(Training | None)
StoredFacts = tuple[list[Any], dict[str, Any] | None, str | None]
"""Layers and training as they are stored, and the framework."""
CACHED_MODELS = 64
"""Some 0.5 KB a layer: 64 models of a thousand layers are 32 MB."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Everything about a run that the diagnostician takes besides its steps."""

    layers: tuple[LayerFacts, ...]
    training: TrainingFacts


class FactsCache:
    """The facts of the models seen last; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._facts: OrderedDict[bytes, RunFacts] = OrderedDict()

    def get(self, digest: bytes, load: Callable[[], StoredFacts]) -> RunFacts:
        """Return the facts of a digest; `load` reads what they are made from if they are not known."""
        with self._lock:
            facts = self._facts.get(digest)
            if facts is not None:
                self._facts.move_to_end(digest)
                return facts
        layers, training, framework = load()
        facts = facts_of(LAYERS.validate_python(layers), TRAINING.validate_python(training), framework)
        with self._lock:
            self._facts[digest] = facts
            while len(self._facts) > CACHED_MODELS:
                self._facts.popitem(last=False)
        return facts


def digest_of(layers: Sequence[Any], training: dict[str, Any] | None, framework: str | None) -> bytes:
    """Return 16 bytes that stand for the stored layers, training and framework."""
    return hashlib.blake2b(encode_json([layers, training, framework]), digest_size=16).digest()


def facts_of(layers: Sequence[Layer], training: Training | None, framework: str | None) -> RunFacts:
    """Translate from the wire."""
    return RunFacts(tuple(_layer_facts(layer) for layer in layers), _training_facts(training, framework))


def _layer_facts(layer: Layer) -> LayerFacts:
    shape = None if layer.shape is None else tuple(layer.shape)
    return LayerFacts(
        name=layer.name,
        kind=layer.kind,
        shape=shape,
        numel=math.prod(shape) if layer.numel is None and shape is not None else layer.numel,
        depth=layer.depth,
        frozen=layer.frozen,
        role=layer.role,
        fan_in=layer.fan_in,
        fan_out=layer.fan_out,
        activation=layer.activation,
        normalized=layer.normalized,
        branch=layer.branch,
        initial_rms=layer.initial_rms,
        spectral_norm=layer.spectral_norm,
    )


def _training_facts(training: Training | None, framework: str | None) -> TrainingFacts:
    if training is None:
        return TrainingFacts(framework=framework)
    return TrainingFacts(
        framework=framework,
        optimizers=tuple(
            OptimizerFacts(
                name=optimizer.name,
                learning_rate=optimizer.learning_rate,
                momentum=optimizer.momentum,
                weight_decay=optimizer.weight_decay,
            )
            for optimizer in training.optimizers
        ),
        precision=training.precision,
        input_rms=training.input_rms,
        input_abs_max=training.input_abs_max,
        target_rms=training.target_rms,
        batch_size=training.batch_size,
        clips_gradients=training.clips_gradients,
    )
