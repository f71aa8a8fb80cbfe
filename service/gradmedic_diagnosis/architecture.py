"""The run's layers as index arrays: which are weight matrices, embeddings, recurrent, and in which order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol import layer_roles
from gradmedic.protocol.runs import Layer

SIGMOID_SLOPE = 0.25
"""Largest slope of the logistic sigmoid, at 0; the other activations have a slope of up to 1."""

CLOSED_BRANCH = 0.01
"""Factor between input and output of a layer below which it closes its branch at the start. LayerScale begins with 1e-5
or 1e-6 (Touvron et al. 2021), ReZero with 0 (Bachlechner et al. 2021); ordinary initializations with 0.4 or more."""

_GATED_KINDS = ("lstm", "gru", "lstmcell", "grucell")


PATHS_KEPT = 64
"""Largest number of paths that an architecture keeps, one for each pattern of present layers."""


@dataclass(frozen=True, slots=True, eq=False)
class DepthPath:
    """The present layers that are compared along depth."""

    layers: NDArray[np.intp]
    """Layer indices in forward order; of a model with embeddings or vectors only, all layers."""
    has_unit: NDArray[np.bool_]
    """`[layer of the path]`: whether the layer belongs to a stretch of depth."""
    starts: NDArray[np.intp]
    """Positions, among the layers with a stretch, at which each stretch begins; empty where there is no depth."""


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """The layers of a run as arrays `[layer]`. Where the client sent no role, kind or shape, the name decides."""

    names: tuple[str, ...]
    order: NDArray[np.intp]
    """Layer indices in forward order."""
    sqrt_numel: NDArray[np.float64]
    """Square root of the number of elements. It is 1 where the size is unknown, so that an RMS is then a norm."""
    depth_unit: NDArray[np.intp]
    """Number of the stretch of depth that the layer belongs to, in forward order: a residual block is one, since a
    gradient passes its layers by; so is each layer outside of a block. It is -1 for a layer that is not compared along
    depth: one that is not on the path, or in a block whose output starts near zero, as LayerScale and ReZero have it.
    Gradients are small there by design."""
    is_path: NDArray[np.bool_]
    """Whether the layer lies on the gradient's path through depth: a weight matrix that trains, no embedding."""
    is_input_side: NDArray[np.bool_]
    """Whether the layer is in the input-side half of the path."""
    is_frozen: NDArray[np.bool_]
    """Whether no optimizer updates the layer."""
    is_forgotten: NDArray[np.bool_]
    """Whether the layer is a matrix or embedding that wants a gradient although no optimizer updates it."""
    is_embedding: NDArray[np.bool_]
    """Whether the layer is an embedding that trains."""
    input_carriers: NDArray[np.intp]
    """Layers that the input passes through: weight matrices and embeddings that train; all layers if none does."""
    recurrent: tuple[int, ...]
    """Plain (ungated) hidden-to-hidden matrices."""
    largest_slope: NDArray[np.float64]
    """Largest slope of the activation behind the layer."""
    _paths: dict[bytes | None, DepthPath] = field(default_factory=dict, repr=False)

    def find_path(self, presence_key: bytes | None) -> DepthPath:
        """Return the layers along depth that are present, by a key of `Measurements`; with None, all of them."""
        path = self._paths.get(presence_key)
        if path is None:
            path = self._select_path(presence_key)
            if len(self._paths) < PATHS_KEPT:
                self._paths[presence_key] = path
        return path

    def _select_path(self, presence_key: bytes | None) -> DepthPath:
        layers = self.order[self.is_path[self.order]]
        if len(layers) == 0:  # only embeddings or vectors: there is no depth, but layers can be dead
            layers = self.order
        if presence_key is not None:
            layers = layers[np.frombuffer(presence_key, dtype=np.bool_)[layers]]
        units = self.depth_unit[layers]
        has_unit = units >= 0
        starts = np.flatnonzero(np.diff(units[has_unit], prepend=-1))
        if len(layers) < 2 or not self.is_path.any():
            starts = starts[:0]
        return DepthPath(layers, has_unit, starts)

    @property
    def has_product(self) -> bool:
        """Whether there are two weight tensors in a row. In one alone no gradient can vanish."""
        return int(np.count_nonzero(self.is_path | self.is_embedding)) >= 2

    @classmethod
    def from_layers(cls, layers: Sequence[Layer]) -> Architecture:
        """Derive the architecture from the layers."""
        depths = [(layer.depth if layer.depth is not None else i, i) for i, layer in enumerate(layers)]
        sizes = [layer_roles.count_elements(layer) for layer in layers]
        size_by_name = {layer.name: size for layer, size in zip(layers, sizes, strict=True)}
        is_path = np.array(
            [
                layer_roles.is_matrix(layer) and not layer.frozen and not layer_roles.is_gain(layer, size_by_name)
                for layer in layers
            ],
            dtype=np.bool_,
        )
        is_embedding = np.array(
            [layer_roles.is_embedding(layer) and not layer.frozen for layer in layers], dtype=np.bool_
        )
        order = np.array([i for _, i in sorted(depths)], dtype=np.intp)
        path = order[is_path[order]]
        is_input_side = np.zeros(len(layers), dtype=np.bool_)
        is_input_side[path[: (len(path) + 1) // 2]] = True
        carriers = np.flatnonzero(is_path | is_embedding)
        return cls(
            names=tuple(layer.name for layer in layers),
            order=order,
            depth_unit=_number_depth_units(layers, path),
            sqrt_numel=np.sqrt(np.array(sizes, dtype=np.float64)),
            is_path=is_path,
            is_input_side=is_input_side,
            is_frozen=np.array([layer.frozen for layer in layers], dtype=np.bool_),
            is_forgotten=np.array([_is_forgotten(layer) for layer in layers], dtype=np.bool_),
            is_embedding=is_embedding,
            input_carriers=carriers if len(carriers) else np.arange(len(layers), dtype=np.intp),
            recurrent=tuple(i for i, layer in enumerate(layers) if _is_plain_recurrent(layer)),
            largest_slope=np.array(
                [SIGMOID_SLOPE if layer.activation == "sigmoid" else 1.0 for layer in layers], dtype=np.float64
            ),
        )


def _is_forgotten(layer: Layer) -> bool:
    is_weight = layer_roles.is_matrix(layer) or layer_roles.is_embedding(layer)
    return is_weight and layer.frozen and layer.requires_grad is True


def _number_depth_units(layers: Sequence[Layer], path: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the stretch of depth of each layer `[layer]`."""
    units = np.full(len(layers), -1, dtype=np.intp)
    closed = {layer.block for layer in layers if layer.block is not None and _starts_near_zero(layer)}
    unit, previous = -1, None
    for i in path:
        block = layers[i].block if layers[i].branch else None
        if block is not None and block in closed:
            continue
        if block is None or block != previous:
            unit += 1
        units[i], previous = unit, block
    return units


def _starts_near_zero(layer: Layer) -> bool:
    """Whether a layer of a branch makes the output of the branch almost zero at the start."""
    if not layer.branch or layer.initial_rms is None or layer.role not in ("gain", "weight"):
        return False
    return layer.initial_rms * math.sqrt(layer.fan_in or 1) < CLOSED_BRANCH


def _is_plain_recurrent(layer: Layer) -> bool:
    if (layer.kind or "").lower() in _GATED_KINDS or not layer_roles.is_matrix(layer):
        return False
    if layer.shape is not None and (len(layer.shape) != 2 or 1 < min(layer.shape) != max(layer.shape)):
        return False  # a gated cell stacks its gates; clients send (1, n) where they know only the size n
    return layer_roles.is_recurrent(layer)
