"""Attention logits that grow, and attention that collapses."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.diagnosis.synthetic_run import falling, noisy, run
from tests.diagnosis.whole_run import STEPS, find_finding

from gradmedic.protocol.diagnosis import Finding
from gradmedic.protocol.probes import name_metric
from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Block, Diagnostician, StepSeries, UpdatedDiagnosis
from gradmedic_diagnosis.detectors.attention_logit_growth import EXTREME, HIGH, find_projections

EVERY = 4
"""Steps from one probe to the next."""
LAYERS = tuple(
    Layer(name=name, numel=100, role="weight")
    for name in ("0.q_proj.weight", "0.k_proj.weight", "0.v_proj.weight", "1.in_proj_weight")
)

Series = NDArray[np.float64]


def grow(first: float, last: float, steps: int = STEPS) -> Series:
    """Return numbers that grow by the same factor each step, with a noise of a twentieth."""
    noise = 1 + 0.05 * np.random.default_rng(2).normal(size=steps)
    return np.asarray(np.geomspace(first, last, steps) * noise)


def probe(loss: Sequence[float] | Series, logits: Mapping[str, Series], entropies: Mapping[str, Series]) -> Block:
    """Return a run with probes on some of its steps."""
    probed = np.arange(len(loss)) % EVERY == 0
    metrics = {
        name_metric(probe, module): StepSeries(np.where(probed, values, 0.0), probed)
        for probe, modules in (("attention_logit_max", logits), ("attention_entropy", entropies))
        for module, values in modules.items()
    }
    return dataclasses.replace(run(loss), metrics=metrics)


def diagnose(block: Block, parts: int = 1) -> UpdatedDiagnosis:
    """Diagnose a run, perhaps cut into parts with the state stored in between."""
    diagnostician = Diagnostician(LAYERS)
    bounds = np.linspace(0, len(block), parts + 1).astype(int)
    for first, end in itertools.pairwise(bounds.tolist()):
        part = dataclasses.replace(
            block,
            steps=block.steps[first:end],
            sampled=block.sampled[first:end],
            skipped=block.skipped[first:end],
            values=block.values[first:end],
            present=block.present[first:end],
            series={k: StepSeries(s.values[first:end], s.present[first:end]) for k, s in block.series.items()},
            metrics={k: StepSeries(s.values[first:end], s.present[first:end]) for k, s in block.metrics.items()},
        )
        diagnosis = diagnostician.update(part)
        diagnostician = Diagnostician.from_bytes(diagnostician.to_bytes(), LAYERS)
    return diagnosis


def find(diagnosis: UpdatedDiagnosis) -> Finding | None:
    """Return the finding, if there is one."""
    return find_finding(diagnosis, "attention_logit_growth")


RISING = np.concatenate([falling(220), np.linspace(0.2, 2.5, STEPS - 220)])
"""A loss that falls and then rises again."""
SHARP, OPEN = np.full(STEPS, 0.001), np.full(STEPS, 0.6)


def test_logits_that_grow_while_the_loss_rises_are_the_cause() -> None:
    """The finding is a warning and names the module and its projections; its score grows with the logits."""
    scores = []
    for last in (700.0, 7e3, 7e5):
        logits = {"0": grow(1.0, last), "1": grow(1.0, 5.0)}
        diagnosis = diagnose(probe(RISING, logits, {"0": np.geomspace(0.97, 1e-3, STEPS), "1": OPEN}))
        finding = find(diagnosis)
        assert finding is not None
        assert finding.severity == "warning"
        assert finding.resolved_step is None
        assert finding.layers == ["0.q_proj.weight", "0.k_proj.weight"]
        assert finding.first_step == pytest.approx(STEPS * np.log(HIGH) / np.log(last), abs=3 * EVERY)
        assert finding.evidence["attention_logit_max"] == pytest.approx(last, rel=0.3)
        assert finding.evidence["modules_affected"] == 1
        assert "of 0 is" in finding.explanation
        (cause,) = (cause for cause in diagnosis.causes if cause.cause == "attention_logit_growth")
        scores.append(cause.score)
    assert scores == sorted(scores)
    assert 0.75 < scores[0] < 0.87
    assert scores[-1] == 0.95


def test_logits_that_were_never_small_are_a_fault_of_a_run_that_learns() -> None:
    """Where they are 50,000 from the start on in most modules, the softmax never passed a gradient."""
    huge, small = np.full(STEPS, 5e4), np.full(STEPS, 5.0)
    diagnosis = diagnose(probe(falling(STEPS), {"0": huge, "1": huge}, {"0": SHARP, "1": SHARP}))
    finding = find(diagnosis)
    assert finding is not None
    assert finding.severity == "warning"
    assert [cause.cause for cause in diagnosis.causes] == ["attention_logit_growth"]
    others = {"0": huge, "1": small, "2": small, "3": small}
    assert not diagnose(probe(falling(STEPS), others, dict.fromkeys(others, OPEN) | {"0": SHARP})).causes


@pytest.mark.parametrize("last", [0.6 * EXTREME, 20 * EXTREME])
@pytest.mark.parametrize("loss", [falling(STEPS), falling(STEPS, half_life=15.0) + 0.01], ids=["learning", "learned"])
def test_logits_that_grow_while_the_task_is_learned_are_a_note(loss: Series, last: float) -> None:
    """However large the logits of a run that learns or has learned are, they are no cause."""
    diagnosis = diagnose(probe(loss, {"0": grow(1.0, last)}, {"0": SHARP}))
    finding = find(diagnosis)
    assert finding is not None
    assert finding.severity == "note"
    assert not diagnosis.causes
    assert diagnosis.level == "ok"


def test_extreme_logits_are_a_warning_where_nothing_measures_progress() -> None:
    """Without a loss, extreme logits alone decide; high ones stay a note."""
    for last, severity in ((0.6 * EXTREME, "note"), (20 * EXTREME, "warning")):
        block = probe(falling(STEPS), {"0": grow(1.0, last)}, {"0": SHARP})
        finding = find(diagnose(dataclasses.replace(block, series={})))
        assert finding is not None
        assert finding.severity == severity


@pytest.mark.parametrize(
    ("loss", "logits", "entropies"),
    [
        (falling(STEPS), grow(1.0, 60.0), np.geomspace(0.97, 1e-3, STEPS)),
        (np.concatenate([falling(150), noisy(0.4, 150)]), np.minimum(grow(1.0, 6e3), 70.0), SHARP),
        (noisy(2.3, STEPS), grow(400.0, 400.0), SHARP),
        (noisy(2.3, STEPS), grow(4e3, 4e3), SHARP),
        (RISING, grow(0.1, 30.0), OPEN),
        (noisy(2.3, STEPS), np.where(np.arange(STEPS) == 200, 5e4, grow(2.0, 2.0)), OPEN),
        (noisy(2.3, STEPS), np.full(STEPS, np.nan), np.full(STEPS, np.nan)),
        (noisy(2.3, STEPS), np.zeros(STEPS), np.ones(STEPS)),
        (noisy(2.3, STEPS), grow(1.0, 20.0), OPEN),
    ],
    ids=[
        "learned", "learned and done", "high and steady", "extreme from the start", "bounded", "one spike", "nan",
        "zero", "stuck with open attention",
    ],
)  # fmt: skip
def test_what_looks_alike_is_silent(loss: Series, logits: Series, entropies: Series) -> None:
    """Attention that sharpens with the task, steady logits, single spikes and low logits are no finding."""
    assert find(diagnose(probe(loss, {"0": logits, "1": logits}, {"0": entropies, "1": entropies}))) is None


def test_attention_that_collapses_while_nothing_is_learned_is_a_warning() -> None:
    """Most modules must have collapsed since the start; a loss that had been learned before is no evidence."""
    collapsing = np.geomspace(0.97, 1e-3, STEPS)
    low = {"0": grow(1.0, 60.0), "1": grow(1.0, 60.0)}
    both = {"0": collapsing, "1": collapsing}
    finding = find(diagnose(probe(noisy(2.3, STEPS), low, both)))
    assert finding is not None
    assert finding.severity == "warning"
    assert finding.evidence["modules_affected"] == 2
    three = {**low, "2": grow(1.0, 20.0)}
    assert find(diagnose(probe(noisy(2.3, STEPS), three, {**both, "1": OPEN, "2": OPEN}))) is None
    assert find(diagnose(probe(noisy(2.3, STEPS), low, {"0": SHARP, "1": SHARP}))) is None, "sharp from the start"


def test_the_finding_ends_when_logits_no_longer_grow() -> None:
    """Logits that stay below what is extreme, or fall, resolve it."""
    logits = np.concatenate([grow(1.0, 700.0, 200), np.full(200, 700.0)])
    loss = np.concatenate([falling(100), np.linspace(0.8, 2.5, 100), np.linspace(2.5, 0.5, 200)])
    finding = find(diagnose(probe(loss, {"0": logits}, {"0": np.full(400, 0.1)})))
    assert finding is not None
    assert finding.resolved_step is not None
    assert 200 < finding.resolved_step < 300


def test_logits_that_an_explosion_drags_along_are_a_weak_cause() -> None:
    """Where the loss had risen before the logits were high, they are a consequence."""
    loss = np.concatenate([falling(60), np.geomspace(1.2, 500.0, STEPS - 60)])
    logits = np.concatenate([np.full(120, 2.0), np.geomspace(2.0, 1e6, STEPS - 120)])
    diagnosis = diagnose(probe(loss, {"0": logits}, {"0": OPEN}))
    (score,) = (cause.score for cause in diagnosis.causes if cause.cause == "attention_logit_growth")
    assert score == 0.5


@pytest.mark.parametrize("parts", [2, 7, 60])
def test_the_finding_does_not_depend_on_the_cut_of_blocks(parts: int) -> None:
    """The same finding comes from one block and from many, with the state stored in between."""
    logits = {"0": grow(1.0, 7e3), "1": grow(1.0, 800.0)}
    block = probe(RISING, logits, {"0": SHARP, "1": OPEN})
    assert find(diagnose(block, parts)) == find(diagnose(block))


def test_infinite_logits_are_extreme() -> None:
    """They are evidence, and the numbers of the state stay finite where an average is taken."""
    logits = grow(1.0, 900.0)
    logits[200:] = np.inf
    finding = find(diagnose(probe(RISING, {"0": logits}, {"0": SHARP})))
    assert finding is not None
    assert finding.evidence["attention_logit_max"] == np.inf


def test_projections_are_found_by_name() -> None:
    """Names of torch, of transformers and of people are known; else all weights of the module are named."""
    for own in (
        "in_proj_weight",
        "c_attn.weight",
        "attention.self.query.weight",
        "to_qkv.weight",
        "wq",
        "query_proj.w",
    ):
        names = ["block.mlp.weight", f"block.attn.{own}", "block.attn.out_proj.weight", "block.attn.out_proj.bias"]
        assert find_projections("block.attn", names) == [1], own
    assert find_projections("attn", ["attn.linear.weight", "attn.linear.bias", "head.weight"]) == [0]
    assert find_projections("", ["linear.weight", "head.weight"]) == []
