"""Seeds torch's generators, and says on what it computes."""

from __future__ import annotations

import torch


def seed_torch(seed: int) -> None:
    """Seed the generators of every device."""
    torch.manual_seed(seed)


def describe_device(model: torch.nn.Module) -> str:
    """Return where a model's parameters are, by the name of the hardware where torch knows it."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
