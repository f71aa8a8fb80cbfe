"""Hashes the names of a run: equal names become equal tokens, and no token shows the name that it stands for."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import replace

from gradmedic.protocol.layer_roles import count_elements, find_role, is_named_after_normalization
from gradmedic.protocol.probes import PROBES, name_metric, parse_metric
from gradmedic.protocol.runs import Layer, Training

SALT_BYTES = 32
DIGEST_BYTES = 6
"""A model has some thousand names. The chance that two of 10,000 get one token is 2e-7 (birthday bound)."""


class NameHasher:
    """Hashes names with a salt that is drawn anew and stored nowhere.

    Without the salt, hashing the names of a dictionary shows nothing (BLAKE2b with a key, RFC 7693).

    >>> hasher = NameHasher()
    >>> first, second = hasher.hash("encoder.weight"), hasher.hash("decoder.weight")
    >>> first.split(".")[0] == second.split(".")[0], first.split(".")[1] == second.split(".")[1]
    (False, True)
    """

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(SALT_BYTES)

    def hash(self, name: str) -> str:
        """Return a name with a token for each part between its dots."""
        return ".".join(map(self._hash_part, name.split(".")))

    def _hash_part(self, part: str) -> str:
        data = part.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=DIGEST_BYTES, key=self._salt).hexdigest()


def anonymize_layers(layers: Sequence[Layer], hasher: NameHasher) -> list[Layer]:
    """Return layers with hashed names. What the diagnosis reads from a name is kept as a fact: the role."""
    sizes = {layer.name: count_elements(layer) for layer in layers}
    return [
        replace(
            layer,
            name=hasher.hash(layer.name),
            role=find_role(layer, sizes),
            normalized=True if is_named_after_normalization(layer) else layer.normalized,
        )
        for layer in layers
    ]


def anonymize_probe(metric: str, hasher: NameHasher) -> str | None:
    """Return the name of a probe's metric with the hashed name of its module or layer; None for any other metric.

    The tokens of a module are those in the names of its layers.
    """
    probe, subject = parse_metric(metric) or ("", "")
    if probe not in PROBES:
        return None
    return name_metric(probe, hasher.hash(subject) if subject else "")


def anonymize_training(training: Training | None, hasher: NameHasher, *, keeps_metric_names: bool) -> Training | None:
    """Return facts about a training with hashed names of modules and of the objective's metric, and without code."""
    if training is None:
        return None
    if (origin := training.origin) is not None:
        module = hasher.hash(origin.module) if origin.module else origin.module
        training = replace(
            training, origin=replace(origin, module=module, source=None, text=None, reason=None, batch_tensors=[])
        )
    if training.objective is None or training.objective.metric is None or keeps_metric_names:
        return training
    return replace(training, objective=replace(training.objective, metric=hasher.hash(training.objective.metric)))
