"""The batch of a step that failed is described, so that it can be found again."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import Tensor

from gradmedic.protocol.origins import MOST_BATCH_TENSORS, MOST_EXAMPLES, BatchTensor
from gradmedic.torch.origin import fingerprint
from gradmedic.torch.origin.fingerprint import describe_batch
from gradmedic.torch.origin.step_record import GivenTensor


def given(tensor: Tensor, *, version: int | None = None, is_computed: bool = False) -> GivenTensor:
    """Return a tensor as a step remembers it."""
    remembered = tensor._version if version is None else version
    return GivenTensor(tensor.detach(), remembered, id(tensor), tensor.requires_grad, is_computed)


def compute_digest(tensor: Tensor) -> str:
    """Return the digest as docs/client.md shows it to users."""
    return hashlib.sha256(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_a_tensor_is_described_with_its_digest(dtype: torch.dtype) -> None:
    """Shape, dtype, range and digest, of each dtype and also where the elements are not contiguous."""
    tensor = torch.arange(12).reshape(3, 4).to(dtype).T
    (described,) = describe_batch([given(tensor)], [])
    assert (described.shape, described.dtype) == ([4, 3], str(dtype).removeprefix("torch."))
    assert (described.digest, described.nonfinite_count) == (compute_digest(tensor), 0)
    assert (described.min, described.max) == ((None, None) if dtype is torch.bool else (0, 11))


def test_examples_that_are_not_finite_are_listed() -> None:
    """By their positions, the first ones; the range is that of the finite elements."""
    tensor = torch.ones(40, 2, 2)
    tensor[3, 0, 1], tensor[7, 1, 1], tensor[7, 1, 0] = math.nan, math.inf, math.nan
    (described,) = describe_batch([given(tensor)], [])
    assert described == BatchTensor(
        shape=[40, 2, 2], dtype="float32", digest=compute_digest(tensor), nonfinite_count=3, min=1.0, max=1.0,
        examples=[3, 7],
    )  # fmt: skip
    (described,) = describe_batch([given(torch.full((40,), math.nan))], [])
    assert (described.examples, described.min) == (list(range(MOST_EXAMPLES)), None)


def test_only_the_batch_is_described() -> None:
    """Parameters, numbers, what was computed or has changed are no part of it; a sparse tensor is left out."""
    own, batch = torch.ones(2), torch.zeros(2)
    others = [given(own), given(torch.tensor(1.0)), given(torch.ones(3), is_computed=True)]
    others += [given(torch.ones(3), version=-1), given(torch.eye(3).to_sparse())]
    described = describe_batch([*others, given(batch)], [own])
    assert [tensor.digest for tensor in described] == [compute_digest(batch)]
    assert len(describe_batch([given(torch.ones(1)) for _ in range(20)], [])) == MOST_BATCH_TENSORS


def test_a_tensor_that_is_too_large_has_no_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have to be copied to the host."""
    monkeypatch.setattr(fingerprint, "_MOST_BYTES", 15)
    (described,) = describe_batch([given(torch.ones(4))], [])
    assert (described.digest, described.shape) == (None, [4])
