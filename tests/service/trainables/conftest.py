"""Fixtures that tests of trainables share with tests of reruns."""

from __future__ import annotations

from tests.support.played_worker import worker as worker
