"""A second moment of Adam that lags behind, and the loss spikes that follow from it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.diagnosis.probed_run import diagnose_in_pieces, with_probes
from tests.diagnosis.recorded_training import diagnose_training
from tests.diagnosis.synthetic_run import falling, layers, noisy, run
from tests.diagnosis.whole_run import STEPS, find_finding
from torch import nn

import gradmedic
from gradmedic.protocol.diagnosis import Finding
from gradmedic.protocol.probes import name_metric
from gradmedic.protocol.runs import Optimizer, Training
from gradmedic.torch.probes import schedule
from gradmedic_diagnosis import Block, Diagnostician

ADAM = Training(optimizers=[Optimizer(name="AdamW", beta2=0.999)])


def spiking(
    ratios: Mapping[int, float], *, spikes: tuple[int, ...] = (120, 180, 240), loss: NDArray[np.float64] | None = None
) -> Block:
    """Return a run whose loss triples for three steps at each spike, with these ratios of every layer by step."""
    losses = (noisy(2.3, STEPS) if loss is None else loss).copy()
    for spike in spikes:
        losses[spike : spike + 3] *= 3.0
    every = {step: ratios.get(step, 1.0) for step in range(0, STEPS, 4)} | dict(ratios)
    return with_probes(run(losses), {name_metric("second_moment_ratio", f"{i}.weight"): every for i in range(4)})


def find(block: Block) -> Finding | None:
    """Return the finding of a run."""
    return find_finding(Diagnostician(layers(), ADAM).update(block), "stale_second_moment")


def test_an_underestimate_before_each_spike_is_found() -> None:
    """A ratio of 4 a few steps before the spikes of a loss that does not fall is a warning, and a cause."""
    diagnosis = Diagnostician(layers(), ADAM).update(spiking({118: 4.0, 176: 4.0, 236: 4.0}))
    assert (finding := find_finding(diagnosis, "stale_second_moment")) is not None
    assert (finding.first_step, finding.severity) == (120, "warning")
    assert finding.evidence == {"spikes": 3, "spikes_after_it": 3, "second_moment_ratio": 4.0, "beta2": 0.999}
    assert "below the gradient" in finding.explanation
    assert "stale_second_moment" in [cause.cause for cause in diagnosis.causes]


def test_a_long_overestimate_before_each_spike_is_found() -> None:
    """A ratio of 0.05 for thirty steps before the spikes: updates were too small until the moment had decayed."""
    low = {step: 0.05 for spike in (120, 180, 240) for step in range(spike - 32, spike + 1, 4)}
    finding = find(spiking(low))
    assert finding is not None
    assert finding.evidence["second_moment_ratio"] == pytest.approx(0.05)
    assert "above the gradient" in finding.explanation


def test_spikes_that_recover_are_a_note() -> None:
    """With the usual beta2 of 0.999, a run that learns gets over such spikes."""
    finding = find(spiking({118: 4.0, 176: 4.0, 236: 4.0}, loss=falling(STEPS)))
    assert finding is not None
    assert finding.severity == "note"


def test_other_spikes_and_other_ratios_are_no_finding() -> None:
    """Spikes at an ordinary ratio, a single one, odd ratios long before them, and odd ratios alone are no finding."""
    assert find(spiking({})) is None
    assert find(spiking({118: 4.0})) is None
    assert find(spiking({80: 4.0, 150: 4.0, 210: 4.0})) is None
    assert find(spiking({118: 4.0, 176: 4.0, 236: 4.0}, spikes=())) is None


def test_it_is_resolved_when_the_spikes_end() -> None:
    """Two hundred steps without a spike are enough."""
    ratios = {38: 4.0, 68: 4.0}
    finding = find(spiking(ratios, spikes=(40, 70)))
    assert finding is not None
    assert finding.resolved_step == 72 + 201


def stalled(ratio: float, *, gradient: float = 1.0, loss: NDArray[np.float64] | None = None) -> Block:
    """Return a run with this ratio on all probes but the first, and a gradient that changes after the first step."""
    gradients = np.where(np.arange(STEPS) == 0, 1.0, gradient)[:, None]
    ratios = {step: ratio if step else 1.0 for step in range(0, STEPS, 4)}
    block = run(noisy(2.3, STEPS) if loss is None else loss, gradient=gradients)
    return with_probes(block, {name_metric("second_moment_ratio", f"{i}.weight"): ratios for i in range(4)})


def test_the_memory_of_a_huge_gradient_stalls_a_training() -> None:
    """A ratio of 0.0001 with a gradient as at the start and a stuck loss is a fault, with the time to forget it."""
    diagnosis = Diagnostician(layers(), ADAM).update(stalled(1e-4))
    assert (finding := find_finding(diagnosis, "stale_second_moment")) is not None
    assert (finding.severity, finding.resolved_step, diagnosis.level) == ("warning", None, "attention")
    assert finding.evidence["share_of_first_gradient"] == pytest.approx(1.0)
    assert finding.evidence["half_life_steps"] == pytest.approx(693, abs=1)
    assert diagnosis.causes[0].cause == "stale_second_moment"
    assert find(stalled(1e-4, gradient=0.01)) is None  # the gradient fell with the loss
    assert find(stalled(0.1)) is None
    assert find(stalled(1e-4, loss=falling(STEPS))) is None


def test_a_large_epsilon_is_no_stale_second_moment() -> None:
    """Where epsilon is above the root of the second moment, a small ratio shows epsilon alone."""
    spikes = spiking({step: 0.05 for spike in (120, 180, 240) for step in range(spike - 32, spike + 1, 4)})
    for block in (stalled(1e-4), spikes):
        assert find(block) is not None
        steps = range(0, STEPS, 4)
        for share, is_found in ((0.9, False), (0.1, True)):
            shares = {name_metric("epsilon_share", f"{i}.weight"): dict.fromkeys(steps, share) for i in range(4)}
            assert (find(with_probes(block, shares)) is not None) == is_found


def test_a_gradient_of_exactly_zero_is_no_stale_second_moment() -> None:
    """A ratio of 0 says that the gradient is zero, as before an operation without a gradient."""
    assert find(stalled(1e-4)) is not None
    assert find(stalled(0.0)) is None


def test_the_finding_does_not_depend_on_the_cuts() -> None:
    """Cut into blocks, and through bytes after each, a run has the same finding."""
    for block in (spiking({118: 4.0, 176: 4.0, 236: 4.0}), stalled(1e-4)):
        pieces = diagnose_in_pieces(block, layers(), ADAM)
        assert find_finding(pieces, "stale_second_moment") == find(block)  # type: ignore[arg-type]


def test_a_real_training_with_spikes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a full batch, the gradient decays faster than Adam's moment; when that has decayed, the loss jumps."""
    monkeypatch.setattr(schedule, "SHARE", 1e9)  # whatever probes cost here

    def train(recorded: gradmedic.Run) -> None:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        inputs = torch.randn(64, 4)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        recorded.watch(model, optimizer)
        for _ in range(2500):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True).sin())
            torch.autograd.backward(loss)
            optimizer.step()
            recorded.log(loss=loss)

    diagnosis = diagnose_training(train)
    assert (finding := find_finding(diagnosis, "stale_second_moment")) is not None
    assert finding.severity == "note"
    assert finding.evidence["second_moment_ratio"] < 0.3
    assert diagnosis.level == "ok"
