"""What to change where an operation has no finite result: a page, a sentence and code for each kind of operation.

In the code, `x` is the input of the operation and `y` its result. `docs/operations` has a page for each kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gradmedic.protocol.origins import Origin


@dataclass(frozen=True, slots=True)
class Fix:
    """What to change in the script."""

    page: str
    """Name of the page in `docs/operations`."""
    advice: str
    """One or two sentences."""
    code: Mapping[str, str]
    """Code to paste and adapt, by the framework. Each fix has code for torch."""


_ROOT = Fix(
    "root",
    "The slope of a root at 0 is infinite, and a negative number has no root: add a small number inside of the root.",
    {
        "torch": "y = torch.sqrt(x.clamp_min(0) + 1e-8)",
        "jax": "y = jnp.sqrt(jnp.maximum(x, 0) + 1e-8)",
        "keras": "y = ops.sqrt(ops.maximum(x, 0) + 1e-8)",
    },
)
_LENGTH = Fix(
    "length",
    "The slope of a length at 0 is not defined: add a small number to the sum of squares.",
    {
        "torch": "y = torch.sqrt(x.square().sum(-1) + 1e-8)",
        "jax": "y = jnp.sqrt(jnp.square(x).sum(-1) + 1e-8)",
        "keras": "y = ops.sqrt(ops.sum(ops.square(x), axis=-1) + 1e-8)",
    },
)
_DIVISION = Fix(
    "division",
    "Keep the denominator away from 0.",
    {
        "torch": "y = 1 / x.clamp_min(1e-8)  # of both signs: x / (x.square() + 1e-8)",
        "jax": "y = 1 / jnp.maximum(x, 1e-8)  # of both signs: x / (jnp.square(x) + 1e-8)",
        "keras": "y = 1 / ops.maximum(x, 1e-8)  # or ops.divide_no_nan, which gives 0 for 1 / 0",
    },
)
_LOGARITHM = Fix(
    "logarithm",
    "Keep the input of the logarithm above 0. For probabilities of a softmax, use `log_softmax` of its input.",
    {
        "torch": "y = x.clamp_min(1e-8).log()",
        "jax": "y = jnp.log(jnp.maximum(x, 1e-8))",
        "keras": "y = ops.log(ops.maximum(x, 1e-8))",
    },
)
_EXPONENTIAL = Fix(
    "exponential",
    "Bound the input, or compute with logarithms: `logsumexp`, `softplus` and `log_softmax` do not overflow.",
    {
        "torch": "y = x.clamp(max=20).exp()",
        "jax": "y = jnp.exp(jnp.minimum(x, 20))",
        "keras": "y = ops.exp(ops.minimum(x, 20))",
    },
)
_ANGLE = Fix(
    "angle",
    "Keep the input inside of the interval: at its ends the slope is infinite, and beyond them there is no result.",
    {
        "torch": "y = x.clamp(-1 + 1e-6, 1 - 1e-6).acos()",
        "jax": "y = jnp.arccos(jnp.clip(x, -1 + 1e-6, 1 - 1e-6))",
        "keras": "y = ops.arccos(ops.clip(x, -1 + 1e-6, 1 - 1e-6))",
    },
)
_POWER = Fix(
    "power",
    "A fractional power needs an input above 0.",
    {
        "torch": "y = x.clamp_min(1e-8).pow(0.5)",
        "jax": "y = jnp.maximum(x, 1e-8) ** 0.5",
        "keras": "y = ops.power(ops.maximum(x, 1e-8), 0.5)",
    },
)
_MASKED_ROW = Fix(
    "masked_row",
    "A softmax over a row that is masked as a whole is 0/0. Use the smallest number in place of -inf, and set such "
    "rows to 0.",
    {
        "torch": "masked = x == -float('inf')\n"
        "y = torch.softmax(x.masked_fill(masked, torch.finfo(x.dtype).min), dim=-1)\n"
        "y = y.masked_fill(masked.all(-1, keepdim=True), 0.0)",
        "jax": "masked = x == -jnp.inf\n"
        "y = jax.nn.softmax(jnp.where(masked, jnp.finfo(x.dtype).min, x), axis=-1)\n"
        "y = jnp.where(masked.all(-1, keepdims=True), 0.0, y)",
        "keras": "masked = x == -float('inf')  # keras.layers.Softmax()(x, mask=~masked) does the next line\n"
        "y = ops.softmax(ops.where(masked, -1e9, x), axis=-1)\n"
        "y = ops.where(ops.all(masked, axis=-1, keepdims=True), 0.0, y)",
    },
)
_SPREAD = Fix(
    "spread",
    "The corrected spread of a single element is 0/0: use the uncorrected one, or leave out such groups.",
    {
        "torch": "y = torch.sqrt(x.var(0, correction=0) + 1e-8)",
        "jax": "y = jnp.sqrt(jnp.var(x, axis=0) + 1e-8)  # the default is not corrected: ddof=0",
        "keras": "y = ops.sqrt(ops.var(x, axis=0) + 1e-8)  # it is never corrected; its root has no slope at 0",
    },
)
_MEAN = Fix(
    "empty_mean",
    "The mean of no element is 0/0: divide the sum by at least 1.",
    {
        "torch": "y = x.sum() / max(1, x.numel())",
        "jax": "y = x.sum() / max(1, x.size)",
        "keras": "y = ops.sum(x) / max(1, ops.size(x))",
    },
)
_LABELS = Fix(
    "ignored_labels",
    "The mean over labels that are all ignored is 0/0: divide the sum by the number of labels, or by 1.",
    {
        "torch": "loss = torch.nn.functional.cross_entropy(x, labels, reduction='sum')\n"
        "y = loss / (labels != -100).sum().clamp_min(1)",
        "jax": "counts = labels != -100\n"
        "losses = optax.softmax_cross_entropy_with_integer_labels(x, jnp.where(counts, labels, 0))\n"
        "y = (losses * counts).sum() / jnp.maximum(counts.sum(), 1)",
        "keras": "counts = ops.cast(labels != -100, x.dtype)\n"
        "losses = keras.losses.sparse_categorical_crossentropy(ops.maximum(labels, 0), x, from_logits=True)\n"
        "y = ops.sum(losses * counts) / ops.maximum(ops.sum(counts), 1)",
    },
)
_ALIGNMENT = Fix(
    "label_alignment",
    "Leave out examples whose label needs more frames than it has, or let CTC count their loss as 0.",
    {
        "torch": "y = torch.nn.functional.ctc_loss(x, labels, frames, lengths, zero_infinity=True)",
    },
)
_NORMALIZATION = Fix(
    "normalization",
    "Give the normalization an epsilon above 0.",
    {
        "torch": "y = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)",
        "jax": "y = jax.nn.standardize(x, axis=-1, epsilon=1e-5)",
        "keras": "y = keras.layers.LayerNormalization(epsilon=1e-5)(x)",
    },
)
_HALF = Fix(
    "half_precision",
    "The result is beyond the largest number of half precision, 65504: compute this operation in float32, or in "
    "bfloat16.",
    {
        "torch": "with torch.autocast(x.device.type, enabled=False):\n    y = x.float() * x.float()",
        "jax": "y = x.astype(jnp.float32) * x.astype(jnp.float32)",
        "keras": "y = ops.cast(x, 'float32') * ops.cast(x, 'float32')",
    },
)
_BRANCH = Fix(
    "untaken_branch",
    "`torch.where` stops the value of a branch that is not taken, but 0 times an infinite slope is NaN: make the input "
    "safe before the operation too.",
    {
        "torch": "is_taken = x > 0\n"
        "safe = torch.where(is_taken, x, torch.ones_like(x))\n"
        "y = torch.where(is_taken, safe.sqrt(), torch.zeros_like(x))",
        "jax": "is_taken = x > 0\nsafe = jnp.where(is_taken, x, 1.0)\ny = jnp.where(is_taken, jnp.sqrt(safe), 0.0)",
        "keras": "is_taken = x > 0\nsafe = ops.where(is_taken, x, 1.0)\ny = ops.where(is_taken, ops.sqrt(safe), 0.0)",
    },
)
_DATA = Fix(
    "data",
    "The batch is not finite: look at how it is read and scaled, and leave out examples that are not finite.",
    {
        "torch": "y = x[torch.isfinite(x).flatten(1).all(1)]",
        "jax": "y = x[jnp.isfinite(x).reshape(len(x), -1).all(1)]  # outside of jit, which needs fixed shapes",
        "keras": "y = x[np.isfinite(x).reshape(len(x), -1).all(1)]  # of a NumPy array, before it is a dataset",
    },
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
OTHER_FIXES = (_HALF, _BRANCH, _DATA)
"""What to change where the input matters and not the operation."""


def find_fix(origin: Origin) -> Fix | None:
    """Return what to change at an origin; None if nothing is known.

    >>> fix = find_fix(Origin(operation="log", kind="numeric"))
    >>> fix and fix.code["torch"]
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
