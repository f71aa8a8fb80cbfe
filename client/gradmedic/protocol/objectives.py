"""The grammar of an objective as a text, such as `maximize reward`, in `init()` and in `worker.toml`."""

from __future__ import annotations

from gradmedic.protocol.names import name_error
from gradmedic.protocol.runs import DIRECTIONS, Objective
from gradmedic.protocol.statistics import SERIES, STATISTICS

MINIMIZE_LOSS = "minimize loss"
"""The objective of a run that declares none."""


def parse_objective(text: object) -> Objective:
    """Return what counts as progress, from a text such as `minimize loss`, `maximize reward` or `none`.

    Raises:
        ValueError: It is no such text. The message continues a sentence that begins with the name of the field.

    >>> parse_objective("maximize val accuracy")
    Objective(kind='metric', metric='val accuracy', direction='maximize')
    """
    words = text.split(maxsplit=1) if isinstance(text, str) else []
    if words == ["none"]:
        return Objective(kind="none")
    if len(words) != 2 or words[0] not in DIRECTIONS:
        raise ValueError(
            f'must be "{MINIMIZE_LOSS}", "minimize METRIC" or "maximize METRIC" with the name of a metric that '
            f'the run logs, or "none", not {text!r}'
        )
    direction, metric = words[0], words[1].strip()
    if metric == "loss":
        return Objective(kind="loss", direction=direction)
    if (error := name_error(metric)) is not None:
        raise ValueError(f"names a metric that cannot be logged: its name {error}")
    if metric in SERIES or metric in STATISTICS:
        raise ValueError(f"must name the loss or a metric, and {metric!r} is neither")
    return Objective(kind="metric", metric=metric, direction=direction)


def format_objective(objective: Objective) -> str:
    """Return an objective as the text that `parse_objective` reads.

    >>> format_objective(parse_objective(" maximize  reward"))
    'maximize reward'
    """
    return "none" if objective.kind == "none" else f"{objective.direction} {objective.metric or objective.kind}"
