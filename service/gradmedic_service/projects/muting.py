"""Muted detectors: their ids must be detectors of the diagnosis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradmedic.protocol.service import FieldError
from gradmedic_diagnosis import DETECTORS


def muting_errors(ids: Sequence[str]) -> Iterator[FieldError]:
    """Yield the error of the first id in `muted_detectors` that is unknown or repeated."""
    for index, detector in enumerate(ids):
        path = f"muted_detectors[{index}]"
        if detector not in DETECTORS:
            yield FieldError(path=path, message=f"{detector!r} is not one of {', '.join(DETECTORS)}")
            return
        if detector in ids[:index]:
            yield FieldError(path=path, message=f"repeats {detector!r}")
            return
