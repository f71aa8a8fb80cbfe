"""Computes the largest logit and the entropy of attention, for a few rows of one call.

A row is the logits of one query of one head and one example. All is computed in float32 on the tensors' device, without
waiting for it, and without a graph. Few rows are enough: both numbers are read as trends of a module.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

EXAMPLES = 4
"""Most examples of a batch that are measured."""
ROWS = 64
"""Most query rows of a head that are measured, evenly apart, the last one among them."""
LOGITS = 2**16
"""Most logits of a call that are computed, unless `FEWEST_ROWS` need more. On a CPU they take about a millisecond."""
FEWEST_ROWS = 8
"""Rows of each head that are measured at least, as far as `MOST_LOGITS` allows it."""
MOST_LOGITS = 2**20
"""Most logits of a call of long sequences: four megabytes in float32. One row of each head is always computed."""
KEY_NUMBERS = 2**20
"""Numbers of the keys that are converted to float32 at once: four megabytes."""
MASKED_BELOW = -5e3
"""A logit or a bias of at most this much is a mask. The smallest that scripts use is -1e4 (BERT's); the others are the
lowest number of the type, or minus infinity."""

_PLAIN = (Tensor, torch.nn.Parameter)
_MULTI_HEAD = inspect.signature(functional.multi_head_attention_forward)
_PASSED_ON = frozenset({
    "Add", "Sub", "Mul", "Div", "MaskedFill", "Where", "View", "UnsafeView", "Reshape", "Expand", "ToCopy", "Clone",
    "Tanh", "Clamp", "Permute", "Transpose", "Squeeze", "Unsqueeze",
})  # fmt: skip
"""Operations that may stand between the product of queries and keys, and the softmax: scales, masks, biases, caps."""
_PRODUCTS = ("Bmm", "Baddbmm")
_MAX_OPERATIONS = 16
"""Operations behind a softmax among which the product is looked for."""


class AttentionCall(NamedTuple):
    """What a call computes its attention weights from; leading dimensions are examples and heads."""

    query: Tensor
    """`[example, head, row, number]`."""
    key: Tensor
    """`[example, head, key, number]`, with 1 for examples and fewer heads if they are shared."""
    scale: float
    bias: Tensor | None = None
    """What is added to the logits, `[example, head, row, key]`."""
    allowed: Tensor | None = None
    """True where a row may attend to a key, `[example, head, row, key]`."""
    is_causal: bool = False
    """Whether row i may attend to the keys 0 to i only."""


def measure_scaled_dot_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Return the largest logit and the entropy `[2]` of a call of `scaled_dot_product_attention`; None if unknown."""
    del value, dropout_p, enable_gqa
    if not _are_plain(query, key, attn_mask) or query.ndim < 2 or key.ndim != query.ndim or not query.numel():
        return None
    rows, key = _as_four(query), _as_four(key)
    rows = rows.expand(max(rows.shape[0], key.shape[0]), -1, -1, -1)
    mask = attn_mask
    if mask is not None:
        mask = (mask if mask.ndim == 2 else _as_four(mask)).expand(*rows.shape[:-1], key.shape[2])
    is_boolean = mask is not None and mask.dtype == torch.bool
    return _measure_call(
        AttentionCall(
            rows,
            key,
            1.0 / math.sqrt(query.shape[-1]) if scale is None else scale,
            bias=None if is_boolean else mask,
            allowed=mask if is_boolean else None,
            is_causal=is_causal,
        )
    )


def measure_multi_head(*args: Any, **kwargs: Any) -> Tensor | None:
    """Return the same of a call of `multi_head_attention_forward`, whose arguments these are.

    Queries and keys are projected once more, for the examples and rows that are measured.
    """
    call = _MULTI_HEAD.bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    query, key, heads = given["query"], given["key"], given["num_heads"]
    masks = (given["attn_mask"], given["key_padding_mask"])
    if given["static_k"] is not None or not _are_plain(query, key, *masks) or not query.numel():
        return None
    if query.ndim == 2:
        query, key = query.unsqueeze(1), key.unsqueeze(1)
    rows, batch, width = query.shape
    keys = key.shape[0] + (given["bias_k"] is not None) + bool(given["add_zero_attn"])
    examples, chosen_rows = _choose(batch, heads, rows, keys)
    weights = _split_projection(given, width)
    query = _project(query[chosen_rows, examples], *weights[0])
    key = _project(key[:, examples], *weights[1])
    if given["bias_k"] is not None:
        key = torch.cat([key, given["bias_k"].float().expand(-1, key.shape[1], -1)])
    if given["add_zero_attn"]:
        key = torch.cat([key, key.new_zeros(1, *key.shape[1:])])
    attention, padding = masks
    if attention is not None and attention.ndim == 3:
        attention = attention.reshape(-1, heads, *attention.shape[-2:])[examples][:, :, chosen_rows]
    elif attention is not None:
        attention = attention[chosen_rows]
    if padding is not None:
        padding = padding.reshape(batch, 1, 1, -1)[examples]
    bias = sum((_as_bias(mask, keys) for mask in (attention, padding) if mask is not None), start=query.new_zeros(()))
    shape = (query.shape[1], heads, query.shape[0], keys)
    return _measure_rows(
        _split_heads(query, heads),
        _split_heads(key, heads),
        1.0 / math.sqrt(width // heads),
        bias=bias.expand(shape) if bias.ndim else None,
    )


def measure_softmax(
    input: Tensor,  # noqa: A002 (torch's name of the argument, which a script may use)
    dim: int | None = None,
    *_args: Any,
    **_kwargs: Any,
) -> Tensor | None:
    """Return the same of a softmax over the last dimension of logits of attention; None of another softmax.

    Attention is recognized by the product of two activations that its logits are computed by. The number includes what
    the script adds to the logits, but not what it masks.
    """
    logits = input
    if not _are_plain(logits) or logits.ndim not in (3, 4) or dim not in (-1, logits.ndim - 1) or not logits.numel():
        return None
    if not (_is_product(logits) if logits.grad_fn is not None else logits.ndim == 4):
        return None
    logits = _as_four(logits)
    examples, rows = _choose(*logits.shape)
    logits = logits[examples, :, rows].float()
    return _summarize(logits, logits, ~(logits <= MASKED_BELOW))  # so a NaN is no mask


def _measure_call(call: AttentionCall) -> Tensor | None:
    batch, heads, rows, _ = call.query.shape
    keys = call.key.shape[2]
    examples, chosen = _choose(batch, heads, rows, keys)
    query = call.query[examples, :, chosen]
    key = call.key if call.key.shape[0] == 1 else call.key[examples]
    allowed = None if call.allowed is None else call.allowed[examples, :, chosen]
    if call.is_causal:
        columns = torch.arange(keys, device=query.device)
        allowed = columns <= torch.arange(rows, device=query.device)[chosen].unsqueeze(1)
    bias = None if call.bias is None else call.bias[examples, :, chosen].float()
    return _measure_rows(query, key, call.scale, bias=bias, allowed=allowed)


def _measure_rows(
    query: Tensor, key: Tensor, scale: float, *, bias: Tensor | None = None, allowed: Tensor | None = None
) -> Tensor | None:
    logits = _multiply(query.float(), key) * scale
    scores = logits
    if bias is not None:
        scores = logits + bias
        allowed = bias > MASKED_BELOW
    return _summarize(logits, scores, allowed)


def _summarize(logits: Tensor, scores: Tensor, allowed: Tensor | None) -> Tensor | None:
    """Return the largest absolute logit, and the entropy of the head whose mean is lowest.

    Args:
        logits: `[example, head, row, key]`.
        scores: what the softmax is taken of, masks apart, of the same shape.
        allowed: True where a row may attend to a key; None if every row may attend to every key.
    """
    keys = scores.shape[-1]
    if keys < 2:
        return None
    if allowed is None:
        log_weights = functional.log_softmax(scores, dim=-1)
        entropy = log_weights.exp().mul_(log_weights).sum(-1) / -math.log(keys)
        return torch.stack([logits.abs().amax(), entropy.mean((0, 2)).amin()])
    allowed = allowed.expand(scores.shape)
    count = allowed.sum(-1)
    masked = ~allowed
    log_weights = functional.log_softmax(scores.masked_fill(masked, -math.inf), dim=-1).masked_fill_(masked, 0.0)
    entropy = -log_weights.exp().mul_(log_weights).sum(-1)
    counts_as_row = count > 1
    entropy = torch.where(counts_as_row, entropy / count.clamp(min=2).log(), 0.0).sum((0, 2))
    rows = counts_as_row.sum((0, 2))
    entropy = torch.where(rows > 0, entropy / rows.clamp(min=1), 1.0)
    return torch.stack([logits.abs().masked_fill_(masked, 0.0).amax(), entropy.amin()])


def _multiply(query: Tensor, key: Tensor) -> Tensor:
    """Return the products `[example, head, row, key]` of float32 queries with keys, whose heads may be shared."""
    heads, shared = query.shape[1], key.shape[1]
    if heads != shared:
        query = query.reshape(query.shape[0], shared, heads // shared * query.shape[2], query.shape[3])
    step = max(1, KEY_NUMBERS // max(1, key.shape[0] * key.shape[2] * key.shape[3]))
    products = [
        query[:, first : first + step] @ key[:, first : first + step].float().transpose(-2, -1)
        for first in range(0, shared, step)
    ]
    product = products[0] if len(products) == 1 else torch.cat(products, dim=1)
    return product.reshape(query.shape[0], heads, -1, key.shape[2])


def _choose(batch: int, heads: int, rows: int, keys: int) -> tuple[slice, slice]:
    """Return which examples and rows are measured. Slices with a step need no copy of indices to a device."""
    of_a_row = max(1, heads * keys)
    limit = max(1, LOGITS // of_a_row, min(FEWEST_ROWS, MOST_LOGITS // of_a_row))
    examples = min(batch, EXAMPLES, max(1, limit // FEWEST_ROWS))
    return _spread(batch, examples), _spread(rows, min(rows, ROWS, max(1, limit // examples)))


def _spread(length: int, count: int) -> slice:
    """Return a slice of at most `count` indices, evenly apart, the last one among them."""
    step = -(-length // count)
    return slice((length - 1) % step, length, step)


def _split_projection(given: Mapping[str, Any], width: int) -> Sequence[tuple[Tensor, Tensor | None]]:
    """Return weight and bias of the projections of queries and of keys."""
    if given["use_separate_proj_weight"]:
        weights = [given["q_proj_weight"], given["k_proj_weight"]]
    else:
        weights = [given["in_proj_weight"][:width], given["in_proj_weight"][width : 2 * width]]
    bias = given["in_proj_bias"]
    biases = [None, None] if bias is None else [bias[:width], bias[width : 2 * width]]
    return list(zip(weights, biases, strict=True))


def _project(activations: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(activations.float(), weight.float(), None if bias is None else bias.float())


def _split_heads(projected: Tensor, heads: int) -> Tensor:
    """Return `[example, head, row, number]` of `[row, example, head and number]`."""
    rows, batch, width = projected.shape
    return projected.reshape(rows, batch, heads, width // heads).permute(1, 2, 0, 3)


def _as_bias(mask: Tensor, keys: int) -> Tensor:
    """Return a mask of `multi_head_attention_forward` as what is added, padded for keys that the call adds.

    True in a mask of booleans excludes a key.
    """
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask, -math.inf)
    return functional.pad(mask.float(), (0, keys - mask.shape[-1]))


def _as_four(tensor: Tensor) -> Tensor:
    """Return a tensor `[example, head, row, number]`: with one head if there are none, and at most four dimensions."""
    while tensor.ndim > 4:
        tensor = tensor[0]
    if tensor.ndim == 3:
        return tensor.unsqueeze(1)
    return tensor.unsqueeze(0).unsqueeze(0) if tensor.ndim == 2 else tensor


def _are_plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors with numbers: no shards, nested tensors or fake ones."""
    return all(
        tensor is None
        or (
            type(tensor) in _PLAIN
            and tensor.layout == torch.strided
            and not tensor.is_meta
            and (tensor.is_floating_point() or tensor.dtype == torch.bool)
        )
        for tensor in tensors
    )


def _is_product(logits: Tensor) -> bool:
    """Whether logits are computed by a product of two batches of matrices, but for scales, masks and biases."""
    waiting = [logits.grad_fn]
    for _ in range(_MAX_OPERATIONS):
        node = waiting.pop(0) if waiting else None
        if node is None:
            return False
        name = node.name().partition("Backward")[0]
        if name in _PRODUCTS:
            return True
        if name in _PASSED_ON:
            waiting.extend(behind for behind, _ in node.next_functions if behind is not None)
    return False


@contextlib.contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute in the types that are asked for: without autocast, and unseen by function modes."""
    with torch.autocast(device.type, enabled=False), torch._C.DisableTorchFunction():
        yield
