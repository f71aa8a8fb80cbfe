"""The streaming diagnostician: it reads a run block by block and keeps its diagnosis.

A block is measured and averaged as a whole, vectorized over steps and layers. Then the detectors observe its steps one
by one, so verdict, step and layer never depend on how the steps were cut into blocks. The state is O(layers) and
serializes to bytes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from gradmedic.protocol.diagnosis import Advice, Cause, DiagnosisAtStep, Finding, VerdictChange
from gradmedic.protocol.runs import Layer, Training
from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS, Learning, Level, Verdict
from gradmedic_diagnosis.advice import advise
from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.block import Block
from gradmedic_diagnosis.calibration import AlarmEvidence, HealthEvidence, calibrate
from gradmedic_diagnosis.causes import FAILED_LEARNING, find_causes
from gradmedic_diagnosis.course import Course
from gradmedic_diagnosis.detector_panel import DetectorPanel
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView, read_rows
from gradmedic_diagnosis.layer_averages import MAX_GROUPS, DepthProfile, LayerAverages
from gradmedic_diagnosis.level import LevelTracker
from gradmedic_diagnosis.loss_progress import LossProgress
from gradmedic_diagnosis.measurements import Measurements, measure
from gradmedic_diagnosis.objective import ObjectiveTracker
from gradmedic_diagnosis.origin import diagnose_origin
from gradmedic_diagnosis.probes import read_probes
from gradmedic_diagnosis.run_evidence import RunEvidence
from gradmedic_diagnosis.run_history import RunHistory
from gradmedic_diagnosis.state import pack_state, unpack_state
from gradmedic_diagnosis.summary import summarize

T = TypeVar("T")

MIN_STEPS = 20
"""Steps with a loss, or with statistics, before a run is called healthy. Before that it is undetermined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatedDiagnosis(DiagnosisAtStep):
    """The diagnosis after a block, with the changes that the block caused."""

    changes: list[VerdictChange]
    """Changes of the verdict in the block, oldest first."""


class Diagnostician:
    """Diagnoses one run, block by block.

    Args:
        layers: The run's layers, in the order of the blocks' layer axis.
        training: How the run trains, as far as known.
        framework: Name and version, for example `torch 2.13.0`. The code in advice is written for it.
        muted: Ids of muted detectors. They observe the run, but neither change the verdict nor report findings. The
            state does not contain them: a detector that is unmuted later has observed all steps.
        architecture: `Architecture.from_layers(layers)`, where it was derived before: it takes longer than the rest of
            a restoration.

    Example:
        >>> diagnostician = Diagnostician([Layer(name="w", numel=4)])
        >>> diagnostician.diagnose().verdict
        'undetermined'
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        training: Training | None = None,
        *,
        framework: str | None = None,
        muted: Collection[str] = frozenset(),
        architecture: Architecture | None = None,
    ) -> None:
        self._layers = tuple(layers)
        self._training = training or Training()
        self._framework = framework
        self._muted = frozenset(muted)
        self._architecture = architecture or Architecture.from_layers(self._layers)
        self._averages = LayerAverages()
        self._averages.make_room(len(self._layers))
        self._streams: dict[str, LossProgress] = {}
        """Losses by the layers that were present: optimizers that take turns have a stream each."""
        self._stream_names: dict[bytes, str] = {}
        self._stream_key = ""
        self._panel = DetectorPanel(self._muted)
        self._history = RunHistory()
        self._objective = ObjectiveTracker(self._training)
        self._course = Course()
        self._level_tracker = LevelTracker()
        self._last_step: int | None = None
        self._sampled_steps = 0
        """Sampled steps with at least one present layer."""
        self._steps_without_layers = 0
        """Steps since the last one with a present layer, from the first sampled one without any."""
        self._steps_with_loss = 0
        self._verdict: Verdict = "undetermined"
        self._since_step: int | None = None
        self._judged_learning: Learning = "unknown"
        self._level: Level = "unknown"

    @property
    def last_step(self) -> int | None:
        """The last step that was read; None before the first."""
        return self._last_step

    @property
    def decider(self) -> str | None:
        """Id of the detector that decided the vanishing or exploding verdict; None for other verdicts."""
        return None if self._course.verdict is None else self._course.decider(self._muted)

    @property
    def verdict(self) -> Verdict:
        """What the gradients do, as of the last step."""
        return self._verdict

    @property
    def learning(self) -> Learning:
        """What the objective does, as of the last step."""
        return self._judged_learning

    @property
    def level(self) -> Level:
        """The level of the run, as of the last step."""
        return self._level

    @property
    def since_step(self) -> int | None:
        """Step whose data changed the verdict last; None for an undetermined one."""
        return self._since_step

    @property
    def score(self) -> float:
        """The chance that the verdict is right; 0 for an undetermined one."""
        return self._compute_score()

    def update(self, block: Block) -> UpdatedDiagnosis:
        """Read the next block and return the diagnosis as of its last step, with the changes that the block caused.

        Args:
            block: Steps after those that were read, with as many layers as the run has.
        """
        changes = self.advance(block)
        return UpdatedDiagnosis(**self._describe(), changes=changes)

    def advance(self, block: Block) -> list[VerdictChange]:
        """Read the next block as `update` does, without a diagnosis; return the changes that the block caused."""
        measurements = measure(block, self._architecture)
        self._averages.make_room(len(self._layers))
        profile = self._averages.advance(measurements, self._architecture)
        self._history.add(block, measurements)
        changes = self._observe_steps(block, measurements, profile)
        if len(block):
            self._last_step = int(block.steps[-1])
        return changes

    def diagnose(self) -> DiagnosisAtStep:
        """Return the diagnosis as of the last step."""
        return DiagnosisAtStep(**self._describe())

    def _observe_steps(self, block: Block, measurements: Measurements, profile: DepthProfile) -> list[VerdictChange]:
        """Let the detectors observe the steps in order; return the changes of the verdict."""
        changes: list[VerdictChange] = []
        losses = _to_list(block, "loss", None)
        learning_rates = _to_list(block, "learning_rate", math.nan)
        clip_coefficients = _to_list(block, "clip_coefficient", math.nan)
        output_gradient_norms = _to_list(block, "output_gradient_norm", math.nan)
        loss_scales = _to_list(block, "loss_scale", math.nan)
        probes = read_probes(block)
        objectives = self._objective.read(block, losses)
        self._panel.begin_block(
            StepColumns(
                block=block,
                measurements=measurements,
                depth_profile=profile,
                architecture=self._architecture,
                training=self._training,
                probes=probes,
                has_one_stream=self._has_one_stream(measurements),
            )
        )
        rows = read_rows(measurements, profile)
        has_layers: list[bool] = np.logical_or.reduce(measurements.present, axis=1).tolist()
        row = -1
        view = StepView(
            architecture=self._architecture,
            averages=self._averages,
            measurements=measurements,
            depth_profile=profile,
            loss_facts=self._training.loss,
            training=self._training,
            constant_level=self._objective.constant_level,
        )
        is_loss_objective = self._objective.is_loss
        for i, (step, is_sampled, is_skipped) in enumerate(
            zip(block.steps.tolist(), block.sampled.tolist(), block.skipped.tolist(), strict=True)
        ):
            if is_sampled:
                row += 1
            self._count_step(has_layers=has_layers[row] if is_sampled else None)
            if is_sampled and has_layers[row]:
                self._stream_key = self._choose_stream(measurements.presence_keys[row])
            progress = self._streams.get(self._stream_key)
            if progress is None:
                progress = self._streams[self._stream_key] = LossProgress()
            loss = losses[i]
            # Without a loss scale, a guard skipped the step and no scaler: its batch is odd, and taught nothing.
            is_set_aside = is_skipped and math.isnan(loss_scales[i])
            loss_ratio, loss_reference = math.nan, progress.reference
            if loss is not None:
                self._steps_with_loss += 1
                if math.isfinite(loss):
                    loss_ratio = progress.ratio_to_reference(loss)
                    if not is_set_aside:
                        progress.add(loss)
            objective = None if is_set_aside and is_loss_objective else objectives[i]
            view.objective = self._objective.add(objective, progress, step, learning_rates[i])
            view.measures_progress = measures_progress = self._objective.measures_progress
            view.is_loss_measure = measures_progress if is_loss_objective else self._objective.is_loss_measure
            view.output_gradient_norm, view.loss_scale = output_gradient_norms[i], loss_scales[i]
            view.probes = probes[i]
            view.step, view.is_skipped, view.progress = step, is_skipped, progress
            view.loss, view.loss_ratio, view.loss_reference = loss, loss_ratio, loss_reference
            view.learning_rate, view.clip_coefficient = learning_rates[i], clip_coefficients[i]
            view.has_several_streams, view.stream = len(self._streams) > 1, self._stream_key
            if is_sampled:
                view.set_statistics(row, rows[row])
            else:
                view.row = None
            self._panel.observe(view, i)
            change = self._update_verdict(view)
            if change is not None:
                changes.append(change)
        self._panel.end_block()
        return changes

    def _has_one_stream(self, measurements: Measurements) -> bool:
        """Return whether the run has one stream of losses so far, and all rows of a block belong to it."""
        if self._stream_key not in self._streams or len(self._streams) > 1:
            return False
        return all(
            self._stream_names.get(key) == self._stream_key for key in set(measurements.presence_keys) if any(key)
        )

    def _count_step(self, *, has_layers: bool | None) -> None:
        """Count a step; `has_layers` is whether a layer is present, None if the step is not sampled."""
        if has_layers:
            self._sampled_steps += 1
            self._steps_without_layers = 0
        elif has_layers is False or self._steps_without_layers:
            self._steps_without_layers += 1

    @property
    def _lacks_gradients(self) -> bool:
        """Whether the run has layers, and sent no gradients of them at all, or none any more.

        A training whose optimizer nothing observes looks like this. Its loss alone says nothing of its gradients.
        """
        was_never_sampled = self._sampled_steps == 0 and self._steps_with_loss >= MIN_STEPS
        return bool(self._layers) and (was_never_sampled or self._steps_without_layers >= MIN_STEPS)

    @property
    def _current_progress(self) -> LossProgress | None:
        """Progress of the only loss; None where there is none, or several losses take turns."""
        return next(iter(self._streams.values())) if len(self._streams) == 1 else None

    def _choose_stream(self, presence_key: bytes) -> str:
        """Return the key of the stream for these layers; the first stream's if there are too many already.

        A single optimizer has one loss where the layers of one step are among those of another: some are only idle, as
        experts without a token are. Heads of tasks that take turns are not like that.
        """
        key = self._stream_names.get(presence_key)
        if key is None:
            key = presence_key.hex()
            if len(self._training.optimizers) == 1:
                key = next((known for known in self._streams if _are_nested(key, known)), key)
            self._stream_names[presence_key] = key
        if key in self._streams or len(self._streams) < MAX_GROUPS:
            return key
        return next(iter(self._streams))

    def _update_verdict(self, view: StepView) -> VerdictChange | None:
        """Let the course read the votes; return the change of verdict, learning or level, if there is one."""
        learning = self._learning_state
        if self._muted and self._course.verdict is not None and self._course.decider(self._muted) is None:
            self._course.forget()
        decider = None if self._course.verdict is None else self._course.decider(())
        votes = self._panel.list_votes(view, has_verdict=self._course.verdict is not None)
        self._course.advance(votes, view, learning)
        if decider is not None and self._course.verdict is None:
            self._panel.resolve(decider, view.step)
        verdict = self._decide_verdict()
        level = self._level_tracker.judge(
            verdict, learning, has_open_warning=self._panel.has_open_warning, has_open_fault=self._panel.has_open_fault
        )
        if verdict != self._verdict:
            self._verdict, self._since_step = verdict, None if verdict == "undetermined" else view.step
        elif (learning, level) == (self._judged_learning, self._level):
            return None
        self._judged_learning, self._level = learning, level
        return VerdictChange(
            step=view.step,
            verdict=verdict,
            learning=learning,
            level=level,
            score=self._compute_score(),
            finding=self._course.decider(self._muted),
        )

    def _decide_verdict(self) -> Verdict:
        """Return the verdict of the course, or what there is to tell of a run without one."""
        if self._course.verdict is not None:
            return self._course.verdict
        if not self._lacks_gradients and max(self._steps_with_loss, self._sampled_steps) >= MIN_STEPS:
            return "healthy"
        return "undetermined"

    def _compute_score(self) -> float:
        """Return the chance that the verdict is right; 0 for an undetermined one."""
        evidence = self.collect_evidence()
        return 0.0 if evidence is None else calibrate(evidence)

    def collect_evidence(self) -> AlarmEvidence | HealthEvidence | None:
        """Return the evidence for the verdict at the last step; None for an undetermined one."""
        if self._verdict == "undetermined":
            return None
        if self._verdict == "healthy":
            return HealthEvidence(
                steps=max(self._steps_with_loss, self._sampled_steps),
                learning=self._judged_learning,
                has_warning=self._panel.has_open_warning(),
                has_suspicion=any(d.is_open and d.verdict == "vanishing" for d in self._panel.unmuted),
            )
        course = self._course
        return AlarmEvidence(
            is_exploding=self._verdict == "exploding",
            strength=course.peak_strength,
            detectors=len(course.supporters),
            steps=course.steps_since,
        )

    def _describe(self) -> dict[str, Any]:
        """Return the fields of the diagnosis as of the last step."""
        findings = self._report_findings()
        causes: list[Cause] = []
        advice: list[Advice] = []
        conditions = {detector.id: score for detector in self._panel.unmuted if (score := detector.cause_score) > 0}
        has_failed = self._judged_learning in FAILED_LEARNING or self._panel.has_open_fault()
        if self._verdict in UNHEALTHY_VERDICTS or conditions or has_failed:
            evidence = RunEvidence(
                verdict=self._verdict,
                findings=findings,
                layers=self._layers,
                architecture=self._architecture,
                training=self._training,
                framework=self._framework,
                averages=self._averages,
                history=self._history,
                conditions=conditions,
                learning=self._judged_learning,
            )
            causes = find_causes(evidence)
            advice = advise(evidence, causes)
        return {
            "step": self._last_step,
            "verdict": self._verdict,
            "learning": self._judged_learning,
            "level": self._level,
            "score": self._compute_score(),
            "since_step": self._since_step,
            "summary": summarize(
                self._verdict,
                self._since_step,
                findings,
                causes,
                self._history,
                course=self._course,
                step=self._last_step,
                lacks_gradients=self._lacks_gradients,
                learning="" if self._judged_learning == "unknown" else self._objective.describe(),
            ),
            "findings": findings,
            "causes": causes,
            "advice": advice,
            "origin": diagnose_origin(self._training.origin, self._last_step, self._framework),
        }

    @property
    def _learning_state(self) -> Learning:
        return self._objective.judge(has_several_streams=len(self._streams) > 1)

    def _report_findings(self) -> list[Finding]:
        """Return the findings, those for the present verdict first, then by strength.

        Where no finding for the verdict is open any more, the one that decided it holds as long as the verdict.
        """
        decider = self._course.decider(self._muted)
        ordered = sorted(
            self._panel.unmuted,
            key=lambda detector: (detector.verdict != self._verdict, -detector.strength, detector.id != decider),
        )
        is_held = decider is not None and not any(
            detector.is_open and detector.id in self._course.supporters for detector in ordered
        )
        findings: list[Finding] = []
        for detector in ordered:
            reason = decider if self._course.is_consequence(detector) else None
            finding = detector.report_finding(self._architecture, consequence_of=reason)
            if finding is not None:
                is_kept_open = is_held and detector.id == decider
                findings.append(replace(finding, resolved_step=None) if is_kept_open else finding)
        return findings

    def to_bytes(self) -> bytes:
        """Serialize the state. It does not contain the arguments of the constructor."""
        state: dict[str, Any] = {
            "averages": self._averages.to_state(),
            "streams": {key: progress.to_state() for key, progress in self._streams.items()},
            "stream_key": self._stream_key,
            "detectors": self._panel.to_state(),
            "history": self._history.to_state(),
            **self._objective.to_state(),
            "course": self._course.to_state(),
            "level_tracker": self._level_tracker.to_state(),
            "last_step": self._last_step,
            "sampled": self._sampled_steps,
            "logged": self._steps_with_loss,
            "verdict": self._verdict,
            "since": self._since_step,
            "level": self._level,
        }
        if self._steps_without_layers:
            state["without_layers"] = self._steps_without_layers
        return pack_state(state)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        layers: Sequence[Layer],
        training: Training | None = None,
        *,
        framework: str | None = None,
        muted: Collection[str] = frozenset(),
        architecture: Architecture | None = None,
    ) -> Diagnostician:
        """Restore a state. `layers` may have more layers at its end than when the state was stored.

        Raises StateError for bytes that this version cannot read.
        """
        self = cls(layers, training, framework=framework, muted=muted, architecture=architecture)
        state = unpack_state(data)
        self._averages.restore(state["averages"])
        self._averages.make_room(len(self._layers))
        for key, progress in state["streams"].items():
            self._streams[key] = LossProgress()
            self._streams[key].restore(progress)
        self._stream_key = state["stream_key"]
        self._panel.restore(state["detectors"])
        self._history.restore(state["history"])
        self._objective.restore(state)
        self._last_step = state["last_step"]
        self._sampled_steps, self._steps_with_loss = state["sampled"], state["logged"]
        self._steps_without_layers = state.get("without_layers", 0)
        self._verdict, self._since_step = state["verdict"], state["since"]
        if "course" in state:
            self._course.restore(state["course"])
        else:  # version 0.1 had no course
            self._course.take_up(self._verdict, self._since_step, self._panel.all, self._current_progress)
        self._judged_learning = self._learning_state
        self._level_tracker.restore(state.get("level_tracker", {}))
        self._level = state.get("level") or LevelTracker().judge(
            self._verdict, self._judged_learning, has_open_warning=lambda: False, has_open_fault=lambda: False
        )
        return self


def _to_list(block: Block, series_name: str, absent: T) -> list[float | T]:
    """Return a step series as Python floats, `absent` where the step has none."""
    series = block.series.get(series_name)
    return [absent] * len(block) if series is None else series.to_list(absent)


def _are_nested(key: str, other: str) -> bool:
    """Return whether all layers of one stream's key are among those of the other's, and both have layers."""
    layers, other_layers = int(key or "0", 16), int(other or "0", 16)
    shared = layers & other_layers
    return shared != 0 and shared in (layers, other_layers)
