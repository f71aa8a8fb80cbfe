"""How the gradient travels back through the time steps of recurrent modules."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import arrays
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence

from gradmedic.protocol.probes import name_metric
from gradmedic.torch.probes.time_flow import MOST_EXAMPLES, MOST_TIME_STEPS, fit_factor, measure_norms_back

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")

FACTOR = name_metric("time_gradient_factor", "cell")
LENGTH = name_metric("time_steps", "cell")


class Reader(nn.Module):
    """Reads a sequence and gives out one number."""

    def __init__(self, cell: nn.Module, width: int = 5) -> None:
        super().__init__()
        self.cell = cell
        self.head = nn.Linear(width, 1)

    def forward(self, x: Any) -> Tensor:
        """Read the sequence."""
        output: Tensor = self.head(self.cell(x)[1][0][-1])
        return output


class Loop(nn.Module):
    """Calls a cell once per time step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell: Any = cell
        self.head = nn.Linear(5, 1)
        self.states: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        """Read a sequence `[time, example, feature]`."""
        state: Any = None
        self.states = []
        for row in x:
            state = self.cell(row, state)
            for tensor in state if isinstance(state, tuple) else (state,):
                tensor.retain_grad()
            self.states.append(state)
        output: Tensor = self.head(state[0] if isinstance(state, tuple) else state)
        return output


def probe(model: nn.Module, *inputs: Any, steps: int = 1) -> dict[str, float]:
    """Train, and return the probes of the last step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        for _ in range(steps):
            optimizer.zero_grad()
            sum(model(x).square().sum() for x in inputs).backward()
            optimizer.step()
            probes = dict(recording.log().probes)
    return probes


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_norms_are_those_of_autograd_through_the_module(kind: Any, options: dict[str, Any]) -> None:
    """The gradient at each time step is that of the module itself, with the same gradient at the last output."""
    module = kind(3, 5, **options)
    x = torch.randn(12, 4, 3, requires_grad=True)
    seed = torch.cos(torch.arange(1.0, 6.0)).expand(4, 5)
    (gradient,) = torch.autograd.grad(module(x)[0][-1, :, :5], x, seed)
    expected = np.linalg.norm(gradient.double().numpy().reshape(12, -1), axis=1)
    np.testing.assert_allclose(measure_norms_back(module, x.detach()).numpy(), expected, rtol=1e-5)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_factor_is_the_slope_of_the_logarithm() -> None:
    """A geometric decline has its own factor, also where most of it is below what float32 holds."""
    for factor in (0.5, 0.99, 1.2):
        norms = factor ** torch.arange(60.0, -1, -1)
        assert float(fit_factor(norms.double())) == pytest.approx(factor)
    norms = torch.cat([torch.zeros(40), 0.1 ** torch.arange(25.0, -1, -1)])
    assert float(fit_factor(norms.double())) == pytest.approx(0.1, rel=1e-3)
    assert float(fit_factor(torch.tensor([0.0, 0.0, 1.0]))) == 0.0
    assert np.isnan(float(fit_factor(torch.zeros(4))))
    assert np.isnan(float(fit_factor(torch.tensor([1.0, float("nan"), 1.0]))))


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_module_whose_input_needs_no_gradient_is_measured(batch_first: bool) -> None:
    """A plain network with the recurrent matrix 0.5 I and no activation loses half of the gradient per time step."""
    cell: Any = nn.RNN(3, 5, nonlinearity="relu", batch_first=batch_first)
    with torch.no_grad():
        cell.weight_hh_l0.copy_(0.5 * torch.eye(5))
        cell.weight_ih_l0.abs_()
        cell.bias_hh_l0.fill_(1.0)
    x = torch.rand(20, 30, 3)
    probes = probe(Reader(cell), x)
    assert probes[FACTOR] == pytest.approx(0.5, rel=0.02)
    assert probes[LENGTH] == (30 if batch_first else 20)


def test_only_a_part_of_a_long_batch_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 examples with 300 time steps, 8 examples and 256 time steps are computed; the length is known."""
    shapes = []

    def record(module: Any, sequence: Tensor) -> Tensor:
        shapes.append(tuple(sequence.shape))
        return measure_norms_back(module, sequence)

    monkeypatch.setattr("gradmedic.torch.probes.time_flow.measure_norms_back", record)
    probes = probe(Reader(nn.GRU(3, 5)), torch.randn(300, 20, 3))
    assert shapes == [(MOST_TIME_STEPS, MOST_EXAMPLES, 3)]
    assert probes[LENGTH] == 300


def test_packed_sequences_are_measured_without_padding() -> None:
    """Of a packed batch, the longest examples count up to the length that they share."""
    cell = nn.LSTM(3, 5)
    sequences = [torch.randn(length, 3) for length in (30, 25, 20, 3)]
    probes = probe(Reader(cell), pack_sequence(sequences[:3]))
    reference = float(fit_factor(measure_norms_back(cell, torch.stack([each[:20] for each in sequences[:3]], dim=1))))
    assert probes[FACTOR] == pytest.approx(reference, rel=0.05)  # a step of the optimizer lies between them
    assert probes[LENGTH] == 20


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_in_a_loop_is_measured_at_its_states(kind: Any) -> None:
    """The factor is fitted to the gradients that autograd gives at the states; a second sequence does not count."""
    model = Loop(kind(3, 5))
    first = torch.randn(15, 4, 3)
    probes = probe(model, first, torch.randn(9, 4, 3) * 100)
    model.zero_grad()
    torch.manual_seed(0)
    fresh = Loop(kind(3, 5))
    fresh.load_state_dict(model.state_dict())
    fresh(first).square().sum().backward()
    norms = []
    for state in fresh.states:
        gradients = [t.grad for t in (state if isinstance(state, tuple) else (state,)) if t.grad is not None]
        norms.append(torch.cat(gradients).double().norm())
    assert probes[FACTOR] == pytest.approx(float(fit_factor(torch.stack(norms))), rel=0.2)
    assert probes[LENGTH] == 15


def test_short_sequences_and_parametrized_weights_are_left_out() -> None:
    """Three time steps show no decline; weights that are computed are not computed once more."""
    assert FACTOR not in probe(Reader(nn.LSTM(3, 5)), torch.randn(3, 4, 3))
    cell = weight_norm(nn.LSTM(3, 5), "weight_hh_l0")
    assert FACTOR not in probe(Reader(cell), torch.randn(12, 4, 3))


def test_half_precision_is_computed_in_float32() -> None:
    """Under autocast to bfloat16, the factor is that of float32."""
    cell = nn.LSTM(3, 5)
    x = torch.randn(40, 4, 3)
    reference = probe(Reader(copy.deepcopy(cell)), x)
    # Some processors lack what oneDNN needs for a recurrence in bfloat16.
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None), torch.autocast("cpu", dtype=torch.bfloat16):
        assert probe(Reader(cell), x)[FACTOR] == pytest.approx(reference[FACTOR], rel=1e-6)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_module_is_measured(use_reentrant: bool) -> None:
    """The computation of the probe does not count as a part of what is checkpointed."""
    cell = nn.LSTM(3, 5)
    x = torch.randn(12, 4, 3, requires_grad=True)
    reference = float(fit_factor(measure_norms_back(cell, x.detach())))
    model = nn.ModuleDict({"cell": cell})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        torch.utils.checkpoint.checkpoint(cell, x, use_reentrant=use_reentrant)[0].sum().backward()
        optimizer.step()
        assert recording.log().probes[FACTOR] == pytest.approx(reference)
    assert x.grad is not None


def test_training_is_the_same_with_dropout_between_layers() -> None:
    """Weights and random numbers are those of a training that is not watched."""
    results = []
    for is_watched in (False, True):
        torch.manual_seed(1)
        model = Reader(nn.LSTM(3, 5, num_layers=2, dropout=0.5))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        recording = Recording(model, optimizer) if is_watched else None
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(12, 4, 3)).square().sum().backward()
            optimizer.step()
            if recording is not None:
                recording.log()
        if recording is not None:
            recording.watch.close()
        assert not any(module._forward_hooks for module in model.modules())
        results.append((arrays(model), torch.rand(2)))
    for name, array in results[0][0].items():
        np.testing.assert_array_equal(array, results[1][0][name])
    assert torch.equal(results[0][1], results[1][1])
