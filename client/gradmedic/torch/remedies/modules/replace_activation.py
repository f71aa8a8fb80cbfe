"""The remedy that replaces hidden activations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from gradmedic.torch.remedies.module_remedy import AppliedPlaces, CallRemedy
from gradmedic.torch.remedies.modules.changed_calls import ACTIVATION_NAMES, CallChange
from gradmedic.torch.remedies.modules.places import Places


class ReplaceActivation(CallRemedy):
    """Calls `activation` in place of every other hidden activation, be it a module or a function."""

    id = "replace_activation"
    order = 10

    def change_calls(
        self,
        part: nn.Module,  # noqa: ARG002
        places: Places,
        *,
        is_copy: bool,  # noqa: ARG002
    ) -> tuple[AppliedPlaces, Sequence[CallChange]]:
        """Return the calls to replace."""
        activation = str(self.parameters["activation"])
        replaced = [place for place, function in places.activations if function != ACTIVATION_NAMES[activation]]
        if places.activations:
            reason = f"every hidden activation is {activation} already"
        else:
            reason = places.explain_none("no hidden activation")
        changes = [CallChange(place, activation=activation) for place in replaced]
        return AppliedPlaces([place.owner or "forward" for place in replaced], reason), changes
