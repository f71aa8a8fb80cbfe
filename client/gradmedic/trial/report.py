"""What a trial reports to its worker beside its steps: a small file of JSON."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np


class Report:
    """The report of a trial. Each fact is written at once, and the file is always complete.

    Args:
        path: of the file; None writes nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._facts: dict[str, Any] = {}

    def say(self, **facts: Any) -> None:
        """Add facts."""
        self._facts.update(facts)
        if self._path is not None:
            draft = self._path.with_suffix(".draft")
            draft.write_text(json.dumps(self._facts))
            draft.replace(self._path)


def describe_environment() -> dict[str, str]:
    """Return the versions and the machine that a result depends on; torch's version where torch is loaded."""
    from gradmedic import __version__

    torch = sys.modules.get("torch")
    described = {
        "python": platform.python_version(),
        "gradmedic": __version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    return described if torch is None else {**described, "torch": str(torch.__version__)}
