"""Dials: parameters of remedies that act more strongly or more weakly, and the value to try next.

The values lie on the steps 1, 3, 10, 30, ... and their fractions. Between a value that is too weak and one that is too
strong lies their geometric mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from gradmedic.protocol.remedies import Remedy

MIN_RATIO = 2.0
"""Ratio of a value that is too weak to one that is too strong below which nothing between them is tried."""


@dataclass(frozen=True, slots=True)
class Dial:
    """The parameter of a remedy that is turned."""

    parameter: str
    is_stronger_if_smaller: bool = True
    neutral: float | None = None
    """Value at which the remedy changes nothing; None if there is none."""


DIALS: Mapping[str, Dial] = MappingProxyType(
    {
        "scale_learning_rate": Dial("factor", neutral=1.0),
        "limit_learning_rate": Dial("max_learning_rate"),
        "switch_optimizer": Dial("learning_rate"),
        "clip_grad_norm": Dial("max_norm"),
        "clip_grad_value": Dial("clip_value"),
        "clip_grad_norm_per_layer": Dial("max_norm"),
        "adaptive_clip": Dial("clipping"),
        "clip_update": Dial("threshold"),
        "warm_up": Dial("steps", is_stronger_if_smaller=False),
    }
)
"""The dial of each remedy that has one."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value that was tried, and what it showed."""

    value: float
    is_too_weak: bool
    """Whether the trial failed as the control did. Otherwise it was stable, and learned too little."""


def value_of(remedy: Remedy) -> float | None:
    """Return the value of a remedy's dial; None if it has none."""
    dial = DIALS.get(remedy.id)
    value = None if dial is None else remedy.parameters.get(dial.parameter)
    return None if value is None or isinstance(value, str) else float(value)


def turn(remedy: Remedy, value: float) -> Remedy:
    """Return a remedy with another value of its dial, of the same type as before."""
    dial = DIALS[remedy.id]
    is_whole = isinstance(remedy.parameters[dial.parameter], int)
    return Remedy(id=remedy.id, parameters={**remedy.parameters, dial.parameter: round(value) if is_whole else value})


def next_value(dial: Dial, tried: Setting, settings: Sequence[Setting]) -> float | None:
    """Return the value to try after one that was not right, given all values that were tried; None if none is left.

    >>> too_weak = Setting(0.3, is_too_weak=True)
    >>> next_value(DIALS["scale_learning_rate"], too_weak, [too_weak])
    0.1
    >>> too_strong = Setting(0.03, is_too_weak=False)
    >>> next_value(DIALS["scale_learning_rate"], too_weak, [too_weak, too_strong])
    0.095
    >>> next_value(DIALS["scale_learning_rate"], too_strong, [too_strong])
    0.1
    """
    goes_down = tried.is_too_weak == dial.is_stronger_if_smaller
    beyond = [
        other.value
        for other in settings
        if other.is_too_weak != tried.is_too_weak and (other.value < tried.value) == goes_down
    ]
    if beyond:
        bound = max(beyond) if goes_down else min(beyond)
        ratio = max(bound, tried.value) / min(bound, tried.value)
        value = float(f"{math.sqrt(bound * tried.value):.2g}") if ratio > MIN_RATIO else None
    else:
        value = _neighbour(tried.value, goes_down=goes_down)
    return None if value in {other.value for other in settings} else value


def _neighbour(value: float, *, goes_down: bool) -> float:
    """Return the next lower or higher value of 1, 3, 10, 30, ... and their fractions.

    >>> [_neighbour(value, goes_down=True) for value in (0.5, 0.3, 0.1, 1.0, 20.0)]
    [0.1, 0.1, 0.03, 0.3, 10.0]
    """
    place = round(2 * math.log10(value)) + (-1 if goes_down else 1)
    return float(f"{3 if place % 2 else 1}e{place // 2}")
