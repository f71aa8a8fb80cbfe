"""The largest logit and the entropy of single calls of attention, against a float64 reference of all their rows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from gradmedic.torch.probes.attention_logits import (
    EXAMPLES,
    FEWEST_ROWS,
    MOST_LOGITS,
    ROWS,
    measure_multi_head,
    measure_scaled_dot_product,
    measure_softmax,
)

pytestmark = pytest.mark.usefixtures("one_thread")

Numbers = NDArray[np.float64]


def summarize(logits: Numbers, scores: Numbers, allowed: Numbers) -> list[float]:
    """Return the largest logit and the lowest entropy of a head, from `[example, head, row, key]`, row by row."""
    largest, entropies = 0.0, []
    for head in range(logits.shape[1]):
        of_head = []
        for example, row in itertools.product(range(logits.shape[0]), range(logits.shape[2])):
            keys = allowed[example, head, row].astype(bool)
            if keys.any():
                largest = max(largest, float(np.abs(logits[example, head, row, keys]).max()))
            if keys.sum() > 1:
                weights = np.exp(scores[example, head, row, keys] - scores[example, head, row, keys].max())
                weights /= weights.sum()
                terms = weights[weights > 0]
                of_head.append(-(terms * np.log(terms)).sum() / math.log(keys.sum()))
        entropies.append(np.mean(of_head) if of_head else 1.0)
    return [largest, float(np.min(entropies))]


def reference(
    query: Tensor, key: Tensor, scale: float, bias: Tensor | None = None, allowed: Tensor | None = None
) -> list[float]:
    """Return what `summarize` returns of queries and keys with as many heads."""
    logits = (query.double() @ key.double().transpose(-2, -1)) * scale
    scores = logits if bias is None else logits + bias.double()
    allowed = torch.ones_like(logits) if allowed is None else allowed.expand(logits.shape)
    return summarize(logits.numpy(), scores.numpy(), allowed.numpy())


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random numbers whose attention is neither even nor one-hot."""
    return (2.0 * torch.randn(*shape)).to(dtype)


CAUSAL = torch.ones(7, 9, dtype=torch.bool).tril()
PADDED = torch.arange(9) < torch.tensor([9, 4, 1])[:, None, None, None]
"""Keys of three examples, of which some are padded."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ({}, None),
        ({"scale": 0.7}, None),
        ({"is_causal": True}, CAUSAL),
        ({"attn_mask": CAUSAL}, CAUSAL),
        ({"attn_mask": PADDED}, PADDED),
        ({"attn_mask": torch.zeros(7, 9).masked_fill(~CAUSAL, -math.inf)}, CAUSAL),
        ({"attn_mask": torch.zeros(7, 9).masked_fill(~CAUSAL, torch.finfo(torch.float16).min)}, CAUSAL),
    ],
    ids=["plain", "scaled", "causal", "boolean", "padded", "infinite", "lowest"],
)
def test_a_call_is_measured_exactly_as_it_was(
    dtype: torch.dtype, arguments: dict[str, Any], allowed: Tensor | None
) -> None:
    """Scale and masks count as in the call, and the arithmetic is float32 whatever the type."""
    query, key = draw(3, 2, 7, 8, dtype=dtype), draw(3, 2, 9, 8, dtype=dtype)
    measured = measure_scaled_dot_product(query, key, key, **arguments)
    assert measured is not None
    assert measured.dtype == torch.float32
    scale = arguments.get("scale", 1 / math.sqrt(8))
    assert measured.tolist() == pytest.approx(reference(query, key, scale, allowed=allowed), rel=1e-5)


def test_a_bias_of_positions_counts_for_the_entropy_alone() -> None:
    """What is added to the logits shapes the weights; the largest logit is that of queries and keys."""
    query, key, bias = draw(3, 2, 7, 8), draw(3, 2, 9, 8), draw(1, 2, 7, 9)
    measured = measure_scaled_dot_product(query, key, key, attn_mask=bias)
    assert measured is not None
    assert measured.tolist() == pytest.approx(reference(query, key, 1 / math.sqrt(8), bias=bias), rel=1e-5)


@pytest.mark.parametrize("keys_batch", [1, 3])
def test_heads_and_examples_may_share_keys(keys_batch: int) -> None:
    """With fewer heads of keys, a head of queries has the keys that torch gives it."""
    query, key = draw(3, 6, 7, 8), draw(keys_batch, 2, 9, 8)
    measured = measure_scaled_dot_product(query, key, key, enable_gqa=True)
    repeated = key.repeat_interleave(3, dim=1).expand(3, -1, -1, -1)
    assert measured is not None
    assert measured.tolist() == pytest.approx(reference(query, repeated, 1 / math.sqrt(8)), rel=1e-5)


@pytest.mark.parametrize("shape", [(7, 8), (3, 7, 8), (1, 3, 2, 7, 8)])
def test_a_call_may_have_any_number_of_leading_dimensions(shape: tuple[int, ...]) -> None:
    """Without heads there is one; of more than two leading dimensions, the first elements are measured."""
    query, key = draw(*shape), draw(*shape)
    measured = measure_scaled_dot_product(query, key, key)
    four = (1, 1, *shape) if len(shape) == 2 else (3, 1, 7, 8) if len(shape) == 3 else (3, 2, 7, 8)
    assert measured is not None
    assert measured.tolist() == pytest.approx(
        reference(query.reshape(four), key.reshape(four), 1 / math.sqrt(8)), rel=1e-5
    )


def test_numbers_that_are_not_finite_are_measured() -> None:
    """A NaN in a query makes both numbers NaN; one in a key that is masked does not."""
    query, key = draw(3, 2, 7, 8), draw(3, 2, 9, 8)
    query[1, 0, 2] = math.nan
    measured = measure_scaled_dot_product(query, key, key)
    assert measured is not None
    assert measured.isnan().all()
    key[1, :, 4:] = math.nan
    measured = measure_scaled_dot_product(draw(3, 2, 7, 8), key, key, attn_mask=PADDED)
    assert measured is not None
    assert measured.isfinite().all()


@pytest.mark.parametrize("arguments", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 6, "vdim": 5}])
@pytest.mark.parametrize("masks", [(), ("attention",), ("padding",), ("attention", "padding"), ("heads",)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_multi_head_attention_is_measured_by_the_weights_that_it_returns(
    arguments: dict[str, Any], masks: tuple[str, ...], batch_first: bool
) -> None:
    """The entropy is that of the module's own weights, with masks, biases and projections of every kind."""
    module = nn.MultiheadAttention(16, 4, batch_first=batch_first, **arguments)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    query, key, value = draw(3, 5, 16), draw(3, 7, module.kdim), draw(3, 7, module.vdim)
    attention = torch.ones(5, 7, dtype=torch.bool).triu(1)
    if "heads" in masks:
        attention = attention.repeat(12, 1, 1)
        attention[4, :, 1] = True
    padding = torch.arange(7) >= torch.tensor([7, 4, 2])[:, None]
    named: dict[str, Any] = {}
    if masks and masks != ("padding",):
        named["attn_mask"] = attention
    if "padding" in masks:
        named["key_padding_mask"] = padding
    given = (query, key, value) if batch_first else tuple(x.transpose(0, 1) for x in (query, key, value))
    measured: list[Tensor | None] = []

    class Mode(torch.overrides.TorchFunctionMode):
        """Measure the function that the module calls."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is functional.multi_head_attention_forward:
                measured.append(measure_multi_head(*args, **(kwargs or {})))
            return function(*args, **(kwargs or {}))

    with Mode(), torch.no_grad():
        _, weights = module(*given, **named, average_attn_weights=False)
    with torch.no_grad():
        scores = weights.double().log().clamp(min=-1e9).numpy()
    _, entropy = summarize(scores, scores, weights.numpy() > 0)
    assert len(measured) == 1
    assert measured[0] is not None
    assert measured[0][1].item() == pytest.approx(entropy, abs=1e-5)


def test_the_largest_logit_of_multi_head_attention_is_that_of_its_projections() -> None:
    """It is the largest product of projected queries and keys, over the root of the width of a head."""
    module = nn.MultiheadAttention(16, 4)
    inputs = draw(5, 3, 16)
    weight, bias = module.in_proj_weight, module.in_proj_bias
    assert weight is not None
    measured = measure_multi_head(
        inputs, inputs, inputs, 16, 4, weight, bias, None, None, False, 0.0, weight[:16], None, need_weights=False
    )
    projected = functional.linear(inputs, weight, bias).detach().reshape(5, 3, 3, 4, 4).permute(2, 1, 3, 0, 4)
    assert measured is not None
    assert measured.tolist() == pytest.approx(reference(projected[0], projected[1], 0.5), rel=1e-5)


@pytest.mark.parametrize("mask", [-math.inf, torch.finfo(torch.float32).min, -1e4])
@pytest.mark.parametrize("heads", [0, 2])
def test_a_softmax_of_a_product_is_attention(mask: float, heads: int) -> None:
    """Whatever number masks a logit, it is left out; so it is with and without a dimension of heads."""
    shape = (3, heads, 7, 8) if heads else (3, 7, 8)
    query = draw(*shape).requires_grad_()
    key = draw(*shape)
    logits = (query @ key.transpose(-2, -1)) / math.sqrt(8)
    allowed = torch.ones(7, 7, dtype=torch.bool).tril()
    masked = logits + torch.zeros(7, 7).masked_fill(~allowed, mask)
    with torch.no_grad():
        measured = measure_softmax(masked, -1)
    four = (3, max(heads, 1), 7, 8)
    expected = reference(query.detach().reshape(four), key.reshape(four), 1 / math.sqrt(8), allowed=allowed)
    assert measured is not None
    assert measured.tolist() == pytest.approx(expected, rel=1e-4)


def test_another_softmax_is_no_attention() -> None:
    """Probabilities of classes, of experts, and of a linear layer with heads are left alone."""
    layer = nn.Linear(8, 6)
    assert measure_softmax(layer(draw(3, 7, 8)), -1) is None
    assert measure_softmax(layer(draw(3, 8)), -1) is None
    assert measure_softmax(layer(draw(3, 4, 7, 8)), -1) is None
    assert measure_softmax(layer(draw(3, 4, 7, 8)), 1) is None
    assert measure_softmax(draw(3, 7, 8), -1) is None


def test_few_rows_of_a_large_call_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and examples lie evenly apart and are bounded; so are the logits of long sequences."""
    shapes = []
    softmax = functional.log_softmax

    def observe(scores: Tensor, dim: int) -> Tensor:
        shapes.append(tuple(scores.shape))
        return softmax(scores, dim=dim)

    monkeypatch.setattr(functional, "log_softmax", observe)
    for batch, heads, rows in ((9, 2, 200), (2, 8, 4096), (1, 32, 8192), (1, 300, 1000)):
        query = torch.randn(batch, heads, rows, 4)
        assert measure_scaled_dot_product(query, query, query, is_causal=True) is not None
        examples, _, measured_rows, keys = shapes.pop()
        assert examples <= EXAMPLES
        assert measured_rows <= ROWS
        assert examples * heads * measured_rows * keys <= max(MOST_LOGITS, heads * keys)
        assert examples * measured_rows >= FEWEST_ROWS or heads * keys * FEWEST_ROWS > MOST_LOGITS
    query = torch.zeros(1, 1, 1000, 1)
    query[:, :, -1] = 3.0
    measured = measure_scaled_dot_product(query, query, query, scale=1.0)
    assert measured is not None
    assert measured[0].item() == 9.0, "the last row is among them"


def test_what_has_no_numbers_is_not_measured() -> None:
    """One key needs no choice; empty calls, fake tensors and whole numbers have nothing to measure."""
    query = draw(2, 2, 5, 4)
    one = query[:, :, :1]
    assert measure_scaled_dot_product(query, one, one) is None
    empty = query[:0]
    assert measure_scaled_dot_product(empty, empty, empty) is None
    meta = query.to("meta")
    assert measure_scaled_dot_product(meta, meta, meta) is None
