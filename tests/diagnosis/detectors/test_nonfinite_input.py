"""NaN or infinite numbers in the data."""

from __future__ import annotations

import numpy as np
from tests.diagnosis.condition_runs import diagnose_in_pieces, find_condition, list_causes, with_probe
from tests.diagnosis.synthetic_run import falling, run

STEPS = 200


def broken(*steps: int, until: int | None = None) -> np.ndarray:
    """Return a falling loss that is NaN on some steps, or from the only one to another."""
    loss = falling(STEPS)
    loss[list(steps)] = np.nan
    if until is not None:
        loss[steps[0] : until] = np.nan
    return loss


def test_a_nan_in_the_data_is_the_first_cause() -> None:
    """The batch on which the run breaks has three bad elements: the cause is the data, with their number."""
    block = with_probe(run(broken(80, until=STEPS)), "input_nonfinite_count", {80: 3.0, 81: 3.0})
    finding = find_condition(block, "nonfinite_input")
    assert finding is not None
    assert (finding.first_step, finding.severity) == (80, "warning")
    assert finding.evidence == {"input_nonfinite_count": 3.0, "bad_steps": 1.0}
    assert "it should have none" in finding.explanation
    causes = list_causes(block)
    assert causes[0] == "nonfinite_input"
    assert not {"nonfinite_loss", "numerical_instability", "missing_clipping"} & {*causes}


def test_a_finite_input_is_no_finding() -> None:
    """A count of zero clears the data; so does a count after the weights were broken."""
    loss = broken(80, until=STEPS)
    assert find_condition(with_probe(run(loss), "input_nonfinite_count", {80: 0.0}), "nonfinite_input") is None
    assert find_condition(with_probe(run(loss), "input_nonfinite_count", {90: 5.0}), "nonfinite_input") is None
    assert find_condition(run(loss), "nonfinite_input") is None


def test_a_single_bad_batch_asks_for_attention_and_is_resolved() -> None:
    """The script drops the bad batch, and the loss falls on: a fault for a hundred steps, then it is resolved."""
    block = with_probe(run(broken(40)), "input_nonfinite_count", {40: 1.0})
    diagnosis = diagnose_in_pieces(block)
    finding = find_condition(block, "nonfinite_input")
    assert finding is not None
    assert finding.resolved_step == 140
    assert diagnose_in_pieces(block.cut(0, 100)).level == "attention"
    assert diagnosis.level == "ok"
    assert diagnosis.causes == []


def test_each_bad_batch_of_an_epoch_is_counted() -> None:
    """A bad example that comes back renews the finding and its count of steps."""
    block = with_probe(run(broken(40, 90)), "input_nonfinite_count", {40: 1.0, 90: 2.0})
    finding = find_condition(block, "nonfinite_input")
    assert finding is not None
    assert (finding.first_step, finding.last_step, finding.evidence["bad_steps"]) == (40, 90, 2)
