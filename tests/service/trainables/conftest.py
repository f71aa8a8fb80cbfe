"""Fixtures that tests of trainables share with tests of reruns."""

from __future__ import annotations

from tests.service.reruns.conftest import worker as worker
