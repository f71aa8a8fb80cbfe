"""Devices of the tests of a GPU. Each test that a CPU can run, runs there too."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; makes cuBLAS deterministic
NO_DEVICE = "no CUDA device: torch.cuda.is_available() is False"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """A device to train on, with seeded random numbers."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip(NO_DEVICE)
    torch.manual_seed(0)
    return torch.device(request.param)


@pytest.fixture
def gpu() -> torch.device:
    """The first GPU, with seeded random numbers."""
    if not torch.cuda.is_available():
        pytest.skip(NO_DEVICE)
    torch.manual_seed(0)
    return torch.device("cuda")
