"""Clipping is advised against gradients that grow, and not against a NaN that is born among ordinary ones."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from tests.diagnosis.condition_runs import with_probe
from tests.diagnosis.synthetic_run import falling, layers, run

from gradmedic.protocol.runs import Optimizer, Training
from gradmedic_diagnosis import Block, Diagnostician, UpdatedDiagnosis

STEPS, BORN = 200, 180
"""Steps of a run, and the one at which a number becomes NaN."""
SPIKES = 3
"""Steps with gradients that clipping would bound."""
CAUSES = {"loss": "nonfinite_loss", "gradient": "numerical_instability", "input": "nonfinite_input"}
"""The cause, by what is NaN first."""


def generate(seed: int) -> Block:
    """Return a run that learns, with noise and a few large gradients at random steps."""
    random = np.random.default_rng(seed)
    gradient = 10 ** random.uniform(-3, 1) * np.exp(0.3 * random.normal(size=(STEPS, 4)))
    gradient[random.choice(np.arange(40, BORN - 10), SPIKES, replace=False)] *= random.uniform(30, 300)
    losses = falling(STEPS, start=random.uniform(0.5, 5), half_life=random.uniform(40, 150))
    return run(losses, gradient=gradient, weight=1.0, update=random.uniform(2e-4, 5e-3))


def give_birth(block: Block, birth: str) -> Block:
    """Return the run with a NaN from `BORN` on: in the loss first, in the gradients first, or in the input."""
    values, losses = block.values.copy(), block.series["loss"].values.copy()
    values[BORN:, :, block.statistics.index("grad_norm")] = math.nan
    values[BORN:, :, block.statistics.index("nonfinite_count")] = 100
    for statistic in ("weight_norm", "update_norm"):  # the update of the step makes the weights NaN
        values[BORN + 1 :, :, block.statistics.index(statistic)] = math.nan
    losses[BORN + (birth == "gradient") :] = math.nan
    loss = dataclasses.replace(block.series["loss"], values=losses)
    broken = dataclasses.replace(block, values=values, series={**block.series, "loss": loss})
    return with_probe(broken, "input_nonfinite_count", {BORN: 3.0 if birth == "input" else 0.0})


def diagnose(block: Block, optimizer: str) -> UpdatedDiagnosis:
    """Return the diagnosis of a run with an optimizer."""
    return Diagnostician(layers(), Training(optimizers=[Optimizer(name=optimizer)]), framework="torch").update(block)


def list_clipping(diagnosis: UpdatedDiagnosis) -> list[str]:
    """Return the ids of the advised remedies that bound gradients."""
    return [advice.remedy.id for advice in diagnosis.advice if "clip" in advice.remedy.id]


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("birth", CAUSES)
@pytest.mark.parametrize("seed", range(8))
def test_no_clipping_is_advised_against_a_nan_that_is_born(seed: int, birth: str, optimizer: str) -> None:
    """Although the run had large gradients before, which is evidence that clipping is missing."""
    diagnosis = diagnose(give_birth(generate(seed), birth), optimizer)
    assert diagnosis.verdict == "exploding"
    assert diagnosis.causes[0].cause == CAUSES[birth]
    assert "missing_clipping" in {cause.cause for cause in diagnosis.causes}
    assert list_clipping(diagnosis) == []


@pytest.mark.parametrize("seed", range(8))
def test_clipping_is_advised_against_gradients_that_grow_until_they_overflow(seed: int) -> None:
    """The NaN at the end is a consequence of the growth."""
    block = generate(seed)
    values, losses = block.values.copy(), block.series["loss"].values.copy()
    growth = np.exp(np.clip(np.arange(STEPS) - 140, 0, BORN - 140) * 0.5)[:, None]
    values[:, :, block.statistics.index("grad_norm")] *= growth
    values[:, :, block.statistics.index("update_norm")] *= growth
    losses *= growth[:, 0]
    loss = dataclasses.replace(block.series["loss"], values=losses)
    grown = dataclasses.replace(block, values=values, series={**block.series, "loss": loss})
    diagnosis = diagnose(give_birth(grown, "loss"), "SGD")
    assert diagnosis.verdict == "exploding"
    assert list_clipping(diagnosis)
