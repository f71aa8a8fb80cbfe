"""Recurrent modules with another cell, compared with torch's own."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, remedy, sgd, step
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gradmedic.torch.remedies import NotApplicable

CELLS = ("GRU", "LSTM")


def to(cell: str) -> Any:
    """Return the remedy."""
    return remedy("replace_recurrent_cell", cell=cell)


def sequence(seed: int = 1) -> Tensor:
    """Return inputs `[batch, time, feature]`."""
    return torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(seed))


def rnn(**settings: Any) -> nn.RNN:
    """Return a plain recurrent module, always the same."""
    torch.manual_seed(3)
    return nn.RNN(3, 5, batch_first=True, **settings)


def reference_of(model: nn.RNN, kind: Any, **settings: Any) -> Any:
    """Return torch's module with the weights of one that was changed."""
    reference = kind(3, 5, batch_first=True, **settings)
    reference.load_state_dict(model.state_dict())
    return reference


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2}, {"bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_it_computes_as_torchs_own(cell: str, settings: dict[str, Any]) -> None:
    """Outputs, last states and gradients are those of nn.GRU and nn.LSTM; call and names are those of nn.RNN."""
    model = rnn(**settings)
    names, held = list(model.state_dict()), list(model.parameters())
    optimizer = sgd(model)
    applied = apply(model, optimizer, to(cell))
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(held, optimizer.param_groups[0]["params"], strict=True))
    reference = reference_of(model, getattr(nn, cell), **settings)
    output, hidden = model(sequence())
    expected, state = reference(sequence())
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(hidden, state[0] if cell == "LSTM" else state)
    output.sum().backward()
    expected.sum().backward()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert applied.places["replace_recurrent_cell"] == [""]


def test_weights_are_drawn_as_torch_draws_them() -> None:
    """Weights are uniform within the inverse root of the width, and the global generator is unchanged."""
    model = rnn()
    state = torch.get_rng_state()
    apply(model, None, to("LSTM"))
    assert torch.equal(state, torch.get_rng_state())
    drawn = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert float(drawn.abs().max()) <= 5**-0.5
    assert float(drawn.std()) == pytest.approx(5**-0.5 / 3**0.5, rel=0.1)


@pytest.mark.parametrize(
    "carry",
    [lambda h: h, lambda h: h.detach(), lambda h: h.data, lambda h: h.detach()[:]],
    ids=["as it is", "detached", "data", "a view"],
)
@pytest.mark.parametrize("is_cell", [False, True], ids=["module", "cell"])
def test_a_state_of_the_last_call_has_its_cell_state(carry: Callable[[Tensor], Tensor], is_cell: bool) -> None:
    """A hidden state that is passed to the next call, also detached, is used with its cell state."""
    torch.manual_seed(3)
    model: Any = nn.RNNCell(3, 5) if is_cell else nn.RNN(3, 5, batch_first=True)
    apply(model, None, to("LSTM"))
    reference: Any = nn.LSTMCell(3, 5) if is_cell else nn.LSTM(3, 5, batch_first=True)
    reference.load_state_dict(model.state_dict())
    parts = [sequence(seed)[:, 0] if is_cell else sequence(seed) for seed in (1, 2, 3)]
    state: Any = None
    hidden = None
    for part in parts:
        answer = model(part, hidden)
        output, hidden = (answer, answer) if is_cell else answer
        state = reference(part, state)
        expected, state = (state[0], state) if is_cell else state
        torch.testing.assert_close(output, expected)
        hidden = carry(hidden)


def test_a_decoder_begins_with_its_encoders_state() -> None:
    """The state of an encoder, or a layer of it, is used with its cell state in the decoder."""

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.encoder, self.decoder = nn.RNN(3, 5, num_layers=2, batch_first=True), nn.RNNCell(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            _, state = self.encoder(x)
            out: Tensor = self.decoder(x[:, 0], state[-1])
            return out

    model = Translator()
    apply(model, None, to("LSTM"))
    encoder, decoder = nn.LSTM(3, 5, num_layers=2, batch_first=True), nn.LSTMCell(3, 5)
    encoder.load_state_dict(model.encoder.state_dict())
    decoder.load_state_dict(model.decoder.state_dict())
    _, (h, c) = encoder(sequence())
    torch.testing.assert_close(model(sequence()), decoder(sequence()[:, 0], (h[-1], c[-1]))[0])


def test_a_changed_state_ends_the_trial() -> None:
    """A hidden state that the script changes ends the trial; zeros and states of other modules do not."""
    model = rnn()
    optimizer = sgd(model)
    applied = apply(model, optimizer, to("LSTM"))
    encode = nn.Linear(3, 5)
    for begin in (torch.zeros(1, 4, 5), encode(sequence()[:, 0])[None], None):
        _, hidden = model(sequence(), begin)
        assert applied.reason_to_end() is None
    model(sequence(), 0.5 * hidden)
    assert "the script changes the hidden state between calls" in str(applied.reason_to_end())
    other = rnn()
    applied = apply(other, sgd(other), to("LSTM"))
    _, hidden = other(sequence())
    other(sequence(), hidden.detach() * torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None])
    assert "the script changes the hidden state between calls" in str(applied.reason_to_end())


@pytest.mark.parametrize("is_cell", [False, True], ids=["module", "cell"])
def test_dropout_on_a_state_ends_the_trial(is_cell: bool) -> None:
    """Dropout on a hidden state, or passing on the last output, ends the trial."""
    torch.manual_seed(3)
    model: Any = nn.RNNCell(3, 5) if is_cell else nn.RNN(3, 5, batch_first=True)
    applied = apply(model, sgd(model), to("LSTM"))
    other: Any = nn.RNNCell(3, 5)
    other_applied = apply(other, sgd(other), to("LSTM"))
    for _ in range(3):
        other(sequence()[:, 0])
    hidden = None
    for _ in range(3):
        if is_cell:
            hidden = functional.dropout(model(sequence()[:, 0], hidden), 0.5)
        else:
            hidden = model(sequence(), hidden)[0][:, -1:].transpose(0, 1)
    assert "the script changes the hidden state between calls" in str(applied.reason_to_end())
    assert other_applied.reason_to_end() is None


def test_a_state_that_is_reset_in_place_begins_a_sequence() -> None:
    """A hidden state that is set to zero in place begins a sequence; one that is halved in place ends the trial."""
    model = rnn()
    applied = apply(model, sgd(model), to("LSTM"))
    _, hidden = model(sequence())
    hidden = hidden.detach().zero_()
    torch.testing.assert_close(model(sequence(), hidden)[0], model(sequence())[0])
    assert applied.reason_to_end() is None
    _, hidden = model(sequence())
    model(sequence(), hidden.detach().mul_(0.5))
    assert "the script changes the hidden state between calls" in str(applied.reason_to_end())


def test_packed_sequences() -> None:
    """Packed sequences of several lengths are computed as in nn.LSTM."""
    model = rnn()
    apply(model, None, to("LSTM"))
    reference = reference_of(model, nn.LSTM)
    packed = pack_padded_sequence(sequence(), torch.tensor([7, 5, 3, 2]), batch_first=True)
    torch.testing.assert_close(pad_packed_sequence(model(packed)[0])[0], pad_packed_sequence(reference(packed)[0])[0])


@pytest.mark.parametrize("cell", CELLS)
def test_copies_and_files(cell: str) -> None:
    """A copy of the model, and a model that was saved and loaded, computes the same."""
    model = nn.Sequential(rnn())
    apply(model, None, to(cell))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other(sequence())[0], model(sequence())[0])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop"])
def test_the_optimizer_goes_on(cell: str, name: str) -> None:
    """The script's optimizer trains the new weights."""
    model = rnn()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01)
    apply(model, optimizer, to(cell))
    target = sequence(2).sum(-1, keepdim=True).expand(4, 7, 5)
    losses = [step(model, optimizer, lambda m: (m(sequence())[0] - target).square().mean()) for _ in range(30)]
    assert losses[-1] < losses[0]


def stepped() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a module whose optimizer has moments in the old shape."""
    model = rnn()
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer, lambda m: m(sequence())[0].sum())
    return model, optimizer


def test_cells_that_cannot_be_replaced_are_refused_with_a_reason() -> None:
    """Gated cells, moments in the old shape, and shared weights are refused."""
    with pytest.raises(NotApplicable, match="no plain recurrent module"):
        apply(model := nn.LSTM(3, 5), sgd(model), to("GRU"))
    with pytest.raises(NotApplicable, match="the optimizer has moments"):
        apply(*stepped(), to("GRU"))
    pair = nn.ModuleList([rnn(), rnn()])
    pair[1].weight_hh_l0 = pair[0].weight_hh_l0
    with pytest.raises(NotApplicable, match="shares its weights"):
        apply(pair, sgd(pair), to("GRU"))
    distributed = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(distributed)
    distributed.module = rnn()
    with pytest.raises(NotApplicable, match="DistributedDataParallel"):
        apply(distributed, sgd(distributed), to("GRU"))
