"""Weights that are initialized again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from gradmedic.torch.remedies import NotApplicable
from gradmedic.torch.remedies.modules.parameters import SCHEMES, make_generator


def start(scheme: str) -> Any:
    """Return the remedy."""
    return remedy("reinitialize", scheme=scheme)


@pytest.mark.parametrize(
    ("scheme", "deviation"),
    [("kaiming_normal", (2 / 300) ** 0.5), ("lecun_normal", (1 / 300) ** 0.5), ("xavier_uniform", (2 / 500) ** 0.5)],
)
def test_schemes_have_their_variance(scheme: str, deviation: float) -> None:
    """A layer from 300 to 200 units gets weights of the variance that the scheme's paper gives, and no biases."""
    model: Any = nn.Sequential(nn.Linear(300, 200))
    nn.init.constant_(model[0].weight, 5.0)
    apply(model, None, start(scheme))
    assert float(model[0].weight.detach().std()) == pytest.approx(deviation, rel=0.02)
    assert float(model[0].weight.detach().mean()) == pytest.approx(0, abs=deviation / 50)
    assert not model[0].bias.any()


def test_orthogonal_matrices_are_orthogonal_gate_by_gate() -> None:
    """Each gate of a recurrent cell, and each of queries, keys and values, is an orthogonal matrix of its own."""
    model = nn.ModuleDict({"lstm": nn.LSTM(6, 6), "attention": nn.MultiheadAttention(6, 2), "cell": nn.GRUCell(6, 6)})
    apply(model, None, start("orthogonal"))
    pieces = {"lstm.weight_hh_l0": 4, "lstm.weight_ih_l0": 4, "attention.in_proj_weight": 3, "cell.weight_hh": 3}
    named = dict(model.named_parameters())
    for name, count in pieces.items():
        matrices = named[name].detach().chunk(count)
        for matrix in matrices:
            torch.testing.assert_close(matrix @ matrix.T, torch.eye(6), rtol=1e-4, atol=1e-5)
        assert not torch.equal(matrices[0], matrices[1])


def test_numbers_depend_on_the_seed_and_the_name_alone() -> None:
    """The same seed gives the same weights in any model; another seed gives others."""
    small, other = perceptron(), perceptron()
    large: Any = nn.Sequential(*perceptron(), nn.Linear(2, 2))
    for model, seed in ((small, 1), (large, 1), (other, 2)):
        apply(model, None, start("xavier_uniform"), seed=seed)
    assert torch.equal(small[0].weight, large[0].weight)
    assert not torch.equal(small[0].weight, other[0].weight)
    assert not torch.equal(small[2].weight, small[4].weight)
    drawn = torch.empty(5, 6)
    nn.init.xavier_uniform_(drawn, generator=make_generator(1, "0.weight"))
    assert torch.equal(small[0].weight, drawn)


def test_parameters_stay_the_same_objects() -> None:
    """The optimizer's groups hold the new weights, and the global random generator is unchanged."""
    model = perceptron()
    optimizer = sgd(model)
    held = list(optimizer.param_groups[0]["params"])
    state = torch.get_rng_state()
    apply(model, optimizer, start("kaiming_normal"))
    assert torch.equal(state, torch.get_rng_state())
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
    before = model[0].weight.detach().clone()
    step(model, optimizer, lambda m: m(batch()).square().sum())
    assert not torch.equal(before, model[0].weight)


def test_embeddings_and_tied_weights_stay() -> None:
    """Embeddings, output layers that share their weights, and normalizations keep their weights."""
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "norm": nn.LayerNorm(4), "out": nn.Linear(4, 9, bias=False)})
    model["out"].weight = model["embed"].weight
    model["hidden"] = nn.Linear(4, 4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    applied = apply(model, None, start("orthogonal"))
    changed = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert changed == {"hidden.weight", "hidden.bias"}
    assert applied.places["reinitialize"] == ["hidden"]


def test_a_layer_that_two_names_share_is_drawn_once() -> None:
    """A module or weight under two names is initialized under the first."""
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(6, 6))
    model[3].weight = layer.weight
    applied = apply(model, None, start("orthogonal"))
    drawn = torch.empty(6, 6)
    nn.init.orthogonal_(drawn, generator=make_generator(0, "0.weight"))
    assert torch.equal(layer.weight, drawn)
    assert applied.places["reinitialize"] == ["0"]


def stepped() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model that was trained already."""
    model = perceptron()
    optimizer = sgd(model)
    step(model, optimizer, lambda m: m(batch()).sum())
    return model, optimizer


def normalized(*, by_batch: bool) -> Any:
    """Return a model whose normalization shows that it was trained."""
    model: Any = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4) if by_batch else nn.LayerNorm(4), nn.Linear(4, 2))
    if by_batch:
        model(batch())
    else:
        with torch.no_grad():
            model[1].weight[0] = 1.5
    return model


def from_hub() -> Any:
    """Return a model as `transformers` loads one."""
    model = perceptron()
    model.name_or_path = "bert-base-uncased"
    return model


def partly_frozen() -> Any:
    """Return a model of which a part is frozen."""
    model = perceptron()
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: normalized(by_batch=True), "has seen batches"),
        (lambda: normalized(by_batch=False), "has learned scales"),
        (from_hub, "bert-base-uncased"),
        (partly_frozen, "some weights are frozen"),
        (lambda: nn.Embedding(4, 3), "no linear, convolutional, recurrent or attention module"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)), "built at the first call only"),
        (lambda: torch.jit.script(nn.Linear(6, 2)), "scripted"),
    ],
    ids=["batches", "scales", "hub", "frozen", "embedding", "lazy", "scripted"],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Lazy modules:UserWarning")
def test_models_that_cannot_be_reinitialized_are_refused_with_a_reason(
    make: Callable[[], nn.Module], reason: str
) -> None:
    """Pretrained, frozen, lazy and scripted models, and models without matrices, are refused at watch()."""
    model = make()
    with pytest.raises(NotApplicable, match=reason):
        apply(model, torch.optim.SGD(model.parameters(), lr=0.1), start("orthogonal"))


def test_initial_states_and_random_scales_are_no_sign_of_training() -> None:
    """An optimizer's state from before any step, and random scales of batch normalization, are no sign of training."""
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
    nn.init.normal_(model[1].weight, 1.0, 0.02)  # type: ignore[arg-type]
    optimizer = torch.optim.Adagrad(model.parameters())
    assert apply(model, optimizer, remedy("reinitialize", scheme="orthogonal")).places
    stepped = perceptron()
    optimizer = torch.optim.Adagrad(stepped.parameters())
    stepped(batch()).sum().backward()
    optimizer.step()
    with pytest.raises(NotApplicable, match="has made steps already"):
        apply(stepped, optimizer, remedy("reinitialize", scheme="orthogonal"))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_a_recurrent_weight_is_computed_from_stays() -> None:
    """Parameters from which a recurrent weight is computed stay; the other weights are drawn."""
    model = nn.Sequential(weight_norm(nn.RNN(3, 4), "weight_hh_l0"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    apply(model, sgd(model), remedy("reinitialize", scheme="orthogonal"))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"0.weight_ih_l0", "0.bias_ih_l0", "0.bias_hh_l0"}
    with pytest.raises(NotApplicable, match="are computed from others"):
        apply(model, sgd(model), remedy("replace_recurrent_cell", cell="GRU"))


def test_weights_with_momentum_are_not_reinitialized() -> None:
    """An optimizer that has momentum shows that the weights were trained."""
    model, optimizer = stepped()
    with pytest.raises(NotApplicable, match="has made steps already"):
        apply(model, optimizer, start("orthogonal"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_keeps_a_deep_networks_signal(scheme: str) -> None:
    """With each scheme, a deep network of zeros gets weights that pass a signal on."""
    model = perceptron(nn.ReLU(), width=32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    apply(model, None, start(scheme))
    output: Tensor = model(batch(rows=64))
    assert 0.03 < float(output.detach().std()) < 3.0
