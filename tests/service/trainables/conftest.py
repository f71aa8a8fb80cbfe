"""What tests of trainables share with those of reruns."""

from __future__ import annotations

from tests.service.reruns.conftest import worker as worker
