"""The rules by which numbers travel and are stored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NONFINITE_NAMES = ("NaN", "Infinity", "-Infinity")
"""The strings that stand for non-finite numbers in JSON."""

MAX_EXACT_INTEGER = 2**53
"""The largest integer up to which all JSON readers agree about integers (RFC 8259, section 6). Steps and sizes end
here."""

LARGEST_INT32 = 2**31 - 1
LARGEST_INT64 = 2**63 - 1
"""The largest integers that the columns of a database hold."""

JSON_INTEGERS = range(-(2**63), 2**64)
"""The integers that every JSON reader here reads: those of 64 bits, with or without a sign."""

LARGEST_FLOAT32 = (2 - 2.0**-23) * 2.0**127
SMALLEST_FLOAT32 = 2.0**-149
"""The largest finite and the smallest positive (subnormal) number of float32."""

CLIP_EPSILON = 1e-6
"""Added to a norm before the division by it, as in `torch.nn.utils.clip_grad_norm_`."""


def is_finite(value: float | int) -> bool:
    """Whether a number is a finite float, or an integer that a float can hold.

    >>> is_finite(2**64), is_finite(10**400), is_finite(float("nan"))
    (True, False, False)
    """
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def name_nonfinite(value: float) -> str:
    """Return the name of a non-finite number.

    >>> name_nonfinite(float("-inf"))
    '-Infinity'
    """
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def to_float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round to float32. A finite value stays finite, and a nonzero value stays nonzero.

    >>> import numpy as np
    >>> to_float32(np.array([1e300, 1e-300, float("inf")]))
    array([3.4028235e+38, 1.4012985e-45,           inf], dtype=float32)
    """
    import numpy as np  # here, because commands that read no arrays start in half the time without it

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        overflowed = np.isinf(narrow) & np.isfinite(values)
        narrow[overflowed] = np.copysign(LARGEST_FLOAT32, values[overflowed])
    if np.count_nonzero(narrow) != np.count_nonzero(values):
        underflowed = (narrow == 0) & (values != 0)
        narrow[underflowed] = np.copysign(SMALLEST_FLOAT32, values[underflowed])
    return narrow
