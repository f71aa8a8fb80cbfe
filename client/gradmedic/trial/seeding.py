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
    except ImportError:  # no torch, or none that this version of gradmedic supports
        return
    seed_torch(seed)
