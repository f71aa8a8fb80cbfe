"""The streaming diagnostician."""

from __future__ import annotations

from collections.abc import Sequence

from gradmedic_service.diagnosis.block import Block
from gradmedic_service.diagnosis.facts import LayerFacts, TrainingFacts
from gradmedic_service.diagnosis.report import Diagnosis


class Diagnostician:
    """Reads a run block by block."""

    def __init__(self, layers: Sequence[LayerFacts], training: TrainingFacts | None = None) -> None:
        self._layers = tuple(layers)
        self._training = training or TrainingFacts()
        self._last_step: int | None = None

    def update(self, block: Block) -> Diagnosis:
        """Advance by a block and return the diagnosis as of its last step."""
        self._last_step = int(block.steps[-1])
        return self.diagnose()

    def diagnose(self) -> Diagnosis:
        """Return the diagnosis as of the last step, with no changes."""
        return Diagnosis(
            step=self._last_step, verdict="undetermined", score=0.0, since_step=None, summary="Too little data yet."
        )

    def to_bytes(self) -> bytes:
        """Serialize the state; layers and training facts are not part of it."""
        return b"" if self._last_step is None else self._last_step.to_bytes(8, "little")

    @classmethod
    def from_bytes(
        cls, data: bytes, layers: Sequence[LayerFacts], training: TrainingFacts | None = None
    ) -> Diagnostician:
        """Restore a state; `layers` may have grown at its end since."""
        self = cls(layers, training)
        self._last_step = int.from_bytes(data, "little") if data else None
        return self
