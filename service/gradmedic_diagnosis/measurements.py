"""Measurements: one block reduced to what the detectors read, one row per sampled step.

All numbers are computed for the whole block at once, elementwise or along one step's layers. So no number depends on
how the steps were cut into blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.block import Block

HEALTHY_UPDATE_RATIO = 1e-3
"""Update norm over weight norm per step of healthy training (Karpathy 2015)."""


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """The measurements of one block: `[row]` or `[row, layer]`, a row per sampled step; NaN where unknown."""

    present: NDArray[np.bool_]
    """`[row, layer]`: whether an optimizer touched the layer."""
    log_rms: NDArray[np.float64]
    """`[row, layer]`: log10 of the gradient's root mean square; NaN where it is absent, non-finite or exactly 0."""
    is_zero: NDArray[np.bool_]
    """`[row, layer]`: whether every element of the gradient is exactly 0."""
    nonfinite_count: NDArray[np.float64]
    """`[row, layer]`: NaN and Inf elements. An infinite norm alone (an overflow) counts as none."""
    weight_norm: NDArray[np.float64]
    """`[row, layer]`: L2 norm of the weights."""
    total_gradient_norm: NDArray[np.float64]
    """`[row]`: L2 norm over the present layers; inf where a norm overflowed."""
    total_weight_norm: NDArray[np.float64]
    """`[row]`: L2 norm over the present layers."""
    update_ratio: NDArray[np.float64]
    """`[row]`: L2 norm of the update over that of the weights, both over the present layers."""
    input_side_update_ratio: NDArray[np.float64]
    """`[row]`: the same over the input-side half of the weight matrices on the path; NaN where none is present."""
    gradient_weight_product: NDArray[np.float64]
    """`[row]`: largest product of a weight tensor's gradient norm and weight norm.

    The loss would change by this much if the layer changed by its own size along the gradient. Where there are
    matrices or embeddings, biases do not count: an output bias always has a large product, and no input passes it.
    """
    input_side_product: NDArray[np.float64]
    """`[row]`: the same over the input-side half of the weight matrices on the path; 0 where there is none."""
    total_nonfinite_count: NDArray[np.float64]
    """`[row]`: NaN and Inf elements of all gradients."""
    has_nonfinite_weights: NDArray[np.bool_]
    """`[row]`: whether a weight or update is non-finite; where no such norms are sent, whether a gradient is."""
    has_weight_norms: bool
    """Whether the run sends weight and update norms."""
    saturation: NDArray[np.float64] | None
    """`[row, layer]`: share of saturated activations, 0 where absent; None where no activations are watched."""
    presence_keys: list[bytes]
    """`[row]`: a key of the layers that were present. Optimizers that take turns, as in a GAN, have different keys."""

    def __len__(self) -> int:
        return len(self.presence_keys)


def measure(block: Block, architecture: Architecture) -> Measurements:
    """Reduce a block. Only `grad_norm` is required; what needs another statistic is NaN without it."""
    rows, layers = block.present.shape
    column = {name: i for i, name in enumerate(block.statistics)}

    def read_statistic(name: str) -> NDArray[np.float64]:
        if name not in column:
            return np.full((rows, layers), np.nan)
        return block.values[:, :, column[name]].astype(np.float64)

    present = block.present
    gradient, weight, update = (read_statistic(name) for name in ("grad_norm", "weight_norm", "update_norm"))
    nonfinite_count = (
        read_statistic("nonfinite_count") if "nonfinite_count" in column else np.isnan(gradient).astype(np.float64)
    )
    nonfinite_count = np.where(present, nonfinite_count, 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_rms = np.log10(gradient / architecture.sqrt_numel)
        log_rms[~(present & np.isfinite(log_rms) & (nonfinite_count == 0))] = np.nan
        total_gradient_norm = np.sqrt(np.square(np.where(present, gradient, 0.0)).sum(axis=1))
        total_weight_norm = np.sqrt(np.square(np.where(present, weight, 0.0)).sum(axis=1))
        update_ratio = np.sqrt(np.square(np.where(present, update, 0.0)).sum(axis=1)) / total_weight_norm
        on_input_side = present & architecture.is_input_side
        input_side_update_ratio = np.sqrt(
            np.square(np.where(on_input_side, update, 0.0)).sum(axis=1)
            / np.square(np.where(on_input_side, weight, 0.0)).sum(axis=1)
        )
        product = np.where(present, gradient * weight, np.nan)
        gradient_weight_product = np.fmax.reduce(product[:, architecture.input_carriers], axis=1, initial=0.0)
        input_side_product = np.fmax.reduce(product[:, architecture.is_input_side], axis=1, initial=0.0)
    is_empty = ~present.any(axis=1)
    total_gradient_norm[is_empty] = np.nan
    total_weight_norm[is_empty] = np.nan
    update_ratio[is_empty] = np.nan
    total_nonfinite_count = nonfinite_count.sum(axis=1)
    has_weight_norms = "weight_norm" in column and "update_norm" in column
    if has_weight_norms:
        is_finite = np.isfinite(weight) & np.isfinite(update)
        has_nonfinite_weights = np.logical_or.reduce(present & ~is_finite, axis=1)
    else:
        has_nonfinite_weights = total_nonfinite_count > 0
    if rows and (present == present[0]).all():
        presence_keys = [present[0].tobytes()] * rows
    else:
        presence_keys = [row.tobytes() for row in present]
    saturation = None
    if "activation_saturation" in column:
        saturation = np.where(present, read_statistic("activation_saturation"), 0.0)
    return Measurements(
        present=present,
        log_rms=log_rms,
        is_zero=present & (gradient == 0) & (nonfinite_count == 0),
        nonfinite_count=nonfinite_count,
        weight_norm=weight,
        total_gradient_norm=total_gradient_norm,
        total_weight_norm=total_weight_norm,
        update_ratio=update_ratio,
        input_side_update_ratio=input_side_update_ratio,
        gradient_weight_product=gradient_weight_product,
        input_side_product=input_side_product,
        total_nonfinite_count=total_nonfinite_count,
        has_nonfinite_weights=has_nonfinite_weights,
        has_weight_norms=has_weight_norms,
        saturation=saturation,
        presence_keys=presence_keys,
    )
