"""The base of every class that applies a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gradmedic.protocol.remedies import REMEDIES
from gradmedic.protocol.remedy_kind import Target


class NotApplicable(Exception):
    """A remedy cannot be applied to this model or optimizer; the message contains the reason."""


class TorchRemedy:
    """A remedy of the catalogue, as it is applied to torch objects.

    Args:
        parameters: parameters of the remedy, by name. They were checked against the catalogue.
    """

    id: str
    """Id of the remedy in the catalogue. A class without an id is only a base of others."""
    order: ClassVar[int] = 0
    """Remedies that act at the same moment act in this order, the smallest number first."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.parameters = parameters

    @property
    def targets(self) -> frozenset[Target]:
        """The parts of the training that the remedy changes, as the catalogue names them."""
        return REMEDIES[self.id].targets
