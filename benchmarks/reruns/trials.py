"""Trials: real processes against a real service. Each trial runs once, and its result is kept.

Configuration, remedies and seed determine a trial, so its result is stored in a file that is named after them and after
the code that made it. A later request for the same trial reads the file. The advice is read from controls, and from
trials that another round builds on: its ranking may change without a new trial of any other remedy.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

import msgspec
import numpy as np
import torch
import urllib3

from benchmarks.reference_rules import REFERENCES
from benchmarks.reruns.configurations import Configuration, Setting
from benchmarks.reruns.published.configurations import SCRIPT as PUBLISHED_SCRIPT
from benchmarks.reruns.published.configurations import PublishedConfiguration, PublishedSetting
from benchmarks.reruns.tasks import make_task
from benchmarks.servers import CACHE, gradmedic
from gradmedic import Client
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.trial_report import TrialEvaluation
from gradmedic.protocol.trials import ClaimedTrial
from gradmedic_diagnosis.remedies import CATALOGUE
from gradmedic_service.reruns import judging
from gradmedic_service.reruns.loss_curves import LossCurve
from gradmedic_service.reruns.measures import summarize_trial
from gradmedic_worker.executors.local_processes import LaunchSpec, ProcessStarter
from gradmedic_worker.executors.trial_environment import INHERITED_VARIABLES, build_trial_environment
from gradmedic_worker.executors.trial_folder import read_report

ROOT: Final = Path(__file__).resolve().parent.parent.parent
SCRIPT: Final = Path(__file__).resolve().parent / "train.py"
RESULTS: Final = CACHE / "reruns"
LONGEST_SECONDS: Final = 900.0
"""Wall-clock seconds that a trial may take. It needs a few CPU seconds, but the machine may be busy."""
AUTOTRAINER: Final = next(rules for rules in REFERENCES if rules.name == "AUTOTRAINER, loss gate")
LOST_SKILL: Final = 0.25
"""A configuration fails if it keeps at most this share of its twin's skill (the rule of our labelled corpus)."""
BLOW_UP: Final = 10.0
LEAST_SKILL: Final = 0.2
"""Smallest skill of a twin that learns."""
Subject = Configuration | PublishedConfiguration
"""What is rerun: a faulty training and its twin."""
SKILL: Final = "skill"
"""Metric of a published program's last step. The judge reads it; diagnosis and advice do not need it."""
READ: Final = ("loss", "grad_norm", "grad_zero_fraction", "nonfinite_count", "weight_norm", "update_norm")
DIAGNOSIS: Final = ROOT / "service" / "gradmedic_diagnosis"
ADVICE_SOURCES: Final = (
    *(path for folder in ("causes", "remedies") for path in sorted((DIAGNOSIS / folder).rglob("*.py"))),
    *(
        DIAGNOSIS / name
        for name in (
            "advice.py",
            "applicability.py",
            "race_counts.py",
            "race_counts.json",
            "remedy_fit.py",
            "repair_counts.py",
            "repair_counts.json",
            "run_evidence.py",
            "snippets.py",
        )
    ),
)
"""Files on which causes and advice depend besides the verdict."""
SOURCES: Final = (
    *sorted((ROOT / "client" / "gradmedic" / "torch" / "remedies").rglob("*.py")),
    ROOT / "client" / "gradmedic" / "torch" / "clipping.py",
    *(ROOT / "service" / "gradmedic_service" / "reruns" / name for name in ("loss_curves.py", "measures.py")),
    ROOT / "client" / "gradmedic" / "torch" / "trial_evaluation.py",
    *sorted({*DIAGNOSIS.rglob("*.py")} - {*ADVICE_SOURCES, DIAGNOSIS / "summary.py"}),
)
"""Files on which the result of a trial depends besides its configuration and script."""
OWN_SOURCES: Final = tuple(SCRIPT.parent / name for name in ("networks.py", "tasks.py", "train.py"))
"""Files of the script of our own configurations."""
KINDS: Final = {row.reason: row.name for row in CATALOGUE}
"""Names of the catalogue's rows, by the reason that the advice contains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a trial."""

    status: str
    """`done`, `failed` or `not_applicable`."""
    reason: str | None
    verdict: str
    curve: LossCurve | None
    is_silent: bool
    """Whether AUTOTRAINER's rules never fired."""
    has_dead_units: bool
    causes: dict[str, float]
    """Scores of the causes, where the advice is read; empty for other trials."""
    advice: list[Remedy]
    """Remedies of the advice, the most promising first, for a control and on request; empty for other trials."""
    cpu_seconds: float | None
    """CPU seconds of the script; None if it was killed."""
    kinds: list[str] = field(default_factory=list)
    """Names of the catalogue's rows that the advice comes from, in its order."""
    logged_skill: float | None = None
    """Skill in evaluation mode, of a published program that ran to its end."""

    def as_trial(self, candidate: int, seed: int) -> judging.TrialState:
        """Return the result in the form that the experiment reads."""
        return judging.TrialState(
            candidate=candidate,
            seed=seed,
            status=self.status,
            verdict=self.verdict,
            curve=self.curve,
            reason=self.reason,
        )


@cache
def code_digest(script: tuple[Path, ...], *, has_advice: bool) -> str:
    """Return a digest of the files on which trials depend, with those of the advice if it is read from them.

    Args:
        script: files of the training script.
        has_advice: whether the advice is read.
    """
    digest = hashlib.blake2b(digest_size=8)
    for source in (*SOURCES, *script, *(ADVICE_SOURCES if has_advice else ())):
        digest.update(source.read_bytes())
    return digest.hexdigest()


@cache
def baseline(task: str) -> float:
    """Return the loss of a task's best constant answer."""
    torch.manual_seed(0)
    return make_task(task).baseline


class Laboratory:
    """Runs trials, and keeps their results."""

    def __init__(self, base_url: str, folder: Path) -> None:
        self._base_url = base_url
        self._folder = folder
        self._executor = ProcessStarter()
        self._client = Client(base_url)
        self._http = urllib3.PoolManager()
        self._base = {
            **{name: value for name, value in os.environ.items() if name in INHERITED_VARIABLES},
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }

    def close(self) -> None:
        """End the processes that were kept for further trials."""
        self._executor.close()
        self._client.close()

    def trial(
        self,
        configuration: Subject,
        remedies: Sequence[Remedy],
        seed: int,
        *,
        is_twin: bool = False,
        has_advice: bool = False,
    ) -> Result:
        """Return the result of a configuration with remedies on a seed; run the trial if there is no kept result.

        The result of a control has its advice, that of another trial has it on request.
        """
        has_advice = has_advice or (not remedies and not is_twin)
        setting = configuration.twin if is_twin else configuration.faulty
        script = setting.sources if isinstance(setting, PublishedSetting) else OWN_SOURCES
        key = msgspec.json.encode([code_digest(script, has_advice=has_advice), repr(setting), remedies, seed])
        kept = RESULTS / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.msgpack"
        if kept.exists():
            return msgspec.msgpack.decode(kept.read_bytes(), type=Result)
        result = self.run_trial(configuration, remedies, seed, is_twin=is_twin, has_advice=has_advice)
        draft = kept.with_suffix(".draft")
        draft.write_bytes(msgspec.msgpack.encode(result))
        draft.replace(kept)
        return result

    def run_trial(
        self,
        configuration: Subject,
        remedies: Sequence[Remedy],
        seed: int,
        *,
        is_twin: bool = False,
        has_advice: bool = False,
    ) -> Result:
        """Run a trial and return its result, which is not kept."""
        setting = configuration.twin if is_twin else configuration.faulty
        run_id = new_id()
        claimed = ClaimedTrial(
            trial_id=run_id,
            attempt=1,
            rerun_id=run_id,
            run_id=run_id,
            parent_id=run_id,
            project="reruns",
            candidate=0,
            trainable="train",
            parameters={},
            seed=seed,
            remedies=list(remedies),
            steps=setting.steps,
            seconds=LONGEST_SECONDS,
            lease_seconds=LONGEST_SECONDS,
        )
        is_published = isinstance(setting, PublishedSetting)
        script = PUBLISHED_SCRIPT if is_published else SCRIPT
        scratch = Path(tempfile.mkdtemp(dir=self._folder))
        for part in ("tmp", "report"):
            (scratch / part).mkdir()
        output = scratch / "output"
        order = LaunchSpec(
            command=[sys.executable, str(script), configuration.name, *(["--twin"] if is_twin else [])],
            environment=build_trial_environment(self._base, claimed, self._base_url, scratch, ()),
            directory=scratch,
            output=output,
            seconds=LONGEST_SECONDS,
            memory=None,
        )
        process = self._executor.start(order, self._base, may_fork=True)
        try:
            ended = None
            while ended is None:
                ended = process.wait(LONGEST_SECONDS)
        finally:
            process.close()
        report, text = read_report(scratch), output.read_text(errors="replace") if output.exists() else ""
        shutil.rmtree(scratch, ignore_errors=True)
        cpu = re.findall(r"CPU seconds: ([\d.]+)", text)
        seconds = float(cpu[-1]) if cpu else None
        if report.not_applicable is not None:
            return self._nothing("not_applicable", report.not_applicable, seconds)
        if ended.reason is not None or ended.exit_code != 0:
            return self._nothing("failed", ended.reason or text[-300:], seconds)
        return self._read(run_id, seconds, report.evaluation, has_advice=has_advice, has_skill=is_published)

    @staticmethod
    def _nothing(status: str, reason: str, seconds: float | None) -> Result:
        return Result(
            status=status,
            reason=reason,
            verdict="undetermined",
            curve=None,
            is_silent=False,
            has_dead_units=False,
            causes={},
            advice=[],
            cpu_seconds=seconds,
        )

    def _read(
        self,
        run_id: UUID,
        seconds: float | None,
        evaluation: TrialEvaluation | None,
        *,
        has_advice: bool,
        has_skill: bool,
    ) -> Result:
        diagnosis = self._client.runs.diagnosis(run_id)
        recorded = self._recording(run_id, (*READ, SKILL) if has_skill else READ)
        losses, training = recorded["loss"], self._client.runs.get(run_id).training
        return Result(
            status="done",
            reason=None,
            verdict=diagnosis.verdict,
            curve=summarize_trial(losses, None, losses, training, evaluation, diagnosis.learning),
            is_silent=not AUTOTRAINER.first_alarms(recorded),
            has_dead_units=any(finding.detector == "zero_gradient" for finding in diagnosis.findings),
            causes={cause.cause: cause.score for cause in diagnosis.causes} if has_advice else {},
            advice=[advice.remedy for advice in diagnosis.advice] if has_advice else [],
            cpu_seconds=seconds,
            kinds=[KINDS[advice.reason] for advice in diagnosis.advice] if has_advice else [],
            logged_skill=float(recorded[SKILL][-1]) if has_skill else None,
        )

    def _recording(self, run_id: UUID, names: Sequence[str]) -> dict[str, Any]:
        """Return a run's steps as the reference rules read them. `names` are series, the loss first, and statistics."""
        layers = self._client.runs.get(run_id).layers
        answer = self._http.request(
            "GET",
            f"{self._base_url}/api/v1/runs/{run_id}/steps?" + urlencode([("statistic", name) for name in names]),
            headers={"Accept": "text/csv"},
        )
        header, *rows = csv.reader(io.StringIO(answer.data.decode()))
        table = np.array([[float(value or "nan") for value in row] for row in rows])
        columns = {name: table[:, index] for index, name in enumerate(header)}
        statistics = {
            name: np.stack([columns[f"{name}/{layer.name}"] for layer in layers], axis=1) for name in READ[1:]
        }
        return {
            **{name: columns[name] for name in names if name in columns},
            "numel": np.array([layer.numel for layer in layers]),
            "ndim": np.array([len(layer.shape or ()) for layer in layers]),
            "frozen": np.array([layer.frozen for layer in layers]),
            **statistics,
        }


@contextmanager
def laboratory() -> Iterator[Laboratory]:
    """Start a service for trials, and yield the laboratory that uses it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with gradmedic(f"sqlite:///{folder / 'gradmedic.db'}", folder) as (base_url, _):
            made = Laboratory(base_url, folder)
            try:
                yield made
            finally:
                made.close()


def skill(result: Result, setting: Setting | PublishedSetting) -> float:
    """Return how good a training got: 0 is a constant answer, 1 is perfect; -inf: its numbers are not finite.

    A published program measures it in evaluation mode. For our own settings, it is how far the final loss is below that
    of the best constant answer.
    """
    if result.curve is None or not math.isfinite(result.curve.final):
        return -math.inf
    if isinstance(setting, PublishedSetting):
        return -math.inf if result.logged_skill is None or math.isnan(result.logged_skill) else result.logged_skill
    return 1 - result.curve.final / baseline(setting.task)


def reason_not_failing(laboratory: Laboratory, configuration: Subject, seed: int = 0) -> str | None:
    """Return why a configuration is no failing training with a twin that learns; None if it is one."""
    twin = skill(laboratory.trial(configuration, (), seed, is_twin=True), configuration.twin)
    control = laboratory.trial(configuration, (), seed)
    if control.status != "done" or control.curve is None:
        return "did not run"
    if twin < LEAST_SKILL:
        return "its twin does not learn here"
    is_blown_up = isinstance(configuration, Configuration) and not control.curve.final <= BLOW_UP * control.curve.start
    is_lost = skill(control, configuration.faulty) <= LOST_SKILL * twin
    return None if is_blown_up or is_lost else "does not fail here"


def is_failing(laboratory: Laboratory, configuration: Subject, seed: int = 0) -> bool:
    """Whether a configuration fails, and its twin learns."""
    return reason_not_failing(laboratory, configuration, seed) is None
