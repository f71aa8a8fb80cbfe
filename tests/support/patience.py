"""How long tests wait before they call something broken."""

from __future__ import annotations

from typing import Final

PATIENCE: Final = 300
"""Seconds that a condition may take to come true. Only a broken program takes so long, also on a slow machine."""
START_SECONDS: Final = 120
"""Seconds that a server may take to start or to end."""
