"""The diagnoses that this process read last, so that a page or a script that asks again computes nothing.

The database decides. A cached diagnosis is used only for the very version of the run that it was made of: every append,
rewind and new diagnosis raises the run's revision, and the run's row names its facts and the detectors that are muted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

from pydantic import TypeAdapter

from gradmedic.protocol.diagnosis import Diagnosis
from gradmedic.protocol.encoding import encode_json
from gradmedic_service.bounded_cache import BoundedCache
from gradmedic_service.telemetry.repository import RunVersion

DIAGNOSIS = TypeAdapter(Diagnosis)

MAX_SIZE = 50_000
"""Number of layers of all cached diagnoses together: a finding may name each layer of its run."""
DIAGNOSIS_SIZE = 50
"""Size of a diagnosis that names no layer, in layers."""


@dataclass(frozen=True)
class _Cached:
    version: RunVersion
    diagnosis: Diagnosis

    @cached_property
    def body(self) -> bytes:
        return _encode(self.diagnosis)


class DiagnosisCache:
    """The cached diagnoses, each of the latest step of its run. Threads may share it."""

    def __init__(self, max_size: int = MAX_SIZE) -> None:
        self._diagnoses: BoundedCache[UUID, _Cached] = BoundedCache(max_size)

    def find(self, run_id: UUID, version: RunVersion) -> Diagnosis | None:
        """Return the diagnosis of this version of a run, without the results of reruns; None if it is not here."""
        cached = self._diagnoses.get(run_id)
        return cached.diagnosis if cached is not None and cached.version == version else None

    def add(self, version: RunVersion, diagnosis: Diagnosis, layer_count: int) -> None:
        """Add the diagnosis that was made of this version of a run, in place of an older one."""
        self._diagnoses.add(diagnosis.run_id, _Cached(version, diagnosis), DIAGNOSIS_SIZE + layer_count)

    def encode(self, diagnosis: Diagnosis) -> bytes:
        """Return a diagnosis as the JSON of an answer. That of a cached one is made once."""
        cached = self._diagnoses.get(diagnosis.run_id)
        return cached.body if cached is not None and cached.diagnosis is diagnosis else _encode(diagnosis)


def _encode(diagnosis: Diagnosis) -> bytes:
    return encode_json(DIAGNOSIS.dump_python(diagnosis, mode="json", by_alias=True))
