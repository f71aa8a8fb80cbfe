"""A discriminator that has won."""

from __future__ import annotations

import math

import numpy as np
from tests.diagnosis.condition_runs import change, diagnose_in_pieces, find_condition, list_causes, with_turns
from tests.diagnosis.synthetic_run import run

from gradmedic.protocol.diagnosis import Finding
from gradmedic.protocol.runs import Layer, Objective, Optimizer, Training
from gradmedic_diagnosis import Block, Diagnostician

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


def find_in_gradients(generator: np.ndarray, critic: np.ndarray, loss: np.ndarray, *optimizers: str) -> Finding | None:
    """Return the finding of a run with one logged loss, from the gradient of each network `[step]`."""
    gradients = np.stack([generator, generator, critic, critic], axis=1)
    block = run(loss, gradient=gradients)
    names = ("generator.0.weight", "generator.2.weight", "critic.0.weight", "critic.2.weight")
    rows = [Layer(name=name, kind="Linear", shape=[8, 8], numel=64) for name in names]
    training = Training(optimizers=[Optimizer(name=name) for name in optimizers], objective=Objective(kind="none"))
    findings = Diagnostician(rows, training).update(block).findings
    return next((finding for finding in findings if finding.detector == "adversary_dominates"), None)


def test_gradients_of_both_networks_that_die_are_a_winner() -> None:
    """Of one logged loss, gradients that fall by four decades show the end: of both networks, or of one as it rises."""
    steps = np.arange(300)
    falling, noise = 10.0 ** (-4 * np.clip(steps / 100, 0, 1)), 1 + 0.3 * np.sin(steps)
    loss = np.where(steps % 2, 0.7, -0.7)
    finding = find_in_gradients(falling, falling, loss, "SGD", "Adam")
    assert finding is not None
    assert finding.evidence["silent_networks"] == 2
    assert 3.5 < finding.evidence["gradient_decades_lost"] < 4.5
    assert find_in_gradients(noise, noise, loss, "SGD", "Adam") is None
    assert find_in_gradients(falling, noise, loss, "SGD", "Adam") is None
    assert find_in_gradients(falling, falling, loss, "Adam") is None
    assert find_in_gradients(noise, falling, 0.7 + steps / 50, "SGD", "Adam") is not None
