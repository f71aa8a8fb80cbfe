"""Workers for the tests."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from tests.support.workers import StartWorker, run_worker


@pytest.fixture
def start_worker(tmp_path: Path) -> StartWorker:
    """Run a worker in the test's folder."""
    return partial(run_worker, tmp_path)
