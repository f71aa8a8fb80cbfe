"""Fixtures of the tests of `gradmedic.torch`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.client.torch.remedies.training import open_remedies


@pytest.fixture(autouse=True)
def close_remedies() -> Iterator[None]:
    """Close the remedies that a test applied: a function mode or a compiler's stance must not reach the next test."""
    yield
    while open_remedies:
        open_remedies.pop().close()
    assert torch._C._len_torch_function_stack() == 0
