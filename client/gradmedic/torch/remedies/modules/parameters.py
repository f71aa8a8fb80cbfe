"""Parameters of modules that remedies draw anew."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def make_generator(seed: int, name: str) -> torch.Generator:
    """Return the random generator of one parameter, so that its numbers depend on nothing else in the model.

    Args:
        seed: seed of the trial.
        name: name of the parameter.

    >>> make_generator(0, "fc.weight").initial_seed() != make_generator(0, "fc.bias").initial_seed()
    True
    """
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def list_recurrent_weights(module: nn.RNNBase | nn.RNNCellBase) -> tuple[str, ...]:
    """Return the names of the weights that a recurrent module computes with.

    A parametrization has parameters of other names, from which it computes them.
    """
    if isinstance(module, nn.RNNBase):
        return tuple(module._flat_weights_names)
    return ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ()))
