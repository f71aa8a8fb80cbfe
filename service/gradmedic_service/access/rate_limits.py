"""How often somebody may ask: requests of a key, and failed attempts to be recognized from an address.

One idea: counting must cost less than what it guards. A sliding window over two counters a key is exact to within how
unevenly the minute before was filled, and takes the same time however high the rate is; a list of every request, which
the library's moving window keeps, would not.

Counts are this process's own: behind N replicas a key may ask up to N times as often as one of them allows.
"""

from __future__ import annotations

import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from gradmedic_service.access.errors import TooManyRequests

FAILED_ATTEMPTS_PER_MINUTE = 60
"""Unknown keys that an address may try; more would let it have the database asked as fast as it likes."""


class RateLimits:
    """Counts requests; safe to share between threads."""

    def __init__(self, requests_per_minute: int) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(requests_per_minute, namespace="requests")
        self._failures = RateLimitItemPerMinute(FAILED_ATTEMPTS_PER_MINUTE, namespace="failures")

    def count_request(self, key: str, name: str) -> None:
        """Count a request of a key. Raises TooManyRequests if it is one too many."""
        if not self._limiter.hit(self._requests, key):
            raise TooManyRequests(
                f"The API key {name!r} may send {self._requests.amount} requests a minute.",
                retry_after=self._seconds_until_room(self._requests, key),
            )

    def check_attempts(self, address: str) -> None:
        """Raise TooManyRequests if an address has tried too many unknown keys."""
        if not self._limiter.test(self._failures, address):
            raise TooManyRequests(
                f"{self._failures.amount} requests of this minute came from {address} with API keys that are unknown.",
                retry_after=self._seconds_until_room(self._failures, address),
            )

    def count_failure(self, address: str) -> None:
        """Count an unknown key from an address."""
        self._limiter.hit(self._failures, address)

    def _seconds_until_room(self, limit: RateLimitItemPerMinute, key: str) -> int:
        return max(1, math.ceil(self._limiter.get_window_stats(limit, key).reset_time - time.time()))
