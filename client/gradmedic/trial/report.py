"""The report of a trial to its worker: a small file of JSON with facts that its steps do not show."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradmedic.protocol.trial_report import TrialReport
from gradmedic.version import __version__


class ReportFile:
    """Writes the report of a trial. Each change is written at once, and the file is always complete.

    Args:
        path: path of the file; None writes nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._report = TrialReport()

    def update(self, **fields: Any) -> None:
        """Set fields of the `TrialReport`."""
        self._report = replace(self._report, **fields)
        if self._path is not None:
            draft = self._path.with_suffix(".draft")
            draft.write_text(json.dumps(self._report.to_fields()))
            draft.replace(self._path)


def describe_environment() -> dict[str, str]:
    """Return the versions and the machine that a result depends on; torch's version where torch is loaded."""
    import numpy as np  # here, because commands read the environment of trials too, and need no numpy

    torch = sys.modules.get("torch")
    described = {
        "python": platform.python_version(),
        "gradmedic": __version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    return described if torch is None else {**described, "torch": str(torch.__version__)}
