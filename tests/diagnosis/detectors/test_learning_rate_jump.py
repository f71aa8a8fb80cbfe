"""A learning rate that jumps, and what the loss makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from tests.diagnosis.condition_runs import diagnose_in_pieces, find_condition, list_causes, with_rate, with_turns
from tests.diagnosis.synthetic_run import falling, run

STEPS, JUMP = 400, 150


def rates(factor: float = 10.0) -> np.ndarray:
    """Return a rate that jumps once."""
    return np.where(np.arange(STEPS) < JUMP, 0.01, 0.01 * factor)


def raised(times: float, until: int = STEPS) -> np.ndarray:
    """Return a falling loss that is a multiple of itself from the jump on, until some step."""
    steps = np.arange(STEPS)
    return falling(STEPS, half_life=2000) * np.where((steps > JUMP) & (steps < until), times, 1.0)


@pytest.mark.parametrize("value", [np.nan, 100.0])
def test_a_jump_that_destroys_the_run_is_the_first_cause(value: float) -> None:
    """The rate rises tenfold and the loss is NaN, or blows up: the jump is named with both rates, at its step."""
    loss = raised(1.0)
    loss[JUMP + 2 :] = value
    finding = find_condition(with_rate(run(loss), rates()), "learning_rate_jump")
    assert finding is not None
    assert (finding.first_step, finding.severity) == (JUMP, "warning")
    assert finding.evidence["rise"] == pytest.approx(10)
    assert finding.evidence["loss_before"] == pytest.approx(2.2, rel=0.1)
    update = np.where(np.arange(STEPS) < JUMP, 0.01, 10.0)[:, None]
    assert list_causes(with_rate(run(loss, update=update), rates()))[0] == "learning_rate_jump"


def test_a_loss_that_stays_high_is_a_warning_after_a_while() -> None:
    """The loss doubles at a rate that is higher than any before: a note for twenty losses, then a warning."""
    block = with_rate(run(raised(2.0)), rates())
    early = find_condition(block.cut(0, JUMP + 15), "learning_rate_jump")
    assert early is not None
    assert early.severity == "note"
    finding = find_condition(block, "learning_rate_jump")
    assert finding is not None
    assert (finding.severity, finding.resolved_step) == ("warning", None)
    assert "has not come back" in finding.explanation


def test_a_warm_restart_that_recovers_is_a_note_and_resolved() -> None:
    """After a restart the loss is high for eighty steps: a note, no cause, and resolved when it is back."""
    restart = np.where(np.arange(STEPS) < 50, 0.1, rates())
    block = with_rate(run(raised(2.0, until=JUMP + 80)), restart)
    finding = find_condition(block, "learning_rate_jump")
    assert finding is not None
    assert finding.severity == "note"
    assert finding.resolved_step is not None
    assert JUMP + 80 <= finding.resolved_step <= JUMP + 95
    assert diagnose_in_pieces(block).causes == []
    assert diagnose_in_pieces(block).level == "ok"


def test_a_restart_that_does_not_recover_is_a_warning_in_the_end() -> None:
    """A loss that is high for two hundred losses after a restart has not come back."""
    block = with_rate(run(raised(2.0)), np.where(np.arange(STEPS) < 50, 0.1, rates()))
    finding = find_condition(block, "learning_rate_jump")
    assert finding is not None
    assert finding.severity == "warning"


@pytest.mark.parametrize("scheme", ["warm-up", "one cycle", "steps up", "restarts"])
def test_schedules_that_work_are_silent(scheme: str) -> None:
    """A rate may rise by any factor if the loss goes on falling."""
    steps = np.arange(STEPS)
    schedule = {
        "warm-up": np.minimum(0.1, 1e-4 * (1 + steps)),
        "one cycle": 0.05 * np.sin(np.pi * (steps + 1) / STEPS) ** 2,
        "steps up": 0.001 * 4.0 ** (steps // 100),
        "restarts": 0.1 * np.cos(np.pi / 2 * (steps % 100) / 100),
    }[scheme]
    assert find_condition(with_rate(run(falling(STEPS)), schedule), "learning_rate_jump") is None


def test_a_loss_that_rises_long_after_a_jump_or_without_one_is_not_its_consequence() -> None:
    """The rate jumps at 150 and the loss at 250; or the rate rises by half only; or nothing is known of the rate."""
    late = falling(STEPS, half_life=200)
    late[250:] = 100.0
    assert find_condition(with_rate(run(late), rates()), "learning_rate_jump") is None
    assert find_condition(with_rate(run(raised(20.0)), rates(1.5)), "learning_rate_jump") is None


def test_optimizers_that_take_turns_have_rates_that_alternate() -> None:
    """A discriminator with four times the generator's rate is no jump at every second step."""
    alternating = np.where(np.arange(STEPS) % 2 == 0, 1e-4, 4e-4)
    noisy = 1 + np.random.default_rng(0).exponential(size=STEPS)
    assert find_condition(with_rate(run(noisy), alternating), "learning_rate_jump") is None
    assert find_condition(with_turns(with_rate(run(noisy), alternating)), "learning_rate_jump") is None


def test_a_gradient_that_grows_while_the_rate_decays_is_ordinary() -> None:
    """Under weight decay the gradient norm grows towards the end of the schedule (Defazio 2025): no condition."""
    decay = np.linspace(1.0, 0.001, STEPS)
    block = with_rate(run(falling(STEPS, half_life=200), gradient=(1 / np.sqrt(decay))[:, None]), 0.01 * decay)
    diagnosis = diagnose_in_pieces(block)
    conditions = {"learning_rate_jump", "loss_spike", "nonfinite_loss", "adversary_dominates"}
    assert not conditions & {finding.detector for finding in diagnosis.findings}
    assert diagnosis.causes == []
