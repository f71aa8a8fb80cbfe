"""Seeds torch's random generators, and describes the device that torch computes on."""

from __future__ import annotations

import torch


def seed_torch(seed: int) -> None:
    """Seed torch's generators of every device."""
    torch.manual_seed(seed)


def describe_device(model: torch.nn.Module) -> str:
    """Return the name of the GPU that holds a model's parameters, or the name of another device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
