"""The figures on foreign runs: what counts as right, as a flip, as a birth that was found."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from benchmarks.corpus.foreign.loading import ForeignRun
from benchmarks.foreign_runs import ForeignReading, describe, f1_scores, list_errors, read, score
from tests.diagnosis.synthetic_run import falling, layers, noisy, run

from gradmedic.protocol.diagnosis import VerdictChange
from gradmedic.protocol.runs import Training
from gradmedic_diagnosis import Block


def foreign(block: Block, verdict: str, level: str, **fields: Any) -> ForeignRun:
    """Return a labelled run of a block."""
    usual: dict[str, Any] = {"first_nonfinite": None, "born_in": None, "forbidden_layers": ()}
    return ForeignRun(
        id="x", program="p", family="f", kind="healthy", verdict=verdict, level=level, layers=layers(),
        training=Training(), framework=None, block=block, **{**usual, **fields},
    )  # fmt: skip


def reading(right: ForeignRun, *verdicts: str) -> ForeignReading:
    """Return a reading with these verdicts, ten steps apart."""
    changes = tuple(
        VerdictChange(
            step=10 * i, verdict=verdict, score=0.9, finding=None, learning="unknown",
            level="critical" if verdict in ("vanishing", "exploding") else "ok",
        )
        for i, verdict in enumerate(verdicts)
    )  # fmt: skip
    return ForeignReading(
        run=right, changes=changes, verdict=verdicts[-1], level=changes[-1].level, score=0.9, birth_step=None,
        birth_layer=None,
    )  # fmt: skip


FINE = foreign(run(falling(300)), "healthy", "ok")
STUCK = foreign(run(noisy(2.3, 300)), "healthy", "attention")


def test_a_run_is_read_like_a_stream() -> None:
    """A run that learns is ok, and one whose loss is flat is at attention: both are right, without errors."""
    readings = [read(FINE), read(STUCK)]
    result = score(readings)
    assert (result.verdict_f1, result.level_f1, result.flips) == (1.0, 1.0, 0)
    assert list_errors(readings) == []
    assert "verdict macro-F1 1.000" in describe(readings)


def test_a_withdrawn_alarm_counts_for_a_healthy_run() -> None:
    """A healthy run that was ever called exploding is wrong; a failing run is judged by its last verdict."""
    alarmed = reading(FINE, "healthy", "exploding", "healthy")
    assert (alarmed.counted, alarmed.was_critical, alarmed.flips) == ("exploding", True, 0)
    late = reading(dataclasses.replace(FINE, verdict="exploding", level="critical"), "healthy", "exploding")
    assert late.counted == "exploding"
    assert score([alarmed]).healthy_critical == 1


def test_flips_count_also_through_healthy() -> None:
    """Exploding, healthy, vanishing is a flip, as exploding and vanishing in a row."""
    assert reading(FINE, "exploding", "healthy", "vanishing", "exploding").flips == 2
    assert reading(FINE, "healthy", "exploding", "healthy", "exploding").flips == 0


def test_a_birth_is_right_by_step_and_layer() -> None:
    """The step must be exact, and a layer whose gradient was finite is a wrong answer."""
    loss = falling(200)
    loss[150:] = np.nan
    block = run(loss)
    values = block.values.copy()
    values[150:, 1, 0], values[150:, 1, 1] = np.nan, 10
    block = dataclasses.replace(block, values=values)
    born = foreign(block, "exploding", "critical", first_nonfinite=150, forbidden_layers=("0.weight", "3.weight"))
    result = score([read(born)])
    assert (result.births, result.birth_steps_right, result.birth_layers, result.birth_layers_right) == (1, 1, 1, 1)
    other = dataclasses.replace(born, first_nonfinite=149, forbidden_layers=("1.weight",))
    result = score([read(other)])
    assert (result.birth_steps_right, result.birth_layers_right) == (0, 0)
    assert len(list_errors([read(other)])) == 1


def test_f1_is_that_of_scikit_learn() -> None:
    """The scores of the classes are those of the definition: twice the hits over all given and all right answers."""
    pairs = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "b"), ("c", "a")]
    assert f1_scores(pairs, ("a", "b", "c", "d")) == pytest.approx({"a": 0.5, "b": 0.8, "c": 0.0})


def test_missed_targets_are_named() -> None:
    """Every target that is missed is named with its number."""
    missed = score([reading(FINE, "exploding", "vanishing"), read(STUCK)]).list_missed()
    assert any("flips" in text for text in missed)
    assert any("1 of 2 healthy runs critical" in text for text in missed)
