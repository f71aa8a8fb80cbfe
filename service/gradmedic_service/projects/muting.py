"""Which detectors may be muted: those that the diagnosis has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradmedic.protocol.service import FieldError
from gradmedic_diagnosis import DETECTORS


def muting_errors(ids: Sequence[str]) -> Iterator[FieldError]:
    """Say which of `muted_detectors` cannot be."""
    for index, detector in enumerate(ids):
        path = f"muted_detectors[{index}]"
        if detector not in DETECTORS:
            yield FieldError(path=path, message=f"{detector!r} is not one of {', '.join(DETECTORS)}")
            return
        if detector in ids[:index]:
            yield FieldError(path=path, message=f"repeats {detector!r}")
            return
