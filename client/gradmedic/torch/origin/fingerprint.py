"""Describes the batch of a step, so that its examples can be found again.

Which examples a loader chose is not known here: `torch.utils.data.DataLoader` passes on their data and not their
indices, and it reads ahead, so that its sampler stands elsewhere when a step fails. To replace its sampler or its
private methods could change what the training computes. The digest of the data tells a batch from all others without
that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from gradmedic.protocol.origins import MOST_BATCH_TENSORS, MOST_EXAMPLES, BatchTensor
from gradmedic.torch.origin.step_record import GivenTensor

_MOST_BYTES = 256 * 2**20
"""Bytes of a tensor of which a digest is computed: it needs a copy on the host."""
_DIGEST_LENGTH = 16


def describe_batch(given: Iterable[GivenTensor], own: Iterable[Tensor]) -> list[BatchTensor]:
    """Return a description of the tensors that the script gave to a step, as inputs and targets, in their order.

    Args:
        given: tensors from outside of the step.
        own: parameters and buffers of the models, which are no part of the batch.
    """
    known = {id(tensor) for tensor in own}
    batch = [
        item.tensor
        for item in given
        if not (item.original in known or item.is_computed or item.has_changed) and item.tensor.ndim
    ]
    return [_describe(tensor) for tensor in batch[:MOST_BATCH_TENSORS] if _is_plain(tensor)]


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.device.type != "meta" and not tensor.is_quantized


def _describe(tensor: Tensor) -> BatchTensor:
    with torch.no_grad():
        is_ordered = not (tensor.is_complex() or tensor.dtype is torch.bool)
        finite = tensor.isfinite()
        numbers = tensor[finite] if is_ordered else tensor.new_empty(0)
        bad = (~finite).flatten(1).any(1) if tensor.ndim > 1 else ~finite
        return BatchTensor(
            shape=list(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            digest=_compute_digest(tensor),
            nonfinite_count=int((~finite).sum()),
            min=float(numbers.min()) if numbers.numel() else None,
            max=float(numbers.max()) if numbers.numel() else None,
            examples=bad.nonzero().flatten()[:MOST_EXAMPLES].tolist(),
        )


def _compute_digest(tensor: Tensor) -> str | None:
    if tensor.numel() * tensor.element_size() > _MOST_BYTES:
        return None
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return hashlib.sha256(plain.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()[:_DIGEST_LENGTH]
