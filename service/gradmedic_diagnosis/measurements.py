"""From a block to what the detectors read: one row a sampled step, reduced and scale-free.

One idea: everything is computed for a whole block at once, elementwise or along one step's layers, so that a number
does not depend on how the steps were cut into blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradmedic_diagnosis.block import Block
from gradmedic_diagnosis.facts import LayerFacts

_EMBEDDING_KINDS = ("embedding", "embeddingbag")
_RECURRENT_NAME = re.compile(
    r"(^|[._/])(weight_hh|w_hh|hh|h2h|recurrent_kernel|recurrent)([._/]|_l\d|$)", re.IGNORECASE
)
_GATED_KINDS = ("lstm", "gru", "lstmcell", "grucell")
_EMBEDDING_NAME = re.compile(r"(^|[._])(emb\w*|wte|wpe|pos)([._]|$)", re.IGNORECASE)
_VECTOR_NAME = re.compile(r"(bias|beta|gamma|(norm|bn|ln)[\w]*[._]weight)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """The layers of a run as index arrays `[layer]`, from facts where there are any and from names where not."""

    names: tuple[str, ...]
    order: NDArray[np.intp]
    """Layer indices in forward order."""
    sqrt_numel: NDArray[np.float64]
    """1 where the size is unknown, so that an RMS is then a norm."""
    is_path: NDArray[np.bool_]
    """Weight matrices that the gradient's path through depth is read from: not frozen, not an embedding."""
    is_embedding: NDArray[np.bool_]
    """Embeddings that train."""
    carriers: NDArray[np.intp]
    """Layers that inputs pass through: weight matrices and embeddings that train; all layers where there are none."""
    recurrent: tuple[int, ...]
    """Plain (ungated) hidden-to-hidden matrices."""
    recurrent_slope: NDArray[np.float64]
    """Largest slope of the activation behind each layer: 1/4 for a sigmoid, else 1."""

    @property
    def has_product(self) -> bool:
        """Whether there are two weight tensors in a row: in one alone no gradient can vanish."""
        return int(np.count_nonzero(self.is_path | self.is_embedding)) >= 2

    @classmethod
    def of(cls, layers: Sequence[LayerFacts]) -> Architecture:
        """Read the architecture off the layers."""
        depth = [(layer.depth if layer.depth is not None else i, i) for i, layer in enumerate(layers)]
        sizes = [_numel(layer) for layer in layers]
        size_of = {layer.name: size for layer, size in zip(layers, sizes, strict=True)}
        is_path = np.array(
            [_is_matrix(layer) and not layer.frozen and not _is_gain(layer, size_of) for layer in layers],
            dtype=np.bool_,
        )
        is_embedding = np.array([_is_embedding(layer) and not layer.frozen for layer in layers], dtype=np.bool_)
        carriers = np.flatnonzero(is_path | is_embedding)
        return cls(
            names=tuple(layer.name for layer in layers),
            order=np.array([i for _, i in sorted(depth)], dtype=np.intp),
            sqrt_numel=np.sqrt(np.array(sizes, dtype=np.float64)),
            is_path=is_path,
            is_embedding=is_embedding,
            carriers=carriers if len(carriers) else np.arange(len(layers), dtype=np.intp),
            recurrent=tuple(i for i, layer in enumerate(layers) if _is_plain_recurrent(layer)),
            recurrent_slope=np.array(
                [0.25 if layer.activation == "sigmoid" else 1.0 for layer in layers], dtype=np.float64
            ),
        )


def _numel(layer: LayerFacts) -> int:
    if layer.numel is not None:
        return max(1, layer.numel)
    return max(1, int(np.prod(layer.shape))) if layer.shape is not None else 1


def _is_embedding(layer: LayerFacts) -> bool:
    if layer.role is not None:
        return layer.role == "embedding"
    return (layer.kind or "").lower() in _EMBEDDING_KINDS or _EMBEDDING_NAME.search(layer.name) is not None


def _is_matrix(layer: LayerFacts) -> bool:
    if layer.role is not None:
        return layer.role in ("weight", "recurrent")
    if _is_embedding(layer) or (layer.shape is not None and len(layer.shape) < 2):
        return False
    return _VECTOR_NAME.search(layer.name) is None


def _is_gain(layer: LayerFacts, size_of: Mapping[str, int]) -> bool:
    """Whether a `weight` of unknown shape is as large as its `bias`: a normalization's gain, not a matrix."""
    if layer.shape is not None or layer.role is not None or not layer.name.endswith("weight"):
        return False
    return size_of.get(layer.name.removesuffix("weight") + "bias") == size_of[layer.name] > 1


def _is_plain_recurrent(layer: LayerFacts) -> bool:
    if (layer.kind or "").lower() in _GATED_KINDS or not _is_matrix(layer):
        return False
    if layer.shape is not None and (len(layer.shape) != 2 or 1 < min(layer.shape) != max(layer.shape)):
        return False  # a gated cell stacks its gates; (1, n) is a client's way to say n elements
    return layer.role == "recurrent" or (layer.role is None and _RECURRENT_NAME.search(layer.name) is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """What one block says, a row a sampled step. `[row]` or `[row, layer]`, float64, NaN where not known."""

    present: NDArray[np.bool_]
    log_rms: NDArray[np.float64]
    """log10 of the root mean square of the gradient; NaN where absent, non-finite or exactly 0."""
    is_zero: NDArray[np.bool_]
    """The gradient is exactly 0 in every element."""
    nonfinite: NDArray[np.float64]
    """NaN and Inf elements; an infinite norm alone (an overflow) is not one."""
    weight_norm: NDArray[np.float64]
    update_norm: NDArray[np.float64]
    total_gradient: NDArray[np.float64]
    """L2 norm over the present layers; inf where a norm overflowed."""
    total_weight: NDArray[np.float64]
    update_ratio: NDArray[np.float64]
    """Network-wide L2 of the update over that of the weights, present layers only."""
    grip: NDArray[np.float64]
    """Largest product of a weight tensor's gradient and weight norms: what the loss would change by, were the layer to
    change by its own size. A bias does not count, where there are matrices or embeddings: an output bias always has a
    grip, and no input passes through it."""
    nonfinite_total: NDArray[np.float64]
    """`[row]` NaN and Inf elements of all gradients."""
    reaches_weights: NDArray[np.bool_]
    """`[row]` a weight or an update is non-finite; where no such norms are sent, a gradient is."""
    sends_weights: bool
    """Whether weight and update norms are among the run's statistics."""
    saturation: NDArray[np.float64] | None
    """`[row, layer]` share of saturated activations; 0 where the layer is absent, None where none are watched."""
    group: list[bytes]
    """Which layers were present: a key that alternating optimizers (a GAN) differ in."""

    def __len__(self) -> int:
        return len(self.group)


def measure(block: Block, architecture: Architecture) -> Measurements:
    """Reduce a block. A run need send nothing but `grad_norm`; what follows from other statistics is then NaN."""
    rows, layers = block.present.shape
    column = {name: i for i, name in enumerate(block.statistics)}

    def statistic(name: str) -> NDArray[np.float64]:
        if name not in column:
            return np.full((rows, layers), np.nan)
        return block.values[:, :, column[name]].astype(np.float64)

    present = block.present
    watches_activations = "activation_saturation" in column
    gradient, weight, update = statistic("grad_norm"), statistic("weight_norm"), statistic("update_norm")
    nonfinite = statistic("nonfinite_count") if "nonfinite_count" in column else np.isnan(gradient).astype(np.float64)
    nonfinite = np.where(present, nonfinite, 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_rms = np.log10(gradient / architecture.sqrt_numel)
        log_rms[~(present & np.isfinite(log_rms) & (nonfinite == 0))] = np.nan
        total_gradient = np.sqrt(np.square(np.where(present, gradient, 0.0)).sum(axis=1))
        total_weight = np.sqrt(np.square(np.where(present, weight, 0.0)).sum(axis=1))
        update_ratio = np.sqrt(np.square(np.where(present, update, 0.0)).sum(axis=1)) / total_weight
        grip = np.fmax.reduce(
            np.where(present, gradient * weight, np.nan)[:, architecture.carriers], axis=1, initial=0.0
        )
    touched = present.any(axis=1)
    total_gradient[~touched] = np.nan
    total_weight[~touched] = np.nan
    update_ratio[~touched] = np.nan
    nonfinite_total = nonfinite.sum(axis=1)
    sends_weights = "weight_norm" in column and "update_norm" in column
    if sends_weights:
        reaches = np.logical_or.reduce(present & ~(np.isfinite(weight) & np.isfinite(update)), axis=1)
    else:
        reaches = nonfinite_total > 0
    if rows and (present == present[0]).all():
        group = [present[0].tobytes()] * rows
    else:
        group = [row.tobytes() for row in present]
    return Measurements(
        present=present,
        log_rms=log_rms,
        is_zero=present & (gradient == 0) & (nonfinite == 0),
        nonfinite=nonfinite,
        weight_norm=weight,
        update_norm=update,
        total_gradient=total_gradient,
        total_weight=total_weight,
        update_ratio=update_ratio,
        grip=grip,
        nonfinite_total=nonfinite_total,
        reaches_weights=reaches,
        sends_weights=sends_weights,
        saturation=np.where(present, statistic("activation_saturation"), 0.0) if watches_activations else None,
        group=group,
    )
