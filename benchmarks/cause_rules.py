"""The causes that other systems' rules name on a recording, to compare with.

UMLAUT: Schoop et al., UMLAUT: Debugging Deep Learning Programs using Program Structure and Model Behavior (CHI 2021),
and its code (github.com/BerkeleyHCI/umlaut, `heuristics.py` and `errors.py`). AUTOTRAINER: Zhang et al. (ICSE 2021).

Both name symptoms or pieces of advice. Each is mapped to the names of the causes that its text states, in the order of
its text, so that a rule counts as right wherever its text would lead the user to the true cause:

- UMLAUT "Input data exceeds typical limits" (outside -1 to 1): unscaled inputs.
- UMLAUT "Learning rate is high" (above 0.01, the upper end of the range that it recommends): learning rate too high.
- UMLAUT "NaN in loss ... could be caused by a learning rate that is too high": learning rate too high, non-finite loss.
- UMLAUT "Loss function expects normalized input" (a negative log-likelihood without a softmax): loss mismatch.
- AUTOTRAINER exploding gradients (clipping, initialization, normalization): missing clipping, poor initialization.
- AUTOTRAINER vanishing gradients (activation, normalization, initialization): saturating activation, missing
  normalization.
- AUTOTRAINER dying ReLU: dead units, poor initialization.
- AUTOTRAINER oscillating loss (a smaller learning rate): learning rate too high.

UMLAUT's rules of accuracy, overfitting, integer inputs and missing activations name none of these causes, and a
recording has no accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus.causes.loading import CauseRun
from benchmarks.reference_rules import dying_relu, exploding_over_depth, is_not_learning, vanishing_over_depth

LARGEST_INPUT: Final = 1.0
LARGEST_RATE: Final = 0.01
OSCILLATION: Final = 0.03
"""AUTOTRAINER's threshold of the share of steps on which accuracy falls. The loss stands in for accuracy."""
OSCILLATING_SHARE: Final = 0.3
READ: Final = ("grad_norm", "grad_zero_fraction", "nonfinite_count", "weight_norm", "update_norm")


def to_arrays(run: CauseRun) -> dict[str, NDArray[Any]]:
    """Return a run as the reference rules read it. Steps that were not sampled are left out."""
    block = run.block
    loss = block.series["loss"].values if "loss" in block.series else np.zeros(len(block))
    columns = {name: index for index, name in enumerate(block.statistics)}
    values = np.where(block.present[:, :, None], block.values, np.nan)
    width = block.values.shape[1]
    return {
        "loss": np.asarray(loss, dtype=float)[block.sampled],
        "numel": np.array([layer.numel or 1 for layer in run.layers[:width]]),
        "ndim": np.array([len(layer.shape or ()) for layer in run.layers[:width]]),
        "frozen": np.array([bool(layer.frozen) for layer in run.layers[:width]]),
        **{name: values[:, :, columns[name]] for name in READ},
    }


def name_by_umlaut(run: CauseRun) -> tuple[str, ...]:
    """Return the causes that UMLAUT's rules name: those that it finds before the training first."""

    def rules() -> Iterator[str]:
        operations = run.training.loss.operations if run.training.loss else []
        if operations[:1] == ["NllLoss"] and not any("Softmax" in operation for operation in operations):
            yield "loss_mismatch"
        if (run.training.input_abs_max or 0.0) > LARGEST_INPUT:
            yield "unscaled_inputs"
        if any((optimizer.learning_rate or 0.0) > LARGEST_RATE for optimizer in run.training.optimizers):
            yield "learning_rate_too_high"
        loss = run.block.series.get("loss")
        if loss is not None and bool(np.isnan(loss.values[loss.present]).any()):
            yield "learning_rate_too_high"
            yield "nonfinite_loss"

    return tuple(dict.fromkeys(rules()))


def name_by_autotrainer(run: CauseRun) -> tuple[str, ...]:
    """Return the causes that AUTOTRAINER's rules name, in its order of checks, where the loss does not fall."""

    def rules() -> Iterator[str]:
        arrays = to_arrays(run)
        if not len(arrays["loss"]):
            return
        with np.errstate(all="ignore"):
            gate = is_not_learning(arrays)
            if exploding_over_depth(arrays).any():
                yield "missing_clipping"
                yield "poor_initialization"
            if (vanishing_over_depth(arrays) & gate).any():
                yield "saturating_activation"
                yield "missing_normalization"
            if (dying_relu(arrays) & gate).any():
                yield "dead_units"
                yield "poor_initialization"
            loss = arrays["loss"]
            rises = np.diff(loss) > OSCILLATION * np.abs(loss[:-1])
            if gate[-1] and len(rises) and float(rises.mean()) >= OSCILLATING_SHARE:
                yield "learning_rate_too_high"

    return tuple(dict.fromkeys(rules()))


RULES: Final[dict[str, Callable[[CauseRun], tuple[str, ...]]]] = {
    "UMLAUT": name_by_umlaut,
    "AUTOTRAINER, loss gate": name_by_autotrainer,
}
