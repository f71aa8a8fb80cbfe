"""The played worker for tests of reruns."""

from tests.support.played_worker import worker as worker
