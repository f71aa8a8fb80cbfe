"""A loss that is the first number that is not finite."""

from __future__ import annotations

import numpy as np
import pytest
from tests.diagnosis.condition_runs import find_condition, list_causes, with_probe
from tests.diagnosis.synthetic_run import falling, run
from tests.diagnosis.whole_run import without_weights

from gradmedic.protocol.runs import Training

STEPS, BORN = 120, 80


def dying(value: float = np.nan) -> np.ndarray:
    """Return a falling loss that is not finite from one step on."""
    loss = falling(STEPS)
    loss[BORN:] = value
    return loss


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_breaks_after_ordinary_steps_is_its_own_cause(value: float) -> None:
    """The numbers before are named with what is ordinary; the forward pass is to blame."""
    finding = find_condition(run(dying(value)), "nonfinite_loss")
    assert finding is not None
    assert (finding.first_step, finding.resolved_step) == (BORN, None)
    assert finding.evidence["loss_before"] < 2.3
    assert finding.evidence["update_to_weight"] == pytest.approx(1e-3)
    assert "forward pass" in finding.explanation
    assert list_causes(run(dying(value)))[0] == "nonfinite_loss"


def test_gradients_or_updates_out_of_the_ordinary_are_another_cause() -> None:
    """Gradients that grew by a decade, a loss that blew up, and updates of a fifth of the weights explain a NaN."""
    growing = np.where(np.arange(STEPS) < BORN - 15, 1.0, 100.0)[:, None]
    rising = dying()
    rising[BORN - 10 : BORN] = 50.0
    assert find_condition(run(dying(), gradient=growing), "nonfinite_loss") is None
    assert find_condition(run(rising), "nonfinite_loss") is None
    assert find_condition(run(dying(), update=2.0), "nonfinite_loss") is None


def test_large_updates_of_long_ago_or_of_weights_that_start_at_zero_do_not_matter() -> None:
    """The first steps of small or zero weights are large against them, and break nothing eighty steps later."""
    update = np.where(np.arange(STEPS) < 10, 5.0, 0.01)[:, None]
    weight = np.linspace(0.0, 1.0, STEPS)[:, None]
    assert find_condition(run(dying(), update=update), "nonfinite_loss") is not None
    finding = find_condition(run(dying(), weight=weight, update=0.1), "nonfinite_loss")
    assert finding is not None
    assert "update_to_weight" not in finding.evidence


def test_a_gradient_that_broke_first_is_another_cause() -> None:
    """A loss that is NaN because the weights are was not the first."""
    block = run(dying())
    weight = block.statistics.index("weight_norm")
    block.values[BORN:, :, weight] = np.nan
    assert find_condition(block, "nonfinite_loss") is None


def test_the_input_is_cleared_or_blamed() -> None:
    """A finite input is evidence; a non-finite one is a cause of its own."""
    cleared = find_condition(with_probe(run(dying()), "input_nonfinite_count", {BORN: 0.0}), "nonfinite_loss")
    assert cleared is not None
    assert cleared.evidence["input_nonfinite_count"] == 0
    assert "all elements of the input are finite" in cleared.explanation
    unseen = find_condition(run(dying()), "nonfinite_loss")
    assert unseen is not None
    assert "Check the input" in unseen.explanation
    assert find_condition(with_probe(run(dying()), "input_nonfinite_count", {BORN: 1.0}), "nonfinite_loss") is None


def test_ignored_labels_are_named() -> None:
    """All labels of the batch are ignored: the mean over none is the reason."""
    loss = falling(STEPS)
    loss[BORN] = np.nan
    finding = find_condition(with_probe(run(loss), "ignored_label_share", {BORN: 1.0}), "nonfinite_loss")
    assert finding is not None
    assert "0/0" in finding.explanation
    assert finding.evidence["ignored_label_share"] == 1
    assert finding.resolved_step == BORN + 20


def test_the_first_loss_and_runs_without_weights_are_judged_too() -> None:
    """A first loss of NaN, and a client that sends gradients alone, lack numbers, not a cause."""
    first = find_condition(run(np.full(30, np.nan)), "nonfinite_loss")
    assert first is not None
    assert "first loss" in first.explanation
    assert find_condition(without_weights(run(dying())), "nonfinite_loss") is not None


def test_in_half_precision_an_overflow_comes_first() -> None:
    """A forward pass in float16 overflows at 65504; that is the likelier reason."""
    causes = list_causes(run(dying()), Training(precision="float16"))
    assert causes[0] == "precision_overflow"
    assert "nonfinite_loss" in causes
    assert list_causes(run(dying()), Training(precision="bfloat16"))[0] == "nonfinite_loss"
