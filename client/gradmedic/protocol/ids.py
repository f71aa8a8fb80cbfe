"""Ids: UUIDs of version 7 (RFC 9562, section 5.7). Their order is the order in which they were made.

A client may choose the id of a run or a rerun. It can then safely repeat the request that creates it.
"""

from __future__ import annotations

import os
import time
from uuid import UUID

_VERSION_7 = 0x7 << 76
_RFC_VARIANT = 0b10 << 62


def earliest_time(beginning: str) -> float | None:
    """Return the earliest Unix time of ids with this beginning, None if no id can begin so.

    >>> earliest_time("0199b7f0-c8d2")
    1759727634.642
    >>> earliest_time("char-lm")
    """
    digits = beginning.replace("-", "")
    if not digits or len(digits) > 32 or set(digits) - set("0123456789abcdef"):
        return None
    return int(digits.ljust(12, "0")[:12], 16) / 1000


def new_id() -> UUID:
    """Return a UUIDv7: 48 bits of Unix time in milliseconds, then 74 random bits.

    The bits come from the operating system: the random generators of the training job stay as they are.

    >>> new_id().version
    7
    """
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    high, low = (random >> 62) & 0xFFF, random & ((1 << 62) - 1)
    return UUID(int=(milliseconds & ((1 << 48) - 1)) << 80 | _VERSION_7 | high << 64 | _RFC_VARIANT | low)
