"""The split that is kept aside: looked at only when a diagnostician is done."""

from __future__ import annotations

from typing import Final

from benchmarks.corpus.families.family import Family

FAMILIES: Final[tuple[Family, ...]] = ()
