"""Rate limits: requests of an API key, and failed authentications of an address.

A sliding window over two counters per key costs the same at every rate. It is exact up to how unevenly the previous
minute was filled. The moving window of the `limits` package is exact, but keeps a list of every request.

Each process counts for itself: behind N replicas a key may send up to N times as many requests.
"""

from __future__ import annotations

import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from gradmedic_service.access.errors import TooManyRequests

FAILED_ATTEMPTS_PER_MINUTE = 60
"""Unknown keys that an address may try in a minute. Its valid keys are accepted: machines may share an address."""


class RateLimits:
    """Counts requests; threads may share it.

    Args:
        requests_per_minute: requests that one API key may send in a minute.
    """

    def __init__(self, requests_per_minute: int) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(requests_per_minute, namespace="requests")
        self._failures = RateLimitItemPerMinute(FAILED_ATTEMPTS_PER_MINUTE, namespace="failures")

    def count_request(self, key: str, name: str) -> None:
        """Count a request of a key. Raises TooManyRequests if it exceeds the limit."""
        if not self._limiter.hit(self._requests, key):
            raise TooManyRequests(
                f"The API key {name!r} may send {self._requests.amount} requests a minute.",
                retry_after=self._seconds_until_allowed(self._requests, key),
            )

    def has_failed_too_often(self, address: str) -> bool:
        """Whether an address has tried as many unknown keys in a minute as it may."""
        return not self._limiter.test(self._failures, address)

    def count_failed_attempt(self, address: str) -> None:
        """Count an unknown key that an address has tried. Raises TooManyRequests if it exceeds the limit."""
        if not self._limiter.hit(self._failures, address):
            raise TooManyRequests(
                f"{self._failures.amount} requests of this minute came from {address} with API keys that are unknown.",
                retry_after=self._seconds_until_allowed(self._failures, address),
            )

    def _seconds_until_allowed(self, limit: RateLimitItemPerMinute, key: str) -> int:
        return max(1, math.ceil(self._limiter.get_window_stats(limit, key).reset_time - time.time()))
