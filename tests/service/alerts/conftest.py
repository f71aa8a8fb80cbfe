"""The played worker for tests of alerts about reruns."""

from tests.support.played_worker import worker as worker
