"""What is known of optimizers by their names."""

from __future__ import annotations

from gradmedic.protocol.runs import Optimizer, Training

SCALE_FREE = (
    "adam",
    "adamw",
    "nadam",
    "radam",
    "adamax",
    "adafactor",
    "rmsprop",
    "adagrad",
    "lion",
    "rprop",
    "lamb",
    "muon",
)
"""Beginnings and endings of the names of optimizers whose step does not grow with the gradient."""
DECOUPLED = ("adamw", "lion", "muon", "sgdw", "adafactor")
"""Beginnings and endings of the names of optimizers that multiply the weights by 1 - learning rate x weight decay
(Loshchilov and Hutter 2019). Others add the decay to the gradient, or do either by a setting that is not known here."""


def has_scale_free_optimizers(training: Training) -> bool:
    """Whether every optimizer divides the gradient by its own size, so that a large gradient is no large update."""
    names = [optimizer.name.lower() for optimizer in training.optimizers]
    return bool(names) and all(name.startswith(SCALE_FREE) or name.endswith(SCALE_FREE) for name in names)


def has_decoupled_decay(optimizer: Optimizer) -> bool:
    """Whether weight decay takes the same share of each weight, whatever the gradient is."""
    name = optimizer.name.lower()
    return name.startswith(DECOUPLED) or name.endswith(DECOUPLED)


def is_plain_sgd(optimizer: Optimizer) -> bool:
    """Whether the optimizer is SGD, with or without momentum, whose weight decay is added to the gradient."""
    return optimizer.name.lower() == "sgd"
