"""Leaves out a step of any optimizer: while it has no gradients, it changes neither weights nor its state."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


class HiddenGradients:
    """Gradients that are hidden for the length of a step."""

    def __init__(self) -> None:
        self._hidden: list[tuple[Tensor, Tensor]] = []

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters whose gradients are hidden."""
        return [parameter for parameter, _ in self._hidden]

    def hide(self, parameters: Iterable[Tensor]) -> None:
        """Remove the gradients of some parameters until `show` is called."""
        for parameter in parameters:
            if parameter.grad is not None:
                self._hidden.append((parameter, parameter.grad))
                parameter.grad = None

    def show(self) -> None:
        """Give the gradients back. A parameter that has a new gradient, after a step that raised, keeps that."""
        for parameter, gradient in self._hidden:
            if parameter.grad is None:
                parameter.grad = gradient
        self._hidden.clear()
