"""Seeds the generators of a trial."""

from __future__ import annotations

import random

import numpy as np


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, numpy and, if it is installed, torch.

    Torch is imported here. A later import by the script finds it seeded.
    """
    random.seed(seed)
    np.random.seed(seed)
    try:
        from gradmedic.torch.seeding import seed_torch
    except Exception:  # no torch, or a broken one. A script that uses torch gets the error from its own import.
        return
    seed_torch(seed)
