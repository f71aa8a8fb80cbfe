"""Fixtures that tests of trials share with tests of reruns."""

from __future__ import annotations

from tests.support.played_worker import worker as worker
