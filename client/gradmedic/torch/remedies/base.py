"""The base of every class that applies a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal


class NotApplicable(Exception):
    """A remedy cannot be applied to this model or optimizer; the message contains the reason."""


class TorchRemedy:
    """A remedy of the catalogue, as it is applied to torch objects.

    Args:
        parameters: of the remedy, by name. They were checked against the catalogue.
    """

    id: str
    """Id of the remedy in the catalogue. A class without an id is only a base of others."""
    kind: ClassVar[Literal["optimizer", "modules"]]
    """What has to be changed: the optimizer of any model, or modules of a model that allows it."""
    order: ClassVar[int] = 0
    """Remedies that act at the same moment act in this order, the smallest number first."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.parameters = parameters
