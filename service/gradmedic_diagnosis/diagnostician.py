"""The streaming diagnostician: blocks in, a diagnosis out.

One idea: a block is measured and averaged as a whole (vectorized over steps and layers), then its steps are walked one
by one through the detectors, so that verdict, step and layer never depend on how the steps were cut into blocks. The
state is O(layers) and serializes to bytes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from gradmedic_diagnosis.advice import advise
from gradmedic_diagnosis.block import Block
from gradmedic_diagnosis.causes import find_causes
from gradmedic_diagnosis.detectors import ALL, Detector, Moment
from gradmedic_diagnosis.facts import LayerFacts, TrainingFacts
from gradmedic_diagnosis.history import RunHistory
from gradmedic_diagnosis.measurements import Architecture, Measurements, measure
from gradmedic_diagnosis.network import MAX_GROUPS, Depth, NetworkAverages
from gradmedic_diagnosis.progress import LossProgress
from gradmedic_diagnosis.report import Advice, Cause, Diagnosis, Finding, Verdict, VerdictChange
from gradmedic_diagnosis.run_evidence import Case
from gradmedic_diagnosis.state import pack_state, unpack_state
from gradmedic_diagnosis.summary import summarize

T = TypeVar("T")

ENOUGH = 20
"""Steps with a loss, or with statistics, before a run is called healthy: below that it is undetermined."""


class Diagnostician:
    """Reads a run block by block.

    Args:
        layers: The run's layers, in the order of the blocks' layer axis.
        training: How it trains, as far as known.
        muted: Ids of detectors that watch without being heard: they neither speak for a verdict nor appear in findings.
            Not part of the state; unmuted, a detector knows all that it saw meanwhile.

    Example:
        >>> import numpy as np
        >>> doctor = Diagnostician([LayerFacts(name="w", numel=4)])
        >>> doctor.diagnose().verdict
        'undetermined'
    """

    def __init__(
        self,
        layers: Sequence[LayerFacts],
        training: TrainingFacts | None = None,
        muted: Collection[str] = frozenset(),
    ) -> None:
        self._layers = tuple(layers)
        self._muted = frozenset(muted)
        self._training = training or TrainingFacts()
        self._architecture = Architecture.of(self._layers)
        self._averages = NetworkAverages()
        self._averages.grow(len(self._layers))
        self._streams: dict[str, LossProgress] = {}
        """Losses by the group of layers that was present; alternating optimizers have a stream each."""
        self._stream_names: dict[bytes, str] = {}
        self._stream_key = ""
        self._detectors: list[Detector] = [detector() for detector in ALL]
        self._history = RunHistory()
        self._last_step: int | None = None
        self._sampled = 0
        self._logged = 0
        self._verdict: Verdict = "undetermined"
        self._since: int | None = None

    @property
    def last_step(self) -> int | None:
        """The last step that was read."""
        return self._last_step

    def update(self, block: Block) -> Diagnosis:
        """Advance by a block and return the diagnosis as of its last step, with the changes that the block made.

        Args:
            block: Steps behind those seen so far, with as many layers as the run has.
        """
        measurements = measure(block, self._architecture)
        self._averages.grow(len(self._layers))
        depth = self._averages.advance(measurements, self._architecture)
        self._history.take(block, measurements)
        changes = self._walk(block, measurements, depth)
        if len(block):
            self._last_step = int(block.steps[-1])
        return self._report(tuple(changes))

    def diagnose(self) -> Diagnosis:
        """Return the diagnosis as of the last step, with no changes."""
        return self._report(())

    def _walk(self, block: Block, measurements: Measurements, depth: Depth) -> list[VerdictChange]:
        changes: list[VerdictChange] = []
        losses = _numbers(block, "loss", None)
        rates, clips = _numbers(block, "learning_rate", math.nan), _numbers(block, "clip_coefficient", math.nan)
        observers = [d.observe for d in self._detectors if d.applies(self._architecture, measurements)]
        rows = _by_row(measurements, depth)
        row = -1
        moment = Moment(
            architecture=self._architecture, averages=self._averages, measurements=measurements, depth=depth
        )
        for i, (step, is_sampled, is_skipped) in enumerate(
            zip(block.steps.tolist(), block.sampled.tolist(), block.skipped.tolist(), strict=True)
        ):
            if is_sampled:
                row += 1
                self._sampled += 1
                self._stream_key = self._stream_of(measurements.group[row])
            progress = self._streams.get(self._stream_key)
            if progress is None:
                progress = self._streams[self._stream_key] = LossProgress()
            loss = losses[i]
            excess, reference = math.nan, progress.reference
            if loss is not None:
                self._logged += 1
                if math.isfinite(loss):
                    excess = progress.excess(loss)
                    progress.observe(loss)
            moment.step, moment.skipped, moment.progress = step, is_skipped, progress
            moment.loss, moment.excess, moment.reference = loss, excess, reference
            moment.learning_rate, moment.clip_coefficient = rates[i], clips[i]
            moment.is_multi_stream = len(self._streams) > 1
            if is_sampled:
                moment.row = row
                moment.read(rows[row])
            else:
                moment.row = None
            for observe in observers:
                observe(moment)
            change = self._decide(step)
            if change is not None:
                changes.append(change)
        return changes

    def _stream_of(self, group: bytes) -> str:
        key = self._stream_names.get(group)
        if key is None:
            key = self._stream_names[group] = group.hex()
        if key in self._streams or len(self._streams) < MAX_GROUPS:
            return key
        return next(iter(self._streams))

    def _decide(self, step: int) -> VerdictChange | None:
        """Combine the detectors: an explosion outranks vanishing, and the first detector of a class decides it."""
        verdict, decider = self._loudest()
        if verdict == self._verdict:
            return None
        self._verdict, self._since = verdict, step
        return VerdictChange(step=step, verdict=verdict, score=self._score(), finding=decider)

    def _loudest(self) -> tuple[Verdict, str | None]:
        speaking = [detector for detector in self._detectors if detector.signal]
        if speaking and self._muted:
            speaking = [detector for detector in speaking if detector.id not in self._muted]
        if speaking:
            loudest = max(speaking, key=lambda d: (d.verdict == "exploding", d.signal))
            return loudest.verdict, loudest.id
        if max(self._logged, self._sampled) >= ENOUGH:
            return "healthy", None
        return "undetermined", None

    def _score(self) -> float:
        if self._verdict == "undetermined":
            return 0.0
        if self._verdict == "healthy":
            return 0.9
        silence = 1.0
        for detector in self._audible():
            if detector.verdict == self._verdict:
                silence *= 1 - min(detector.signal, 0.99)
        return round(1 - silence, 4)

    def _report(self, changes: tuple[VerdictChange, ...]) -> Diagnosis:
        findings = self._findings()
        causes: tuple[Cause, ...] = ()
        advice: tuple[Advice, ...] = ()
        if self._verdict in ("vanishing", "exploding"):
            case = Case(
                verdict=self._verdict,
                findings=findings,
                layers=self._layers,
                architecture=self._architecture,
                training=self._training,
                averages=self._averages,
                history=self._history,
            )
            causes = find_causes(case)
            advice = advise(case, causes)
        return Diagnosis(
            step=self._last_step,
            verdict=self._verdict,
            score=self._score(),
            since_step=self._since,
            summary=summarize(self._verdict, self._since, findings, causes, self._history),
            findings=findings,
            causes=causes,
            advice=advice,
            changes=changes,
        )

    def _findings(self) -> tuple[Finding, ...]:
        speaking = sorted(self._audible(), key=lambda d: (d.verdict != self._verdict, -d.signal))
        found = (detector.finding(self._architecture) for detector in speaking)
        return tuple(finding for finding in found if finding is not None)

    def _audible(self) -> list[Detector]:
        return [detector for detector in self._detectors if detector.id not in self._muted]

    def to_bytes(self) -> bytes:
        """Serialize the state; layers and training facts are not part of it."""
        state: dict[str, Any] = {
            "averages": self._averages.to_state(),
            "streams": {key: progress.to_state() for key, progress in self._streams.items()},
            "stream_key": self._stream_key,
            "detectors": {detector.id: detector.to_state() for detector in self._detectors},
            "history": self._history.to_state(),
            "last_step": self._last_step,
            "sampled": self._sampled,
            "logged": self._logged,
            "verdict": self._verdict,
            "since": self._since,
        }
        return pack_state(state)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        layers: Sequence[LayerFacts],
        training: TrainingFacts | None = None,
        muted: Collection[str] = frozenset(),
    ) -> Diagnostician:
        """Restore a state; `layers` may have grown at its end since. Raises StateError on bytes it cannot read."""
        self = cls(layers, training, muted)
        state = unpack_state(data)
        self._averages.restore(state["averages"])
        self._averages.grow(len(self._layers))
        for key, progress in state["streams"].items():
            self._streams[key] = LossProgress()
            self._streams[key].restore(progress)
        self._stream_key = state["stream_key"]
        self._detectors = [
            detector.from_state(state["detectors"][detector.id]) if detector.id in state["detectors"] else detector()
            for detector in ALL
        ]
        self._history.restore(state["history"])
        self._last_step, self._sampled, self._logged = state["last_step"], state["sampled"], state["logged"]
        self._verdict, self._since = state["verdict"], state["since"]
        return self


def _numbers(block: Block, name: str, absent: T) -> list[float | T]:
    """Return a step series as Python floats, `absent` where the step has none."""
    series = block.series.get(name)
    if series is None:
        return [absent] * len(block)
    pairs = zip(series.values.tolist(), series.present.tolist(), strict=True)
    return [value if present else absent for value, present in pairs]


def _by_row(measurements: Measurements, depth: Depth) -> list[tuple[Any, ...]]:
    """Return the row-wise facts as tuples of Python numbers, in the order in which `Moment.read` takes them."""
    columns = (
        measurements.total_gradient,
        measurements.total_weight,
        measurements.update_ratio,
        measurements.grip,
        measurements.nonfinite_total,
        measurements.reaches_weights,
        depth.gap,
        depth.input_excess,
        depth.dead_share,
        depth.typical_growth,
    )
    return list(zip(*(column.tolist() for column in columns), strict=True))
