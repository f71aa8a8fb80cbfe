"""The precision of a training."""

from __future__ import annotations

from gradmedic.protocol.runs import Training

_HALF_PRECISION = ("float16", "fp16", "half")
"""Names of the 16-bit format with a small range; bfloat16 has the range of float32."""


def is_half_precision(training: Training) -> bool:
    """Whether the model computes in the 16-bit format with a small range.

    >>> is_half_precision(Training(precision="bfloat16"))
    False
    """
    return (training.precision or "").lower() in _HALF_PRECISION
