"""Verdicts on recordings of real runs. They do not depend on how the steps are cut into blocks."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from benchmarks.corpus.recording import load
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.approximation import approximately

from gradmedic.protocol.diagnosis import DiagnosisAtStep, VerdictChange
from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Architecture, Block, Diagnostician

RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"
LABELS = {"E": "exploding", "V": "vanishing", "H": "healthy"}
NAMES = sorted(path.stem for path in RECORDINGS.glob("*.npz"))


def diagnose(
    layers: tuple[Layer, ...], block: Block, cuts: list[int], *, restarts: bool = False
) -> tuple[DiagnosisAtStep, list[VerdictChange]]:
    """Send a run cut at the given positions; with `restarts`, through bytes after every block."""
    diagnostician = Diagnostician(layers)
    changes: list[VerdictChange] = []
    edges = [0, *sorted(set(cuts)), len(block)]
    diagnosis = diagnostician.diagnose()
    for start, stop in pairwise(edges):
        if start == stop:
            continue
        diagnosis = diagnostician.update(block.cut(start, stop))
        changes += diagnosis.changes
        if restarts:
            diagnostician = Diagnostician.from_bytes(diagnostician.to_bytes(), layers)
    return diagnosis, changes


@pytest.mark.parametrize("name", NAMES)
def test_verdict_is_the_outcome(name: str) -> None:
    """A recorded run ends with the verdict of its outcome; a healthy or slow one never has an alarm."""
    layers, _, block = load(RECORDINGS / f"{name}.npz")
    diagnosis, changes = diagnose(layers, block, list(range(0, len(block), 37)))
    alarms = {change.verdict for change in changes} & {"vanishing", "exploding"}
    if name[0] in "EV":
        assert diagnosis.verdict == LABELS[name[0]]
        assert diagnosis.causes
        assert [advice.rank for advice in diagnosis.advice] == list(range(1, len(diagnosis.advice) + 1))
    else:
        assert not alarms
        assert diagnosis.verdict == "healthy"


@pytest.mark.parametrize("name", ["E-late-rnn-noclip", "E-late-lr-ramp-reg"])
def test_explosion_is_found_before_the_first_nan(name: str) -> None:
    """An explosion that builds up is found at least one step before its loss is non-finite."""
    layers, _, block = load(RECORDINGS / f"{name}.npz")
    _, changes = diagnose(layers, block, [])
    first_nonfinite = int(np.flatnonzero(~np.isfinite(block.series["loss"].values))[0])
    assert min(change.step for change in changes if change.verdict == "exploding") < first_nonfinite


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8)
@given(data=st.data())
def test_cuts_change_nothing(name: str, data: st.DataObject) -> None:
    """However a run is cut into blocks, the whole diagnosis is the same: verdicts, steps, layers and numbers."""
    layers, _, block = load(RECORDINGS / f"{name}.npz")
    cuts = data.draw(st.lists(st.integers(1, len(block) - 1), max_size=12))
    whole, changes = diagnose(layers, block, [])
    parts, part_changes = diagnose(layers, block, cuts)
    assert part_changes == changes
    assert (parts.verdict, parts.score, parts.since_step, parts.summary) == (
        whole.verdict,
        whole.score,
        whole.since_step,
        whole.summary,
    )
    for cause, expected_cause in zip(parts.causes, whole.causes, strict=True):
        assert asdict(cause) == approximately(asdict(expected_cause))
    for advice, expected_advice in zip(parts.advice, whole.advice, strict=True):
        assert asdict(advice) == approximately(asdict(expected_advice))
    for found, expected in zip(parts.findings, whole.findings, strict=True):
        assert (found.detector, found.layers, found.first_step, found.resolved_step) == (
            expected.detector,
            expected.layers,
            expected.first_step,
            expected.resolved_step,
        )
        assert found.evidence == pytest.approx(dict(expected.evidence), rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", ["E-late-lr-ramp-reg", "V-rnn-recall-sigmoid"])
def test_state_survives_bytes(name: str) -> None:
    """Serializing and restoring after every block changes nothing."""
    layers, _, block = load(RECORDINGS / f"{name}.npz")
    cuts = list(range(11, len(block), 11))
    assert diagnose(layers, block, cuts, restarts=True)[1] == diagnose(layers, block, cuts)[1]


def test_an_architecture_that_is_given_changes_nothing() -> None:
    """A state that is restored with the architecture of its layers has the same diagnosis as one that derives it."""
    layers, training, block = load(RECORDINGS / "V-rnn-recall-sigmoid.npz")
    diagnostician = Diagnostician(layers, training)
    diagnostician.update(block.cut(0, len(block) // 2))
    state = diagnostician.to_bytes()
    architecture = Architecture.from_layers(layers)
    restored = [Diagnostician.from_bytes(state, layers, training, architecture=given) for given in (architecture, None)]
    rest = block.cut(len(block) // 2, len(block))
    assert restored[0].update(rest) == restored[1].update(rest)
    assert restored[0].diagnose() == restored[1].diagnose()


@pytest.mark.parametrize("exponent", [-20, 20])
@pytest.mark.parametrize("name", ["H-lr-to-zero", "V-zero-init", "E-slow-gd-unstable"])
def test_units_of_the_loss_change_no_verdict(name: str, exponent: int) -> None:
    """Scaling loss and gradients together by a power of two changes no verdict and no step of one."""
    layers, _, block = load(RECORDINGS / f"{name}.npz")
    scale = float(2.0**exponent)
    values = block.values.astype(np.float64)
    for statistic in ("grad_norm", "grad_mean", "grad_abs_max"):
        values[:, :, block.statistics.index(statistic)] *= scale
    loss = block.series["loss"]
    scaled = Block(
        steps=block.steps,
        sampled=block.sampled,
        skipped=block.skipped,
        statistics=block.statistics,
        values=np.clip(values, -3.4e38, 3.4e38).astype(np.float32),
        present=block.present,
        series={**block.series, "loss": type(loss)(loss.values * scale, loss.present)},
    )
    steps = [(change.step, change.verdict) for change in diagnose(layers, block, [])[1]]
    assert [(change.step, change.verdict) for change in diagnose(layers, scaled, [])[1]] == steps


def test_state_stays_small() -> None:
    """The state of a run of a hundred layers is below 40 kB after a thousand steps."""
    rng = np.random.default_rng(0)
    layers = tuple(Layer(name=f"{i}.weight", numel=100) for i in range(100))
    every = np.ones(1000, dtype=np.bool_)
    block = Block(
        steps=np.arange(1000),
        sampled=every,
        skipped=~every,
        statistics=("grad_norm",),
        values=rng.lognormal(size=(1000, 100, 1)).astype(np.float32),
        present=np.ones((1000, 100), dtype=np.bool_),
    )
    diagnostician = Diagnostician(layers)
    diagnostician.update(block)
    assert len(diagnostician.to_bytes()) < 40_000
