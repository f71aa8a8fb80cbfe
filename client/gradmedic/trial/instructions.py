"""The environment variables that a worker sets for a trial."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.remedies import Remedy
from gradmedic.trial.report import ReportFile

SEED_VARIABLE = "GRADMEDIC_SEED"
TRIAL_VARIABLE = "GRADMEDIC_TRIAL"
REPORT_VARIABLE = "GRADMEDIC_REPORT"
LARGEST_SEED = 2**32 - 1
"""The largest seed that numpy's generator takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialInstructions:
    """The content of `GRADMEDIC_TRIAL`, which is JSON."""

    remedies: list[Remedy] = field(default_factory=list)
    parameters: dict[str, float | int | str | bool | None] = field(default_factory=dict)
    steps: int | None = None
    """Number of steps after which the trial ends."""
    locate_from: int | None = None
    """Number of steps after which each operation is checked, to find the origin of a non-finite number; None in trials
    that do not look for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnvironment:
    """What the environment variables of this process contain."""

    seed: int | None = None
    instructions: TrialInstructions | None = None
    """None if this process is no trial."""
    report: ReportFile = field(default_factory=ReportFile)


def read_trial_environment() -> TrialEnvironment:
    """Read the environment variables.

    Raises:
        ConfigurationError: a variable has a wrong value.
    """
    text = os.environ.get(SEED_VARIABLE)
    try:
        seed = int(text) if text else None
    except ValueError:
        seed = -1
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise ConfigurationError(f"{SEED_VARIABLE} must be a whole number from 0 to {LARGEST_SEED}, not {text!r}")
    encoded = os.environ.get(TRIAL_VARIABLE)
    try:
        instructions = msgspec.json.decode(encoded.encode(), type=TrialInstructions) if encoded else None
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"{TRIAL_VARIABLE} must be what a worker writes: {error}") from None
    path = os.environ.get(REPORT_VARIABLE)
    return TrialEnvironment(seed=seed, instructions=instructions, report=ReportFile(Path(path) if path else None))


def with_parameters(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the trial's parameters in their places; dots lead into nested mappings.

    >>> with_parameters({"lr": 0.1, "model": {"depth": 3}}, {"lr": 0.2, "model.depth": 4})
    {'lr': 0.2, 'model': {'depth': 4}}
    """
    merged = dict(config)
    for name, value in parameters.items():
        first, _, rest = name.partition(".")
        inner = merged.get(first)
        if rest and name not in merged:
            merged[first] = with_parameters(inner if isinstance(inner, Mapping) else {}, {rest: value})
        else:
            merged[name] = value
    return merged
