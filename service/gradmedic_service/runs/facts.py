"""The facts about a run that the diagnosis reads besides the steps: its layers, its training and its framework.

Facts are cached by a digest of their stored form. The same digest always has the same facts, so every replica may keep
those that it has read, and runs of the same model share them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from gradmedic.protocol.encoding import encode_json
from gradmedic.protocol.runs import Layer, Training
from gradmedic_diagnosis import Architecture
from gradmedic_service.bounded_cache import BoundedCache
from gradmedic_service.http.validation import BUILT_WHEN_USED

LAYERS = TypeAdapter(list[Layer], config=BUILT_WHEN_USED)
TRAINING = TypeAdapter(Training | None, config=BUILT_WHEN_USED)
StoredFacts = tuple[list[Any], dict[str, Any] | None, str | None]
"""Layers and training as they are stored, and the framework."""
CACHED_MODELS = 64
"""Largest number of models in the cache. A layer takes some 0.6 KB, so 64 models of a thousand layers take 38 MB."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The facts about a run that a diagnostician is created with."""

    layers: list[Layer]
    training: Training | None
    framework: str | None
    architecture: Architecture = field(compare=False)
    """What the diagnosis derives from the layers; it follows from them, so that it is not compared."""


class FactsCache:
    """The facts of the models that were read last; safe to share between threads."""

    def __init__(self) -> None:
        self._facts: BoundedCache[bytes, RunFacts] = BoundedCache(CACHED_MODELS)

    def get(self, digest: bytes, load: Callable[[], StoredFacts]) -> RunFacts:
        """Return the facts of a digest; `load` reads their stored form if they are not in the cache."""
        facts = self._facts.get(digest)
        if facts is not None:
            return facts
        layers, training, framework = load()
        valid_layers = LAYERS.validate_python(layers)
        architecture = Architecture.from_layers(valid_layers)
        facts = RunFacts(valid_layers, TRAINING.validate_python(training), framework, architecture)
        self._facts.add(digest, facts)
        return facts


def digest_of(layers: Sequence[Any], training: dict[str, Any] | None, framework: str | None) -> bytes:
    """Return 16 bytes that stand for the stored layers, training and framework."""
    return hashlib.blake2b(encode_json([layers, training, framework]), digest_size=16).digest()
