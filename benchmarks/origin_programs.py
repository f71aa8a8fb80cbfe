"""Small pieces of programs with a numerical fault at a known line, and pieces that only look as if they had one.

Each takes activations `[16, 8]` and returns something that is added to them. The line of the fault ends with a comment
that names the operation; `find_mark` reads it. A fault in the gradient has a finite result.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Piece = Callable[[Tensor], Tensor]
_MARK = re.compile(r"# origin: (.+)$")


class Mark(NamedTuple):
    """Where a piece has its fault."""

    line: int
    operations: tuple[str, ...]
    """Names of the operation that are right."""


def find_mark(piece: Piece) -> Mark:
    """Return the line of a fault and its operation."""
    lines, first = inspect.getsourcelines(piece)
    for offset, line in enumerate(lines):
        if (match := _MARK.search(line)) is not None:
            return Mark(first + offset, tuple(match[1].split(" or ")))
    raise ValueError(f"{piece.__name__} has no mark")


# --- faults ---------------------------------------------------------------------------------------------------------


def root_of_zero(x: Tensor) -> Tensor:
    """The gradient of the root at zero is infinite."""
    distance = (x - x.detach()).square()
    return distance.sqrt()  # origin: sqrt


def root_of_negative(x: Tensor) -> Tensor:
    """The root of a negative number."""
    variance = (x * x).mean(0) - 100
    return torch.sqrt(variance)  # origin: sqrt


def inverse_root_of_zero(x: Tensor) -> Tensor:
    """A normalization without epsilon."""
    energy = x.relu().square().mean(-1, keepdim=True) * 0
    scale = torch.rsqrt(energy)  # origin: rsqrt
    return x * scale


def logarithm_of_zero(x: Tensor) -> Tensor:
    """The logarithm of a probability that is zero."""
    probability = torch.softmax(x * 1000, dim=-1)
    return probability * probability.log()  # origin: log


def logarithm_of_negative(x: Tensor) -> Tensor:
    """The logarithm of a number below zero."""
    shifted = x - x.amax() - 1
    return shifted.log()  # origin: log


def logarithm_of_one_plus(x: Tensor) -> Tensor:
    """`log1p` at -1."""
    return torch.log1p(-torch.ones_like(x) * x / x)  # origin: log1p


def binary_logarithm(x: Tensor) -> Tensor:
    """`log2` of zero."""
    counts = x.relu() * 0
    return counts.log2()  # origin: log2


def entropy_of_negative(x: Tensor) -> Tensor:
    """`xlogy` of a negative number."""
    weights = x.abs()
    entropy: Tensor = torch.special.xlogy(weights, -weights)  # origin: xlogy
    return entropy


def division_by_zero(x: Tensor) -> Tensor:
    """A number over zero."""
    total = (x - x).sum(-1, keepdim=True)
    return x / total  # origin: division


def zero_over_zero(x: Tensor) -> Tensor:
    """A mean over no element."""
    mask = torch.zeros_like(x)
    mean = (x * mask).sum(-1) / mask.sum(-1)  # origin: division
    return mean[:, None] + x


def reciprocal_of_zero(x: Tensor) -> Tensor:
    """The reciprocal of zero."""
    width = (x * 0).abs()
    return width.reciprocal()  # origin: reciprocal


def branch_not_taken(x: Tensor) -> Tensor:
    """The branch of `where` that is not taken has an infinite gradient."""
    kept = x.abs() > 1e9
    return torch.where(kept, 1 / (x * 0), x)  # origin: division


def root_not_taken(x: Tensor) -> Tensor:
    """The root of the branch that is not taken."""
    radius = (x * 0).square().sum(-1, keepdim=True)
    return torch.where(radius > 0, radius.sqrt(), torch.zeros_like(radius))  # origin: sqrt


def exponential_of_large(x: Tensor) -> Tensor:
    """An exponential beyond the range."""
    score = x.abs() * 1000 + 100
    return torch.exp(score)  # origin: exp


def hyperbolic_sine(x: Tensor) -> Tensor:
    """`sinh` beyond the range."""
    return (x.abs() + 100).sinh()  # origin: sinh


def angle_at_boundary(x: Tensor) -> Tensor:
    """The gradient of `acos` at 1."""
    cosine = (x - x.detach()) + 1
    return torch.acos(cosine)  # origin: acos


def angle_outside(x: Tensor) -> Tensor:
    """`asin` beyond 1."""
    sine = x.abs() + 1.5
    return sine.asin()  # origin: asin


def inverse_hyperbolic(x: Tensor) -> Tensor:
    """`atanh` at 1."""
    return torch.atanh(x.sign())  # origin: atanh


def hyperbolic_boundary(x: Tensor) -> Tensor:
    """The gradient of `acosh` at 1."""
    ratio = 1 + (x - x.detach())
    return torch.acosh(ratio)  # origin: acosh


def power_of_negative(x: Tensor) -> Tensor:
    """A fractional power of a negative number."""
    gain = x - 100
    return gain**0.3  # origin: pow


def power_of_zero(x: Tensor) -> Tensor:
    """The gradient of a fractional power at zero."""
    luminance = x.relu() * 0
    return luminance.pow(1 / 2.2)  # origin: pow


def masked_softmax(x: Tensor) -> Tensor:
    """A row of attention without an allowed key."""
    mask = torch.ones(8, 8, dtype=torch.bool).tril()
    mask[3] = False
    scores = (x.mT @ x).masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1)  # origin: softmax


def masked_log_softmax(x: Tensor) -> Tensor:
    """Logits that are all masked."""
    logits = x + torch.full_like(x, -math.inf)
    return functional.log_softmax(logits, dim=-1)  # origin: log_softmax


def spread_of_one(x: Tensor) -> Tensor:
    """The standard deviation of one example."""
    single = x[:1]
    return (single - single.mean(0)) / single.std(0)  # origin: std


def variance_of_one(x: Tensor) -> Tensor:
    """The variance of one element."""
    return x[:, :1].var(dim=1)  # origin: var


def mean_of_nothing(x: Tensor) -> Tensor:
    """The mean over the examples that a condition chooses, which are none."""
    chosen = x[x > 1e9]
    return chosen.mean()  # origin: mean


def only_ignored_labels(x: Tensor) -> Tensor:
    """A loss over labels that are all ignored."""
    labels = torch.full((16,), -100)
    return functional.cross_entropy(x, labels)  # origin: cross_entropy


def likelihood_of_nothing(x: Tensor) -> Tensor:
    """The same with log-probabilities."""
    log_probabilities = x.log_softmax(-1)
    return functional.nll_loss(log_probabilities, torch.full((16,), 3), ignore_index=3)  # origin: nll_loss


def label_too_long(x: Tensor) -> Tensor:
    """CTC with a label that is longer than its frames."""
    frames = x.log_softmax(-1)[:4, None]
    label, lengths = torch.ones(1, 6, dtype=torch.long), torch.tensor([6])
    return functional.ctc_loss(frames, label, torch.tensor([4]), lengths)  # origin: ctc_loss


def label_repeats(x: Tensor) -> Tensor:
    """CTC with equal letters, which need a frame between them."""
    frames = x.log_softmax(-1)[:4, None]
    label = torch.ones(1, 4, dtype=torch.long)
    return functional.ctc_loss(frames, label, torch.tensor([4]), torch.tensor([4]))  # origin: ctc_loss


def half_overflow(x: Tensor) -> Tensor:
    """A square beyond the range of half precision."""
    large = (x.abs() + 300).half()
    return (large * large).float()  # origin: multiplication


def half_sum(x: Tensor) -> Tensor:
    """A sum beyond the range of half precision."""
    large = (x.abs() + 30_000).half()
    return large.sum(-1, keepdim=True).float()  # origin: sum


def normalization_without_epsilon(x: Tensor) -> Tensor:
    """A direction of length zero."""
    return functional.normalize(x * 0, dim=-1, eps=0.0)  # origin: normalize


def layer_normalization_without_epsilon(x: Tensor) -> Tensor:
    """A layer normalization of equal elements."""
    constant = x.mean(-1, keepdim=True).expand(16, 8) * 0
    return functional.layer_norm(constant, (8,), eps=0.0)  # origin: layer_norm


def logit_of_one(x: Tensor) -> Tensor:
    """The logit of a probability that is one."""
    probability = torch.sigmoid(x * 0 + 200)
    return torch.logit(probability)  # origin: logit


def inverse_error_function(x: Tensor) -> Tensor:
    """`erfinv` at 1."""
    return torch.erfinv(x.sign())  # origin: erfinv


def hypotenuse_of_zero(x: Tensor) -> Tensor:
    """The gradient of `hypot` at zero."""
    side = x - x.detach()
    return torch.hypot(side, side)  # origin: hypot


def determinant(x: Tensor) -> Tensor:
    """The logarithm of the determinant of a singular matrix."""
    matrix = x[:8] * 0
    return torch.logdet(matrix)  # origin: logdet


def quotient_added(x: Tensor) -> Tensor:
    """`addcdiv` with a denominator of zero."""
    return torch.addcdiv(x, x, x * 0)  # origin: addcdiv


def gamma_of_zero(x: Tensor) -> Tensor:
    """`lgamma` at zero."""
    return torch.lgamma(x * 0)  # origin: lgamma


def infinity_minus_infinity(x: Tensor) -> Tensor:
    """The difference of two infinities that the script gave."""
    bound = torch.full_like(x, math.inf)
    return x * 0 + (bound - bound.clone())  # origin: subtraction


def equal_eigenvalues(x: Tensor) -> Tensor:
    """The gradient of eigenvectors of equal eigenvalues."""
    matrix = torch.eye(8) + (x[:8] - x[:8].detach()) * 0
    vectors: Tensor = torch.linalg.eigh(matrix)[1]  # origin: linalg.eigh
    return vectors.square() * x[:8]


FAULTS: tuple[Piece, ...] = (
    root_of_zero, root_of_negative, inverse_root_of_zero, logarithm_of_zero, logarithm_of_negative,
    logarithm_of_one_plus, binary_logarithm, entropy_of_negative, division_by_zero, zero_over_zero, reciprocal_of_zero,
    branch_not_taken, root_not_taken, exponential_of_large, hyperbolic_sine, angle_at_boundary, angle_outside,
    inverse_hyperbolic, hyperbolic_boundary, power_of_negative, power_of_zero, masked_softmax, masked_log_softmax,
    spread_of_one, variance_of_one, mean_of_nothing, only_ignored_labels, likelihood_of_nothing, label_too_long,
    label_repeats, half_overflow, half_sum, normalization_without_epsilon, layer_normalization_without_epsilon,
    logit_of_one, inverse_error_function, hypotenuse_of_zero, determinant, quotient_added, gamma_of_zero,
    infinity_minus_infinity, equal_eigenvalues,
)  # fmt: skip


# --- what is finite in the end --------------------------------------------------------------------------------------


def causal_attention(x: Tensor) -> Tensor:
    """Scores that a softmax turns into zeros."""
    mask = torch.ones(8, 8, dtype=torch.bool).triu(1)
    return torch.softmax((x.mT @ x).masked_fill(mask, -math.inf), dim=-1)


def double_where(x: Tensor) -> Tensor:
    """A denominator that is made safe."""
    safe = torch.where(x > 0, x, torch.ones_like(x))
    return torch.where(x > 0, 1 / safe, torch.zeros_like(x)).clamp(max=10)


def detached_logarithm(x: Tensor) -> Tensor:
    """Infinities without a gradient that are replaced."""
    logarithm = (x.detach().relu()).log()
    return torch.where(logarithm.isfinite(), logarithm, torch.zeros_like(logarithm)) + x


def replaced_nan(x: Tensor) -> Tensor:
    """NaN that is replaced, without a gradient."""
    return torch.nan_to_num(x.detach() * 0 / 0) + x


def root_with_epsilon(x: Tensor) -> Tensor:
    """A root that is never taken of zero."""
    return ((x - x.detach()).square() + 1e-8).sqrt()


def length_of_zero(x: Tensor) -> Tensor:
    """A norm at zero, whose gradient torch defines as zero."""
    length: Tensor = (x * 0).norm(dim=-1, keepdim=True)
    return length


def biased_spread(x: Tensor) -> Tensor:
    """A variance over all elements of one example."""
    return x[:1].var(0, unbiased=False)


def some_ignored_labels(x: Tensor) -> Tensor:
    """A loss over labels of which some are ignored."""
    return functional.cross_entropy(x, torch.tensor([-100, 1] * 8))


def impossible_label_as_zero(x: Tensor) -> Tensor:
    """CTC that replaces infinite losses."""
    frames, label = x.log_softmax(-1)[:4, None], torch.ones(1, 6, dtype=torch.long)
    return functional.ctc_loss(frames, label, torch.tensor([4]), torch.tensor([6]), zero_infinity=True)


def pooled_padding(x: Tensor) -> Tensor:
    """A maximum over elements of which some are masked."""
    return x.masked_fill(x < 0, -math.inf).amax(-1, keepdim=True).clamp_min(0.0)


def sum_of_exponentials(x: Tensor) -> Tensor:
    """A sum over logits of which some are masked."""
    mask = torch.zeros_like(x).masked_fill(torch.arange(8) > 4, -math.inf)
    return torch.logsumexp(x + mask, dim=-1, keepdim=True)


def top_choices(x: Tensor) -> Tensor:
    """Logits of all but two choices are replaced."""
    top = x.topk(2, dim=-1)
    return torch.full_like(x, -math.inf).scatter(-1, top.indices, top.values).softmax(-1)


def filled_later(x: Tensor) -> Tensor:
    """Memory that is not initialized, until it is."""
    buffer = torch.empty_like(x)
    buffer[:8], buffer[8:] = x[:8], x[8:] * 2
    return buffer


def bounded_logarithm(x: Tensor) -> Tensor:
    """A logarithm that is clamped before."""
    return torch.softmax(x * 1000, dim=-1).clamp_min(1e-6).log() * 0.01


def saturated_sigmoid(x: Tensor) -> Tensor:
    """An exponential that overflows inside, to a finite result."""
    return 1 / (1 + torch.exp(-(x.detach() - 200))) + torch.sigmoid(x)


def attention_of_torch(x: Tensor) -> Tensor:
    """The attention of torch with a mask of infinities."""
    mask = torch.full((16, 16), -math.inf).triu(1)
    return functional.scaled_dot_product_attention(x[None], x[None], x[None], attn_mask=mask)[0]


def half_in_range(x: Tensor) -> Tensor:
    """Half precision within its range."""
    return (x.half() * 100).float() * 0.01


def infinite_bound(x: Tensor) -> Tensor:
    """The smallest of some numbers and infinity."""
    return torch.minimum(x, torch.full_like(x, math.inf))


def in_place(x: Tensor) -> Tensor:
    """Infinities that are overwritten in place."""
    limits = torch.full((16, 8), math.inf)
    limits.zero_().add_(1.0)
    return x * limits


def dropped_rows(x: Tensor) -> Tensor:
    """Rows with NaN that are left out."""
    marked = torch.cat([x, torch.full((1, 8), math.nan)])
    return marked[:16] * 1.0


FINITE: tuple[Piece, ...] = (
    causal_attention, double_where, detached_logarithm, replaced_nan, root_with_epsilon, length_of_zero, biased_spread,
    some_ignored_labels, impossible_label_as_zero, pooled_padding, sum_of_exponentials, top_choices, filled_later,
    bounded_logarithm, saturated_sigmoid, attention_of_torch, half_in_range, infinite_bound, in_place, dropped_rows,
)  # fmt: skip
