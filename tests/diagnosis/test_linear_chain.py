"""The textbook chain W = a*I: ten linear layers, whose factors are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from tests.diagnosis.linear_chain import Chain, train_chain
from tests.diagnosis.whole_run import keep_verdicts

from gradmedic_diagnosis import Diagnostician, UpdatedDiagnosis


def diagnose(chain: Chain) -> UpdatedDiagnosis:
    """Diagnose a chain's whole training."""
    return Diagnostician(chain.layers).update(chain.block)


@pytest.mark.parametrize("a", [1.5, 0.5])
def test_recorded_factors_match_the_closed_form(a: float) -> None:
    """The signal is scaled by a^10 (57.7 for 1.5), and every layer's first gradient has the closed form's norm."""
    chain = train_chain(a, steps=1)
    x, output = chain.first_input, chain.first_output
    assert output == pytest.approx(a**10 * x, rel=1e-12)
    if a == 1.5:
        assert float(output[0] / x[0]) == pytest.approx(57.665, rel=1e-4)
    target = np.random.default_rng(0).normal(size=(2, len(x)))[1]
    delta = 2 * (a**10 * x - target) / len(x)
    expected = a**9 * np.linalg.norm(delta) * np.linalg.norm(x)
    assert chain.block.values[0, :, 0] == pytest.approx(np.full(10, expected), rel=1e-6)


def test_large_factor_explodes() -> None:
    """With a = 1.5 the first update overshoots, and the run is exploding at once; the initialization is a cause."""
    diagnosis = diagnose(train_chain(1.5))
    assert diagnosis.verdict == "exploding"
    assert diagnosis.since_step == 1
    causes = {cause.cause: cause for cause in diagnosis.causes}
    assert causes["poor_initialization"].evidence["signal_decades"] == pytest.approx(10 * np.log10(1.5), rel=1e-6)


def test_small_factor_vanishes() -> None:
    """With a = 0.5 the loss is insensitive to every layer: the run is vanishing, caused by its initialization.

    Of a plain network of ten layers, new weights and normalization are the first two remedies.
    """
    diagnosis = diagnose(train_chain(0.5))
    assert diagnosis.verdict == "vanishing"
    assert diagnosis.causes[0].cause == "poor_initialization"
    assert diagnosis.causes[0].evidence["signal_decades"] == pytest.approx(10 * np.log10(0.5), rel=1e-6)
    assert {advice.remedy.id for advice in diagnosis.advice[:2]} == {"reinitialize", "insert_normalization"}


def test_identity_chain_is_healthy() -> None:
    """With a = 1 the chain trains down to a loss of exactly zero, without an alarm."""
    diagnostician = Diagnostician((chain := train_chain(1.0, learning_rate=0.1)).layers)
    changes = keep_verdicts(diagnostician.update(chain.block).changes)
    assert chain.block.series["loss"].values[-1] == 0
    assert [change.verdict for change in changes] == ["healthy"]
