"""A service that requires API keys, and a clock that stands still."""

from __future__ import annotations

import time

import pytest
from tests.support.api_keys import client_with_key as client_with_key
from tests.support.api_keys import client_without_key as client_without_key
from tests.support.api_keys import make_secret as make_secret


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock of the rate limits: they allow more requests when a new minute begins."""
    moment = time.time()
    monkeypatch.setattr("time.time", lambda: moment)
