"""A discriminator that has won."""

from __future__ import annotations

import math

import numpy as np
from tests.diagnosis.condition_runs import change, diagnose_in_pieces, find_condition, list_causes, with_turns
from tests.diagnosis.synthetic_run import run

from gradmedic_diagnosis import Block

STEPS = 1000
ODD = np.arange(STEPS) % 2 == 1


def turns(discriminator: np.ndarray, generator: np.ndarray) -> Block:
    """Return a run whose losses take turns, with a little noise."""
    noise = 1 + 0.1 * np.random.default_rng(0).normal(size=STEPS)
    return with_turns(run(np.where(ODD, generator, discriminator) * noise))


def test_a_winner_is_found() -> None:
    """The discriminator's loss falls to a hundredth and the generator's rises to six: a warning and the first cause."""
    progress = np.clip(np.arange(STEPS) / 300, 0, 1)
    block = turns(math.log(2) * 0.01**progress, math.log(2) + 5 * progress)
    finding = find_condition(block, "adversary_dominates")
    assert finding is not None
    assert finding.severity == "warning"
    assert finding.evidence["loss_of_winner"] < 0.02
    assert finding.evidence["loss_of_other"] > 4
    assert list_causes(block) == ["adversary_dominates"]
    assert diagnose_in_pieces(block).level == "attention"


def test_a_game_in_balance_is_silent() -> None:
    """Losses near their start, a generator that is behind, or one that is ahead for a while, are no winner."""
    start = np.full(STEPS, math.log(2))
    ahead = (np.arange(STEPS) % 200 < 90) & (np.arange(STEPS) > 100)
    assert find_condition(turns(start, start), "adversary_dominates") is None
    assert find_condition(turns(0.5 * start, 3 * start), "adversary_dominates") is None
    lead = turns(np.where(ahead, 0.01, 0.6), np.where(ahead, 5.0, 0.8))
    assert find_condition(lead, "adversary_dominates") is None


def test_two_losses_that_both_fall_are_silent() -> None:
    """A model and its head with an optimizer each, both near zero, are two trainings that work."""
    falling = math.log(2) * 0.5 ** (np.arange(STEPS) / 50)
    assert find_condition(turns(falling, falling), "adversary_dominates") is None


def test_one_optimizer_has_no_adversary() -> None:
    """The same losses of one optimizer are noise."""
    block = turns(np.full(STEPS, 0.001), np.full(STEPS, 9.0))
    alone = change(block, present=np.ones_like(block.present))
    assert find_condition(alone, "adversary_dominates") is None


def test_a_loser_that_catches_up_resolves_the_finding() -> None:
    """Once the losses are in balance again, the finding is resolved."""
    steps = np.arange(STEPS)
    won = (steps > 50) & (steps < 600)
    block = turns(np.where(won, 0.005, math.log(2)), np.where(won, 6.0, math.log(2)))
    finding = find_condition(block, "adversary_dominates")
    assert finding is not None
    assert finding.resolved_step is not None
    assert 600 <= finding.resolved_step <= 620
    assert diagnose_in_pieces(block).causes == []
