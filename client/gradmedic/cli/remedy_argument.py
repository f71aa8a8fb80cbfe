"""Reads the remedies of a candidate from a command line."""

from __future__ import annotations

import argparse
import re

from gradmedic.protocol.names import closest_first
from gradmedic.protocol.remedies import REMEDIES, Remedy

_REMEDY = re.compile(r"(\w+)(?:\((.*)\))?", re.DOTALL)


def parse_candidate(text: str) -> list[Remedy]:
    """Convert `clip_grad_norm(max_norm=1.0) + warm_up(steps=100)` to remedies.

    A parameter may be given by position, in the order of the remedy's parameters.

    >>> parse_candidate("clip_grad_norm(0.5)")
    [Remedy(id='clip_grad_norm', parameters={'max_norm': 0.5})]

    Raises:
        argparse.ArgumentTypeError: the text has another form.
    """
    return [_parse_remedy(part.strip()) for part in re.split(r"\+(?![^(]*\))", text)]


def _parse_remedy(text: str) -> Remedy:
    match = _REMEDY.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be like clip_grad_norm(max_norm=1.0), not {text!r}")
    id, arguments = match[1], (match[2] or "").strip()
    kind = REMEDIES.get(id)
    names = [] if kind is None else list(kind.parameters)
    parameters: dict[str, float | int | str | bool] = {}
    for position, argument in enumerate(part for part in arguments.split(",") if part.strip()):
        name, _, value = argument.rpartition("=")
        if not name:
            if kind is None:  # the order of its parameters is not known
                raise argparse.ArgumentTypeError(f"{id!r} is not one of {', '.join(closest_first(id, REMEDIES))}")
            if position >= len(names):
                raise argparse.ArgumentTypeError(f"name the parameter {argument.strip()!r} of {id}")
            name = names[position]
        parameters[name.strip()] = _parse_value(value.strip())
    return Remedy(id=id, parameters=parameters)


def _parse_value(text: str) -> float | int | str | bool:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")
