"""What is known of optimizers by their names."""

from __future__ import annotations

from gradmedic.protocol.runs import Training

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


def has_scale_free_optimizers(training: Training) -> bool:
    """Whether every optimizer divides the gradient by its own size, so that a large gradient is no large update."""
    names = [optimizer.name.lower() for optimizer in training.optimizers]
    return bool(names) and all(name.startswith(SCALE_FREE) or name.endswith(SCALE_FREE) for name in names)
