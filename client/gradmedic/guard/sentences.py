"""The sentences that explain what a guard did, for logs, errors and the run's page."""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST_NAME = 200
"""Characters of a layer's name that a sentence has at most."""


def describe_nonfinite(names: Sequence[str], layers: int) -> str:
    """Return which layers have a gradient that is not finite.

    Args:
        names: these layers, in the order of the model; none if another process holds them.
        layers: number of layers with a gradient.
    """
    if not names:
        return "The gradient is not finite"
    # A NaN spreads from where it is born towards the inputs, so the last layer is the nearest to its birth.
    where = f"the last of them {names[-1][:_LONGEST_NAME]}" if len(names) > 1 else names[0][:_LONGEST_NAME]
    return f"The gradient is not finite in {len(names)} of {layers} layers, {where}"


def describe_skipped_nonfinite(names: Sequence[str], layers: int) -> str:
    """Return why a step with a gradient that is not finite was not taken."""
    return f"{describe_nonfinite(names, layers)}: the step was not taken."


def describe_standstill(steps: int) -> str:
    """Return that skipping does not help."""
    return (
        f"{steps} steps in a row had a gradient that is not finite. Such steps are still not taken, but the training "
        "stands still."
    )


def describe_spike(norm: float, limit: float) -> str:
    """Return why a step with a spike was not taken."""
    return f"The norm of the gradient, {norm:.4g}, is far above the usual ones (limit {limit:.4g}): no step was taken."


def describe_clipping(max_norm: float) -> str:
    """Return that gradients are clipped."""
    return f"The gradients are clipped to the norm {max_norm:.4g} from now on, as the diagnosis advises."
