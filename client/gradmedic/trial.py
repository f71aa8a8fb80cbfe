"""What a script is told when it runs as a trial: its seed, its remedies, its parameters, and where it ends.

One idea: the script stays as it is. Whoever starts it says the rest in environment variables; `gradmedic.init()` and
`Run.watch()` do it. What the trial has to say beside its steps goes to a small file that its launcher reads.

`GRADMEDIC_SEED` works for every run: with it a script does by hand what it does in a trial.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.trials import TrialReport

SEED_VARIABLE = "GRADMEDIC_SEED"
TRIAL_VARIABLE = "GRADMEDIC_TRIAL"
REPORT_VARIABLE = "GRADMEDIC_REPORT"
LARGEST_SEED = 2**32 - 1
"""What numpy's generator takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialInstructions:
    """What `GRADMEDIC_TRIAL` says, as JSON."""

    remedies: list[Remedy] = field(default_factory=list)
    parameters: dict[str, float | int | str | bool | None] = field(default_factory=dict)
    steps: int | None = None
    """After which the trial ends."""


class TrialEnded(SystemExit):
    """The trial is over: its steps are done, it was stopped, or its remedies do not apply. Ends the script with 0."""

    def __init__(self, reason: str) -> None:
        super().__init__(0)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Report:
    """The report of a trial. Each change is written at once, and the file is always complete.

    Args:
        path: of the file; None writes nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._report = TrialReport()

    def update(self, **fields: Any) -> None:
        """Set fields of the `TrialReport`."""
        self._report = replace(self._report, **fields)
        if self._path is not None:
            draft = self._path.with_suffix(".draft")
            draft.write_text(json.dumps(self._report.to_fields()))
            draft.replace(self._path)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnvironment:
    """How this process was started."""

    seed: int | None
    order: TrialInstructions | None
    """None if this is no trial."""
    report: Report

    @property
    def remedies(self) -> list[Remedy]:
        """What to apply."""
        return [] if self.order is None else self.order.remedies


def circumstances() -> TrialEnvironment:
    """Read the environment.

    Raises:
        ConfigurationError: a variable is not what it should be.
    """
    text = os.environ.get(SEED_VARIABLE)
    try:
        seed = int(text) if text else None
    except ValueError:
        seed = -1
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise ConfigurationError(f"{SEED_VARIABLE} must be a whole number from 0 to {LARGEST_SEED}, not {text!r}")
    order = os.environ.get(TRIAL_VARIABLE)
    path = os.environ.get(REPORT_VARIABLE)
    try:
        decoded = msgspec.json.decode(order.encode(), type=TrialInstructions) if order else None
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"{TRIAL_VARIABLE} must be what a worker writes: {error}") from None
    return TrialEnvironment(seed=seed, order=decoded, report=Report(Path(path) if path else None))


def seed_generators(seed: int) -> None:
    """Seed Python's and numpy's global generators, and torch's: now, or as soon as the script imports it.

    A script without torch does not pay for importing it.
    """
    random.seed(seed)
    np.random.seed(seed)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _TorchSeeder)]
    if sys.modules.get("torch") is not None:
        _seed_torch(seed)
    else:
        sys.meta_path.insert(0, _TorchSeeder(seed))


def _seed_torch(seed: int) -> None:
    from gradmedic.torch.seeding import seed_torch

    seed_torch(seed)


class _TorchSeeder(MetaPathFinder):
    """Finds torch as the other finders do, and has it seeded by whoever loads it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if name != "torch":
            return None
        others = [finder for finder in sys.meta_path if not isinstance(finder, _TorchSeeder)]
        spec = next((found for one in others if (found := one.find_spec(name, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _SeedingLoader(spec.loader, self._seed)
        return spec


class _SeedingLoader(Loader):
    """Loads a module by its own loader, and seeds torch after it."""

    def __init__(self, loader: Loader, seed: int) -> None:
        self._loader = loader
        self._seed = seed

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader  # nothing is to see of this one
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _seed_torch(self._seed)


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


def describe_environment() -> dict[str, str]:
    """Return what a result should be read with: versions and machine; torch's where it is loaded."""
    from gradmedic import __version__

    torch = sys.modules.get("torch")
    described = {
        "python": platform.python_version(),
        "gradmedic": __version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    return described if torch is None else {**described, "torch": str(torch.__version__)}
