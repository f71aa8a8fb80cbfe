"""How a row of the catalogue is written, and ranges that several rows share."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gradmedic.protocol.remedy_kind import Choice, Code, NumberRange, RemedyKind, Target

_SMALLEST = 1e-12
_LARGEST = 1e6
"""The bounds of factors, norms and rates. No sensible experiment goes beyond them."""
POSITIVE = NumberRange(minimum=_SMALLEST, maximum=_LARGEST)
SHARE = NumberRange(minimum=_SMALLEST, maximum=1.0)


def make_row(*targets: Target, code: Mapping[str, Code], **parameters: NumberRange | Choice) -> RemedyKind:
    """Return a row: what the remedy changes, its code by framework, and the range of each parameter."""
    return RemedyKind(targets=frozenset(targets), parameters=MappingProxyType(parameters), code=code)
