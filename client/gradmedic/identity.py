"""Run ids: UUIDv7 (RFC 9562, section 5.7), chosen by the client so that creating a run can be repeated safely."""

from __future__ import annotations

import os
import time
from uuid import UUID

_VERSION_7 = 0x7 << 76
_RFC_VARIANT = 0b10 << 62


def new_run_id() -> UUID:
    """Return a UUIDv7: 48 bits of Unix time in milliseconds, then 74 random bits.

    The bits come from the operating system, so that no random generator of the training job is touched.

    >>> new_run_id().version
    7
    """
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    high, low = (random >> 62) & 0xFFF, random & ((1 << 62) - 1)
    return UUID(int=(milliseconds & ((1 << 48) - 1)) << 80 | _VERSION_7 | high << 64 | _RFC_VARIANT | low)
