"""What to change where an operation has no finite result: a sentence and torch code for each operation.

In the code, `x` is the input of the operation.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradmedic.protocol.origins import Origin


@dataclass(frozen=True, slots=True)
class Fix:
    """What to change in the script."""

    advice: str
    """One or two sentences."""
    snippet: str
    """Torch code to paste and adapt."""


_ROOT = Fix(
    "The slope of a root at 0 is infinite, and a negative number has no root: add a small number inside of the root.",
    "y = torch.sqrt(x.clamp_min(0) + 1e-8)",
)
_LENGTH = Fix(
    "The slope of a length at 0 is not defined: add a small number to the sum of squares.",
    "y = torch.sqrt(x.square().sum(-1) + 1e-8)",
)
_DIVISION = Fix(
    "Keep the denominator away from 0.",
    "y = 1 / x.clamp_min(1e-8)  # of both signs: x / (x.square() + 1e-8)",
)
_LOGARITHM = Fix(
    "Keep the input of the logarithm above 0. For probabilities of a softmax, use `log_softmax` of its input.",
    "y = x.clamp_min(1e-8).log()",
)
_EXPONENTIAL = Fix(
    "Bound the input, or compute with logarithms: `logsumexp`, `softplus` and `log_softmax` do not overflow.",
    "y = x.clamp(max=20).exp()",
)
_ANGLE = Fix(
    "Keep the input inside of the interval: at its ends the slope is infinite, and beyond them there is no result.",
    "y = x.clamp(-1 + 1e-6, 1 - 1e-6).acos()",
)
_POWER = Fix(
    "A fractional power needs an input above 0.",
    "y = x.clamp_min(1e-8).pow(0.5)",
)
_MASKED_ROW = Fix(
    "A softmax over a row that is masked as a whole is 0/0. Use the smallest number in place of -inf, and set such "
    "rows to 0.",
    "masked = x == -float('inf')\n"
    "y = torch.softmax(x.masked_fill(masked, torch.finfo(x.dtype).min), dim=-1)\n"
    "y = y.masked_fill(masked.all(-1, keepdim=True), 0.0)",
)
_SPREAD = Fix(
    "The corrected spread of a single element is 0/0: use the uncorrected one, or leave out such groups.",
    "y = torch.sqrt(x.var(0, correction=0) + 1e-8)",
)
_MEAN = Fix(
    "The mean of no element is 0/0: divide the sum by at least 1.",
    "y = x.sum() / max(1, x.numel())",
)
_LABELS = Fix(
    "The mean over labels that are all ignored is 0/0: divide the sum by the number of labels, or by 1.",
    "loss = torch.nn.functional.cross_entropy(x, labels, reduction='sum')\n"
    "y = loss / (labels != -100).sum().clamp_min(1)",
)
_ALIGNMENT = Fix(
    "Leave out examples whose label needs more frames than it has, or let CTC count their loss as 0.",
    "y = torch.nn.functional.ctc_loss(x, labels, frames, lengths, zero_infinity=True)",
)
_NORMALIZATION = Fix(
    "Give the normalization an epsilon above 0.",
    "y = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)",
)
_HALF = Fix(
    "The result is beyond the largest number of half precision, 65504: compute this operation in float32, or in "
    "bfloat16.",
    "with torch.autocast(x.device.type, enabled=False):\n    y = x.float() * x.float()",
)
_BRANCH = Fix(
    "`torch.where` stops the value of a branch that is not taken, but 0 times an infinite slope is NaN: make the input "
    "safe before the operation too.",
    "is_taken = x > 0\n"
    "safe = torch.where(is_taken, x, torch.ones_like(x))\n"
    "y = torch.where(is_taken, safe.sqrt(), torch.zeros_like(x))",
)
_DATA = Fix(
    "The batch is not finite: look at how it is read and scaled, and leave out examples that are not finite.",
    "y = x[torch.isfinite(x).flatten(1).all(1)]",
)

FIXES: dict[str, Fix] = {
    **dict.fromkeys(("sqrt", "rsqrt"), _ROOT),
    **dict.fromkeys(("norm", "linalg.norm", "linalg.vector_norm", "hypot", "dist", "cdist"), _LENGTH),
    **dict.fromkeys(("division", "reciprocal", "addcdiv", "normalize", "cosine_similarity"), _DIVISION),
    **dict.fromkeys(("log", "log2", "log10", "log1p", "xlogy", "logit", "logdet"), _LOGARITHM),
    **dict.fromkeys(("exp", "exp2", "expm1", "sinh", "cosh"), _EXPONENTIAL),
    **dict.fromkeys(("acos", "asin", "atanh", "acosh", "erfinv"), _ANGLE),
    "pow": _POWER,
    **dict.fromkeys(("softmax", "log_softmax", "scaled_dot_product_attention"), _MASKED_ROW),
    **dict.fromkeys(("std", "var", "std_mean", "var_mean"), _SPREAD),
    "mean": _MEAN,
    **dict.fromkeys(("cross_entropy", "nll_loss"), _LABELS),
    "ctc_loss": _ALIGNMENT,
    **dict.fromkeys(("layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm"), _NORMALIZATION),
}
"""What to change, by the name of the operation."""


def find_fix(origin: Origin) -> Fix | None:
    """Return what to change at an origin; None if nothing is known.

    >>> fix = find_fix(Origin(operation="log", kind="numeric"))
    >>> fix and fix.snippet
    'y = x.clamp_min(1e-8).log()'
    """
    if origin.operation is None:
        return None
    found = origin.input
    if origin.kind == "data" and (found is None or found.special == "nonfinite"):
        return _DATA
    if found is not None and found.special == "overflow" and found.dtype == "float16":
        return _HALF
    if origin.direction == "backward" and found is not None and found.text is not None and "not taken" in found.text:
        return _BRANCH
    return FIXES.get(origin.operation)
