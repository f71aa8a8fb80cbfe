"""What every test of guards leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.client.torch.guards.guarding import close_guards
from torch import nn


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Guards are ended, and torch has its own functions."""
    clip = nn.utils.clip_grad_value_
    yield
    close_guards()
    assert nn.utils.clip_grad_value_ is clip
