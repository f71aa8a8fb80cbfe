"""A small adversarial training, recorded through the SDK: one discriminator wins, another is held in balance."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from benchmarks.corpus.foreign.recorder import read_journal
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

import gradmedic
from gradmedic_diagnosis import Diagnostician, UpdatedDiagnosis

ROUNDS = 260
BATCH = 64


def network(inputs: int, outputs: int) -> nn.Module:
    """Return a small perceptron."""
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


def train(folder: Path, *, critic_rate: float, distance: float) -> UpdatedDiagnosis:
    """Train a generator of points against a discriminator, each with a log of its own loss, and diagnose the run."""
    torch.manual_seed(0)
    generator, critic = network(2, 2), network(2, 1)
    of_generator = torch.optim.Adam(generator.parameters(), lr=1e-4)
    of_critic = torch.optim.Adam(critic.parameters(), lr=critic_rate)
    ones, zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = gradmedic.init(mode="offline", dir=folder, silent=True, name="gan", project="programs", log_freq=1)
        run.watch({"generator": generator, "critic": critic}, [of_generator, of_critic])
        for _ in range(ROUNDS):
            real = torch.randn(BATCH, 2) * 0.1 + distance
            of_critic.zero_grad()
            loss = bce(critic(real), ones) + bce(critic(generator(torch.randn(BATCH, 2)).detach()), zeros)
            loss.backward()  # type: ignore[no-untyped-call]
            of_critic.step()
            run.log(loss=loss)
            of_generator.zero_grad()
            loss = bce(critic(generator(torch.randn(BATCH, 2))), ones)
            loss.backward()  # type: ignore[no-untyped-call]
            of_generator.step()
            run.log(loss=loss)
        run.finish(timeout=60)
    description, block = read_journal(folder, run.id)
    return Diagnostician(description.layers, description.training, framework=description.framework).update(block)


def test_a_discriminator_that_wins_is_named(tmp_path: Path) -> None:
    """Real points are far from the generated ones, and the discriminator is quick: it is certain, and its loss zero."""
    diagnosis = train(tmp_path, critic_rate=0.01, distance=4.0)
    cause = next(cause for cause in diagnosis.causes if cause.cause == "adversary_dominates")
    assert cause.evidence["loss_of_winner"] < 0.05 * 2 * math.log(2)
    assert cause.evidence["loss_of_other"] > 1.5 * math.log(2)
    assert diagnosis.level in ("attention", "critical")


@pytest.mark.parametrize("critic_rate", [1e-4, 1e-3])
def test_a_game_that_goes_on_is_silent(tmp_path: Path, critic_rate: float) -> None:
    """Real points lie among the generated ones: neither side wins."""
    diagnosis = train(tmp_path, critic_rate=critic_rate, distance=0.0)
    assert not [finding for finding in diagnosis.findings if finding.detector == "adversary_dominates"]
