"""What the tests of torch share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.client.torch.modules.treating import open_treatments


@pytest.fixture(autouse=True)
def closed_treatments() -> Iterator[None]:
    """Close what a test treated: a mode or a compiler's stance must not reach the next one."""
    yield
    while open_treatments:
        open_treatments.pop().close()
    assert torch._C._len_torch_function_stack() == 0
