"""Which weights in low precision no update changes."""

from __future__ import annotations

import pytest
import torch
from tests.client.torch.recording import Recording
from torch import nn

from gradmedic.protocol.probes import name_metric
from gradmedic.torch.probes import schedule

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")

NAME = name_metric("unchanged_share")


def model_of_ones(dtype: torch.dtype) -> nn.Sequential:
    """Return a model whose weights are all near 1."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 1, bias=False)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    return model


def probe(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> list[float | None]:
    """Train, and return the share of each step."""
    shares = []
    dtype = next(model.parameters()).dtype
    with Recording(model, optimizer) as recording:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.rand(4, 8, dtype=dtype)).mean().backward()
            optimizer.step()
            shares.append(recording.log().probes.get(NAME))
    return shares


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_updates_below_half_a_last_digit_change_nothing(dtype: torch.dtype) -> None:
    """Just below 1, half of the last digit is 2^-9 of bfloat16 and 2^-12 of float16: a rate of 1e-5 is lost."""
    model = model_of_ones(dtype)
    assert probe(model, torch.optim.SGD(model.parameters(), lr=1e-5)) == [1.0, 1.0, 1.0]


def test_updates_that_are_large_enough_change_all() -> None:
    """At a rate of 1e-1, every update changes every weight."""
    model = model_of_ones(torch.bfloat16)
    assert probe(model, torch.optim.SGD(model.parameters(), lr=0.1)) == [0.0, 0.0, 0.0]


def test_weights_of_full_precision_have_no_probe() -> None:
    """Float32 is not measured: a weight that no update changes is rare there, and `starvation` finds it."""
    model = model_of_ones(torch.float32)
    assert probe(model, torch.optim.SGD(model.parameters(), lr=1e-5)) == [None, None, None]


def test_only_weights_with_a_gradient_count() -> None:
    """A weight whose gradient is zero has no reason to change."""
    model = model_of_ones(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        inputs = torch.zeros(4, 8, dtype=torch.bfloat16)
        inputs[:, 0] = 1.0
        model(inputs).mean().backward()
        optimizer.step()
        assert recording.log().probes[NAME] == 0.0


class StochasticRounding(torch.optim.Optimizer):
    """Moves each weight by a whole last digit, one at a time."""

    def __init__(self, parameters: object) -> None:
        super().__init__(parameters, {"lr": 1e-3})  # type: ignore[arg-type]
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Move every fourth weight."""
        del closure
        for parameter in self.param_groups[0]["params"]:
            parameter.view(-1)[self.steps % 4 :: 4] -= 2**-7
        self.steps += 1


def test_what_is_rounded_at_random_changes_from_probe_to_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update changes a quarter of the weights, and four of them change all. Later probes lie that far apart."""
    monkeypatch.setattr(schedule, "SHARE", 1e9)  # whatever probes cost here
    model = model_of_ones(torch.bfloat16)
    shares = [share for share in probe(model, StochasticRounding(model.parameters()), 20) if share is not None]
    assert shares[:3] == [0.75, 0.75, 0.75]
    assert set(shares[3:]) == {0.0}


def test_the_training_stays_the_same() -> None:
    """The weights are bit for bit those of a training that is not watched."""
    weights = []
    for is_watched in (False, True):
        torch.manual_seed(0)
        model = model_of_ones(torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        if is_watched:
            probe(model, optimizer, 8)
        else:
            for _ in range(8):
                optimizer.zero_grad()
                model(torch.rand(4, 8, dtype=torch.bfloat16)).mean().backward()
                optimizer.step()
        weights.append(torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]))
    assert torch.equal(*weights)
