"""The layers of a run: an append-only list, because the position of a layer never changes once it is sent."""

from __future__ import annotations

from collections.abc import Iterable

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.names import LONGEST_NAME
from gradmedic.protocol.runs import Layer
from gradmedic.recording.facts import check_layer
from gradmedic.recording.one_time_warnings import OneTimeWarnings


class LayerRegistry:
    """The layers of a run, each with its own name. The training thread writes; any thread may read `snapshot()`.

    Args:
        warnings: take the facts about layers that are left out.
    """

    def __init__(self, warnings: OneTimeWarnings | None = None) -> None:
        self._warn = (warnings or OneTimeWarnings()).warn
        self._layers: list[Layer] = []
        self._positions: dict[str, int] = {}
        self._reserved: set[str] = set()
        self._released: set[str] = set()

    def __len__(self) -> int:
        return len(self._layers)

    def reserve(self, names: Iterable[str]) -> None:
        """Reserve names for layers that are added later.

        Raises:
            ConfigurationError: a name is taken.
        """
        names = list(names)
        taken = sorted(self._reserved.union(self._positions.keys() - self._released).intersection(names))
        if taken:
            raise ConfigurationError(
                f"layer {taken[0]!r} of another model is watched already: give each model a prefix, as "
                "watch(..., prefix='generator.'), or call run.unwatch() first if the other one trains no more"
            )
        self._reserved.update(names)

    def release(self, names: Iterable[str], positions: Iterable[int]) -> None:
        """Let layers be reserved and added again.

        Args:
            names: names that were reserved.
            positions: positions of the layers that were added.
        """
        self._reserved.difference_update(names)
        self._released.update(self._layers[position].name for position in positions)

    def add(self, layer: Layer) -> int:
        """Append a layer and return its position. If its name exists, a number is appended to the name.

        A layer that was released and has the same shape keeps its position.
        """
        layer = check_layer(layer, self._warn)
        name, copies = layer.name, 1
        while name in self._positions:
            position = self._positions[name]
            shape = self._layers[position].shape
            if name in self._released and (shape == layer.shape or shape is None or layer.shape is None):
                self._released.remove(name)
                return position
            copies += 1
            suffix = f"#{copies}"
            name = layer.name[: LONGEST_NAME - len(suffix)] + suffix
        if name != layer.name:
            layer = Layer(name=name, shape=layer.shape, numel=layer.numel, frozen=layer.frozen)
        self._positions[name] = len(self._layers)
        self._layers.append(layer)
        return len(self._layers) - 1

    def position(self, name: str) -> int | None:
        """Return the position of a layer, or None if there is none of that name."""
        return self._positions.get(name)

    def snapshot(self) -> list[Layer]:
        """Return the layers so far."""
        return self._layers[:]
